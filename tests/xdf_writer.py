"""Writes XDF 1.0 files like LabRecorder (https://github.com/sccn/xdf/wiki/Specifications).

Chunks are `[length of length][length][tag][content]`; the StreamInfo XML is the stream's own.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, STREAM_FOOTER = 1, 2, 3, 4, 6
SAMPLES_A_CHUNK = 512


@dataclass(frozen=True)
class Stream:
    """One recorded stream.

    xml: its StreamInfo. times: (n_samples,) float64, seconds on the sender's clock.
    values: (n_samples, n_channels) numbers, or one string per sample.
    clock_offset_s: the recorder's clock minus the sender's as measured, constant or per sample;
    None for no measurements.
    """

    xml: str
    times: NDArray[np.float64]
    values: NDArray[np.generic] | Sequence[str]
    clock_offset_s: float | NDArray[np.float64] | None = 0.0


def write(
    path: Path, streams: Sequence[Stream], *, with_footers: bool = True, date: str | None = None
) -> Path:
    """Write `streams` with interleaved chunks; without footers, like a killed recorder.

    date: start of the recording in the file's header.
    """
    started = f"<datetime>{date}</datetime>" if date else ""
    header = f"<?xml version='1.0'?><info><version>1.0</version>{started}</info>"
    parts = [b"XDF:", _chunk(FILE_HEADER, header.encode())]
    parts += [_chunk(STREAM_HEADER, s.xml.encode(), i) for i, s in enumerate(streams, 1)]
    longest = max(len(stream.times) for stream in streams)
    for first in range(0, longest, SAMPLES_A_CHUNK):
        for number, stream in enumerate(streams, 1):
            part = slice(first, first + SAMPLES_A_CHUNK)
            if len(stream.times[part]):
                parts.append(_chunk(SAMPLES, _samples(stream, part), number))
                if stream.clock_offset_s is not None:
                    parts.append(_chunk(CLOCK_OFFSET, _clock_offset(stream, first), number))
    if with_footers:
        parts += [_chunk(STREAM_FOOTER, _footer(s), i) for i, s in enumerate(streams, 1)]
    path.write_bytes(b"".join(parts))
    return path


def _chunk(tag: int, content: bytes, stream: int | None = None) -> bytes:
    body = struct.pack("<H", tag)
    body += b"" if stream is None else struct.pack("<I", stream)
    body += content
    return _length(len(body)) + body


def _length(n: int) -> bytes:
    return struct.pack("<BB", 1, n) if n < 256 else struct.pack("<BI", 4, n)


def _samples(stream: Stream, part: slice) -> bytes:
    times = stream.times[part]
    rows = (_value(value) for value in stream.values[part])
    stamped = (b"\x08" + struct.pack("<d", t) + row for t, row in zip(times, rows, strict=True))
    return _length(len(times)) + b"".join(stamped)


def _value(value: object) -> bytes:
    if isinstance(value, str):
        return _length(len(value.encode())) + value.encode()
    return np.ascontiguousarray(value).tobytes()


def _clock_offset(stream: Stream, first: int) -> bytes:
    offset = np.broadcast_to(np.asarray(stream.clock_offset_s), len(stream.times))[first]
    return struct.pack("<dd", float(stream.times[first]), float(offset))


def _footer(stream: Stream) -> bytes:
    return (
        f"<?xml version='1.0'?><info><first_timestamp>{stream.times[0]}</first_timestamp>"
        f"<last_timestamp>{stream.times[-1]}</last_timestamp>"
        f"<sample_count>{len(stream.times)}</sample_count></info>"
    ).encode()
