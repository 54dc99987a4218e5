"""The ZeroMQ messages that the daemon publishes: topics, rates, fields and units.

A message is one ZeroMQ frame, `prefix + payload`: a subscriber may then use CONFLATE, which drops
multipart messages. A colon ends each topic; without it, a subscription to `cursor` would match
`cursor.json` too. Payloads are msgpack maps, or the same content as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from decoder.errors import StreamError, brief
from decoder.filters import Filters
from streaming.faults import Faults
from streaming.wire.states import State

SCHEMA_VERSION = 1
DEFAULT_ADDRESS = "tcp://127.0.0.1:5556"
ZERO = (0.0, 0.0)  # m/s; the velocity of every frame that is not valid


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic: its prefix on the wire, its rate and its payload."""

    prefix: bytes
    rate: str
    carries: str


TOPICS = {
    "cursor": Topic(prefix=b"cursor:", rate="every tick", carries="CursorFrame, msgpack"),
    "cursor.json": Topic(
        prefix=b"cursor.json:",
        rate="every tick, while somebody subscribes",
        carries="CursorFrame, JSON",
    ),
    "status": Topic(
        prefix=b"status:", rate="1 Hz and at every change of state", carries="Status, msgpack"
    ),
    "spikes": Topic(
        prefix=b"spikes:",
        rate="20 Hz at most, while somebody subscribes and ticks leave time",
        carries="Spikes, msgpack",
    ),
}


class CursorFrame(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One tick's decoded velocity, with the data to check it or to replay the tick.

    Times are seconds on the LSL clock of the daemon's host. `valid` is true only in state
    `decoding`. In every other state the velocity is zero.
    """

    schema: int  # SCHEMA_VERSION
    started: float  # s; the daemon's start, which identifies its run
    seq: int  # number of the frame since the daemon's start, from 0
    session: str  # the bundle's session
    decoder: str  # the bundle's decoder id
    state: str
    valid: bool
    window_end: float  # s; the decoded instant, which is the tick's deadline
    newest_spike: float | None  # s; newest spike admitted so far
    decode_ms: float  # ms; duration of this tick's decode
    published: float  # s
    velocity: tuple[float, float]  # m/s; x, y
    n_spikes: int  # spikes in the window
    n_drained: int  # events taken off the stream since the daemon's start
    clock_offset: float  # s; added to the time stamps of this tick's events
    latency_ms: float  # ms; window end to publication


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles over the ticks of one second, ms."""

    p50: float
    p95: float
    p99: float
    p999: float
    max: float


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's health, once a second and whenever its state changes."""

    schema: int
    session: str
    decoder: str
    state: str
    detail: str  # for people: what the daemon waits for, or what went wrong
    provider: str  # the ONNX Runtime execution provider in use
    started: float  # s; same as in the frames
    uptime_s: float
    ticks: int  # frames published since the start
    late_ticks: int  # the old name of `skipped_ticks`; goes with the next schema
    skipped_ticks: int = 0  # deadlines skipped since the start; 0 from an older daemon
    latency: Quantiles | None  # window end to publication, since the last status
    spikes_per_s: float  # events drained, since the last status
    backlog_s: float | None  # age of the oldest event drained in the last tick that had any
    input_kind: str  # type of the input stream, open or awaited
    input_name: str | None  # its name; None: the only stream of its type
    stream: str | None  # name of the open stream
    known_units: int
    unknown_units: int  # units of the stream that are not in the bundle
    missing_units: int  # units of the bundle that are not in the stream
    window_s: float  # seconds of unbroken spikes before a decode is trusted
    events: dict[str, int]  # `streaming.inlets.admission.Counters`
    overflowed: int  # spikes dropped because the ring was full
    inlet_overflows: int  # how often liblsl's buffer was full when it was drained
    offset_jumps: int  # jumps of the sender's clock offset; each emptied the window
    bundle: str  # path of the decoder in use, on the daemon's host
    previous: str | None  # decoder id that a rollback restores
    candidate: str | None  # decoder id that is warm and ready to activate
    loading: bool  # whether a candidate is being opened
    load_problem: str | None  # why the last candidate could not be opened
    paused: str | None  # why decoding is paused; None if it isn't
    filters: Filters
    bias: tuple[float, float]  # m/s; subtracted by the bias correction
    distance: float | None = None  # nats; of the population from known days (`decoder.usual`)
    distance_limit: float | None = None  # nats; beyond it the population counts as changed
    pid: int  # process id of the daemon
    unit_faults: Faults | None = None  # over the last minute; None: no spikes, or an older daemon
    excluded_units: int = 0  # units that are excluded, whether or not the stream has them
    excluded_mark: str = ""  # identifies the set of excluded units; empty if none is


class Spikes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The spikes that arrived since the last such message, for a screen: not for decoding."""

    schema: int
    started: float  # s; same as in the frames
    stream: str  # name of the stream
    since: float  # s; the message before it, or a second ago; LSL clock of the daemon's host
    until: float  # s
    n_spikes: int  # that arrived; more than are listed if they were too many
    times: bytes  # (n,) float32, s relative to `until`, little-endian, in order of arrival
    units: bytes  # (n,) uint16, position in the stream's description, little-endian


# The topic and the first byte of a frame in msgpack, which has its number of fields. A subscription
# to it gets every frame, but does not count as a listener, for whom `Arm` waits: only those to a
# topic do (`streaming.wire.publish`).
OBSERVED_CURSOR = (
    TOPICS["cursor"].prefix
    + msgspec.msgpack.encode(dict.fromkeys(CursorFrame.__struct_fields__))[:1]
)

encode_frame = msgspec.msgpack.Encoder().encode
encode_frame_json = msgspec.json.Encoder().encode

Message = TypeVar("Message", CursorFrame, Status, Spikes)


def cursor_frame(
    state: State,
    *,
    started: float,
    seq: int,
    session: str,
    decoder: str,
    window_end: float,
    published: float,
    decode_ms: float = 0.0,
    velocity: tuple[float, float] = ZERO,
    n_spikes: int = 0,
    newest_spike: float | None = None,
    n_drained: int = 0,
    clock_offset: float = 0.0,
) -> CursorFrame:
    """A frame. Only in state `decoding` is it valid, with the given velocity and spikes."""
    valid = state is State.DECODING
    return CursorFrame(
        schema=SCHEMA_VERSION,
        started=started,
        seq=seq,
        session=session,
        decoder=decoder,
        state=state.value,
        valid=valid,
        window_end=window_end,
        newest_spike=newest_spike,
        decode_ms=decode_ms,
        published=published,
        velocity=velocity if valid else ZERO,
        n_spikes=n_spikes if valid else 0,
        n_drained=n_drained,
        clock_offset=clock_offset,
        latency_ms=(published - window_end) * 1e3,
    )


def silenced(frame: CursorFrame) -> CursorFrame:
    """The frame as `stale`, with zero velocity: it is too old to act on."""
    return msgspec.structs.replace(
        frame, valid=False, velocity=ZERO, state=State.STALE.value, n_spikes=0
    )


def _reader(
    what: str, decode: Callable[[bytes | memoryview], Message]
) -> Callable[[bytes | memoryview], Message]:
    """A decoder that raises only StreamError if a message can't be read."""

    def read(payload: bytes | memoryview) -> Message:
        try:
            message = decode(payload)
        except Exception as error:  # also for invalid UTF-8 and deep nesting
            raise StreamError(_unreadable(what, brief(error, 200))) from error
        if message.schema != SCHEMA_VERSION:
            raise StreamError(_unreadable(what, f"schema {message.schema}"))
        return message

    return read


def _unreadable(what: str, why: str) -> str:
    return (
        f"a {what} can't be read ({why}); is the daemon another version than this client "
        f"(schema {SCHEMA_VERSION})?"
    )


decode_frame = _reader("frame", msgspec.msgpack.Decoder(CursorFrame).decode)
decode_frame_json = _reader("frame", msgspec.json.Decoder(CursorFrame).decode)
decode_status = _reader("status", msgspec.msgpack.Decoder(Status).decode)
decode_spikes = _reader("picture of spikes", msgspec.msgpack.Decoder(Spikes).decode)
