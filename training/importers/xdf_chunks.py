"""Removes damaged chunks from an XDF file before pyxdf reads it.

pyxdf trusts the numbers in a chunk: a flipped bit in a sample count makes it allocate gigabytes, or
continue in the middle of a chunk. Chunks are first checked against their own lengths
(https://github.com/sccn/xdf/wiki/Specifications). A damaged chunk is skipped, up to the next
boundary chunk.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import ParseError, fromstring

FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, BOUNDARY, FOOTER = range(1, 7)
OF_STREAM = (STREAM_HEADER, SAMPLES, CLOCK_OFFSET, FOOTER)
MARK = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")  # of a boundary chunk
BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "double64": 8}
MAX_DEPTH = 100  # of nested XML elements
LEAST_HEADER = ("channel_count", "nominal_srate", "channel_format", "name")


@dataclass
class Sound:
    """The undamaged chunks of a file, (start, stop) in bytes, and descriptions of the damage."""

    chunks: list[tuple[int, int]] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    # by stream id: number of channels, and bytes per value (0 for text)
    headers: dict[int, tuple[int, int]] = field(default_factory=dict)


def open_sound(path: Path) -> tuple[BinaryIO, list[str]]:
    """Open the file, or a copy in memory without damaged chunks; also describes the damage."""
    with path.open("rb") as file:
        if file.read(4) != b"XDF:":
            return path.open("rb"), []
        size = path.stat().st_size
        sound = _scan(file, size)
        if not sound.damage:
            return path.open("rb"), []
        parts = [b"XDF:"]
        for start, stop in sound.chunks:
            file.seek(start)
            parts.append(file.read(stop - start))
    return io.BytesIO(b"".join(parts)), sound.damage


def _scan(file: BinaryIO, size: int) -> Sound:
    sound = Sound()
    at = 4
    while at < size:
        file.seek(at)
        length, n_length = _length(file)
        content = at + n_length
        stop = content + length
        problem = "is cut short" if stop > size else _problem(file, content, length, sound)
        if length >= 0 and problem is None:
            sound.chunks.append((at, stop))
            at = stop
            continue
        after = _next_boundary(file, at + 1, size)
        sound.damage.append(f"the chunk at byte {at} {problem or 'has no length'}")
        at = after
    return sound


def _length(file: BinaryIO) -> tuple[int, int]:
    """Read a variable-length integer; returns it (-1 if invalid) and its size in bytes."""
    kind = file.read(1)
    formats = {b"\x01": "<B", b"\x04": "<I", b"\x08": "<Q"}
    if kind not in formats:
        return -1, 1
    raw = file.read(struct.calcsize(formats[kind]))
    if len(raw) < struct.calcsize(formats[kind]):
        return -1, 1
    return int(struct.unpack(formats[kind], raw)[0]), 1 + len(raw)


def _problem(file: BinaryIO, start: int, length: int, sound: Sound) -> str | None:
    """Describe the damage in a chunk's content; None if there is none."""
    if length < 2:
        return "is empty"
    tag = struct.unpack("<H", file.read(2))[0]
    if tag not in range(FILE_HEADER, FOOTER + 1):
        return f"is of an unknown kind ({tag})"
    if tag not in OF_STREAM:
        return _xml_problem(file.read(length - 2), None) if tag == FILE_HEADER else None
    if length < 6:
        return "has no stream id"
    stream = struct.unpack("<I", file.read(4))[0]
    left = length - 6
    if tag == STREAM_HEADER:
        return _header_problem(file.read(left), stream, sound)
    if stream not in sound.headers:
        return "belongs to a stream without a valid header"
    if tag == SAMPLES:
        return _samples_problem(file, left, *sound.headers[stream])
    if tag == CLOCK_OFFSET:
        return None if left == 16 else "isn't a clock offset"
    return _xml_problem(file.read(left), "info")


def _xml_problem(raw: bytes, root: str | None) -> str | None:
    try:
        element = fromstring(raw.decode("utf-8", "replace"))
    except (ParseError, ValueError, RecursionError) as error:
        return f"isn't valid XML ({error})"
    if root is not None and element.tag != root:
        return f"describes {element.tag[:40]!r}, not {root!r}"
    level, depth = [element], 0
    while level and depth <= MAX_DEPTH:
        level, depth = [child for parent in level for child in parent], depth + 1
    return "is nested too deeply" if level else None


def _header_problem(raw: bytes, stream: int, sound: Sound) -> str | None:
    if problem := _xml_problem(raw, "info"):
        return problem
    info = fromstring(raw.decode("utf-8", "replace"))
    fields = {name: (info.findtext(name) or "") for name in LEAST_HEADER}
    try:
        n_channels, _ = int(fields["channel_count"]), float(fields["nominal_srate"])
    except ValueError:
        return "describes a stream without a channel count or rate"
    kind = fields["channel_format"]
    if n_channels < 0 or (kind != "string" and kind not in BYTES):
        return f"describes a stream with {n_channels} channels of type {kind[:40]!r}"
    if stream in sound.headers:
        return "describes a stream a second time"
    sound.headers[stream] = (n_channels, BYTES.get(kind, 0))
    return None


def _samples_problem(file: BinaryIO, left: int, n_channels: int, n_bytes: int) -> str | None:
    n_samples, n_length = _length(file)
    left -= n_length
    if n_samples < 0:
        return "has no sample count"
    each = n_channels * (n_bytes or 2)  # text takes at least two bytes
    if not n_samples * (1 + each) <= left:
        return f"claims {n_samples} samples in {left} bytes"
    if n_bytes and left > n_samples * (9 + each):
        return f"claims {n_samples} samples in {left} bytes"
    return None


def _next_boundary(file: BinaryIO, start: int, size: int) -> int:
    """Start of the chunk after the next boundary, or the end of the file."""
    step = 2**20
    for at in range(start, size, step):
        file.seek(at)
        found = file.read(step + len(MARK)).find(MARK)
        if found >= 0:
            return at + found + len(MARK)
    return size
