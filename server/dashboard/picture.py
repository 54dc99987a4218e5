"""A picture of the feed: what happened since a page's last one, as one binary message.

    uint32       length of the header, little-endian
    header       JSON, padded with spaces so that the arrays begin at a multiple of 8 bytes
    arrays       one after the other, each padded to a multiple of 8 bytes

The header lists the arrays in order, as name, dtype (`f4`, `u2`, `u1`) and length. Times are in
seconds relative to the header's `now`, which is on the LSL clock.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from decoder.arrays import Floats
from streaming.columns import COLUMNS
from streaming.wire import messages as wire
from streaming.wire.states import State

ALIGN = 8
STATES = [state.value for state in State]
MOST = 2000  # frames, and samples of kinematics, of a picture: a second at 2 kHz

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """What arrived within a thirtieth of a second.

    now: LSL clock, s. header: fields for the page. server: the server's status as JSON, if it is
    due. moved_at (n,), moved (n, 6): kinematics, in the order of `COLUMNS`.
    """

    now: float
    header: Mapping[str, Any]
    server: bytes | None
    frames: Sequence[wire.CursorFrame]
    spikes: Sequence[wire.Spikes]
    moved_at: Floats
    moved: Floats


def picture(moments: Sequence[Moment]) -> bytes:
    """The message that shows these moments, the newest last."""
    newest = moments[-1]
    now = newest.now
    frames = list(chain.from_iterable(moment.frames for moment in moments))
    spikes = list(chain.from_iterable(moment.spikes for moment in moments))
    header = {"now": now, "states": STATES, **newest.header}
    if spikes:
        header["spikes"] = {
            "stream": spikes[-1].stream,
            "seconds": sum(message.until - message.since for message in spikes),
            "n": sum(message.n_spikes for message in spikes),
        }
    for moment in moments:
        if moment.server is not None:
            header["server"] = msgspec.Raw(moment.server)
    moved_at = np.concatenate([moment.moved_at for moment in moments])
    moved = np.concatenate([moment.moved for moment in moments])
    return encode(
        header,
        _of_frames(frames, now) | _of_spikes(spikes, now) | _of_kinematics(moved_at, moved, now),
    )


def encode(header: Mapping[str, Any], arrays: Arrays) -> bytes:
    """The message of a picture."""
    listed = [[name, values.dtype.str[1:], len(values)] for name, values in arrays.items()]
    text = msgspec.json.encode({**header, "arrays": listed})
    text += b" " * (-(4 + len(text)) % ALIGN)
    parts = [struct.pack("<I", len(text)), text]
    for values in arrays.values():
        data = values.tobytes()
        parts += [data, b"\0" * (-len(data) % ALIGN)]
    return b"".join(parts)


def _of_frames(frames: Sequence[wire.CursorFrame], now: float) -> dict[str, Array]:
    """Arrays of the newest frames: time, velocity (m/s), latency (ms), state (index)."""
    frames = frames[-MOST:]
    return {
        "frame_t": _f4([frame.window_end - now for frame in frames]),
        "frame_vx": _f4([frame.velocity[0] for frame in frames]),
        "frame_vy": _f4([frame.velocity[1] for frame in frames]),
        "frame_ms": _f4([frame.latency_ms for frame in frames]),
        "frame_state": np.array([_state(frame.state) for frame in frames], dtype="<u1"),
    }


def _of_spikes(messages: Sequence[wire.Spikes], now: float) -> dict[str, Array]:
    """Arrays of spikes: time, and position of the unit in the stream."""
    times = [np.frombuffer(m.times, "<f4") + np.float32(m.until - now) for m in messages]
    units = [np.frombuffer(m.units, "<u2") for m in messages]
    return {
        "spike_t": np.concatenate([*times, np.empty(0, "<f4")]).astype("<f4"),
        "spike_u": np.concatenate([*units, np.empty(0, "<u2")]).astype("<u2"),
    }


def _of_kinematics(times: Floats, values: Floats, now: float) -> dict[str, Array]:
    """Arrays of the newest samples (n,), (n, 6): time and the columns, m and m/s."""
    times, values = times[-MOST:], values[-MOST:]
    columns = {f"kin_{name}": _f4(values[:, i]) for i, name in enumerate(COLUMNS)}
    return {"kin_t": _f4(times - now), **columns}


def _f4(values: Any) -> Array:
    return np.asarray(values, dtype="<f4")


def _state(name: str) -> int:
    return STATES.index(name) if name in STATES else len(STATES)
