"""Spikes from Lab Streaming Layer, as times on this host's clock and the stream's unit indices.

Three kinds of stream are read (see docs/STREAMS.md):

- `Spikes`: irregular, int32, fields `channel, unit`; the stamp is the spike's time;
  `desc/units` names each unit.
- `SpikeCounts`: regular, one channel a unit; the stamp is the bin's end; each count becomes
  spikes spread evenly inside its bin.
- `SpikeEvents`, as neural-data-simulator sends them: like `Spikes` with a waveform behind;
  without `desc/units` a unit's id is `channel/unit`.

Stamps are mapped with LSL's time correction, added here rather than by `proc_clocksync` (it
would add the same number) so that every frame can say which offset was applied. Nothing is
dejittered: spikes are irregular.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pylsl
from numpy.typing import NDArray

from decoder.errors import StreamError
from streaming.units import UNKNOWN, UnitMatch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

StreamKind = Literal["Spikes", "SpikeCounts", "SpikeEvents"]
KINDS: tuple[StreamKind, ...] = get_args(StreamKind)
SPIKES, COUNTS, EVENTS = KINDS
BUFFER_HUNDREDS = 4000  # liblsl counts hundreds of samples for irregular streams: 400,000 events
BUFFER_S = 10  # for regular streams
MAX_SAMPLES = 4096  # a pull; repeated until the inlet is empty
OPEN_TIMEOUT_S = 5.0
CORRECTION_EVERY_S = 0.5
MAX_UNIT_RATE_HZ = 1000.0  # a count above it is no count of one unit's spikes
MAX_NUMBERED = (4096, 256)  # channels and units of a stream that describes none
MAX_CHANNEL = 2**20  # channel times unit numbers; a description beyond it is an error
RETRY_S = 1.0  # after a stream that could not be opened
RESOLVE_S = 0.3  # how long all who match are waited for
OFFSET_JUMP_S = 0.005  # spikes on both sides of a larger step don't belong in one window


@dataclass(frozen=True, kw_only=True)
class StreamQuery:
    """Which stream to take: by `name` where given, else the only one of type `kind`."""

    kind: StreamKind = SPIKES
    name: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StreamError(f"stream type {self.kind!r}; expected one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        return f"name {self.name!r}" if self.name else f"type {self.kind!r}"

    def resolve(self, timeout_s: float) -> pylsl.StreamInfo | None:
        """The one matching stream seen within `timeout_s`, or None.

        Raises StreamError where several match: which one drives the cursor is no coin's toss.
        """
        return only_stream(self.kind, self.name, timeout_s, hint="--stream-name")


def only_stream(
    kind: str, name: str | None, timeout_s: float, *, hint: str = "its name"
) -> pylsl.StreamInfo | None:
    """The one stream called `name`, or of type `kind`, seen within `timeout_s`; None if none.

    Raises StreamError where several match.
    """
    prop, value = ("name", name) if name else ("type", kind)
    found = pylsl.resolve_byprop(prop, value, minimum=2, timeout=timeout_s)
    if len(found) > 1:
        seen = sorted(f"{info.name()!r} on {info.hostname()}" for info in found)
        raise StreamError(
            f"{len(found)} streams have {prop} {value!r}: {', '.join(seen)}; expected one; "
            + ("stop the others" if name else f"choose one with {hint}")
        )
    return found[0] if found else None


class SpikeInlet:
    """An open stream of spikes.

    unit_ids: ids of the stream's units; an event's unit index is its position there. It grows
        where a stream without description brings units that it had not before.
    bundle_units: the units that somebody wants to decode; None where all are of use.
    min_known_share: raises StreamError where the stream describes fewer of the bundle's units.
    Opening blocks for about a second (description, first time correction): see `Connector`.
    """

    def __init__(
        self,
        found: pylsl.StreamInfo,
        bundle_units: Sequence[str] | None = None,
        *,
        min_known_share: float = 0.0,
    ) -> None:
        rate_hz = found.nominal_srate()
        max_buflen = BUFFER_S if rate_hz > 0 else BUFFER_HUNDREDS
        self._capacity = int(max_buflen * (rate_hz or 100))
        self._inlet = pylsl.StreamInlet(found, max_buflen=max_buflen, recover=False)
        try:
            info = self._inlet.info(timeout=OPEN_TIMEOUT_S)
            self.name, self.kind, self.source_id = info.name(), info.type(), info.source_id()
            self._parse = _parser(info, bundle_units or ())
            self._inlet.open_stream(timeout=OPEN_TIMEOUT_S)
            self.clock_offset_s = float(self._inlet.time_correction(timeout=OPEN_TIMEOUT_S))
        except (pylsl.util.TimeoutError, pylsl.util.LostError) as error:
            raise StreamError(f"stream {found.name()!r} went away while it was opened") from error
        if bundle_units is not None:
            _check_match(self.name, self.unit_ids, bundle_units, min_known_share)
        self.n_drained = 0
        self.n_overflows = 0  # times that liblsl's buffer was full, so that it dropped events
        self.newest_sample: float | None = None  # s; of a regular stream, also without spikes
        self._regular = rate_hz > 0
        self._offset_jumped = False
        self._corrected_at = pylsl.local_clock()

    @property
    def unit_ids(self) -> list[str]:
        return self._parse.unit_ids

    def drain(self, now: float) -> tuple[Floats, Ints]:
        """Everything that waits: times (n,) on this host's clock, unit indices (n,).

        Never blocks. Raises StreamError where the sender went away. (liblsl's own recovery
        would keep the old description: a sender that restarts with other units would be
        decoded as the old ones, silently.)
        """
        self._update_offset(now)
        self.n_overflows += self._inlet.samples_available() >= self._capacity
        chunks: list[tuple[Floats, Ints]] = []
        while True:
            try:
                samples, stamps = self._inlet.pull_chunk(
                    timeout=0.0, max_samples=MAX_SAMPLES, as_numpy=True
                )
            except pylsl.util.LostError as error:
                raise StreamError(f"the sender of {self.name!r} went away") from error
            if len(stamps) == 0:
                break
            self.n_drained += len(stamps)
            stamped = np.asarray(stamps, dtype=np.float64)
            stamped = np.where(stamped > 0, stamped + self.clock_offset_s, np.nan)
            if self._regular and np.isfinite(stamped[-1]):
                self.newest_sample = float(stamped[-1])
            chunks.append(self._parse(samples, stamped))
            if len(stamps) < MAX_SAMPLES:
                break
        if not chunks:
            return _NO_TIMES, _NO_UNITS
        if len(chunks) == 1:
            return chunks[0]
        return np.concatenate([c[0] for c in chunks]), np.concatenate([c[1] for c in chunks])

    def _update_offset(self, now: float) -> None:
        """Take liblsl's newest estimate; it measures in the background, this never waits."""
        if now - self._corrected_at < CORRECTION_EVERY_S:
            return
        self._corrected_at = now
        try:
            offset = float(self._inlet.time_correction(timeout=0.0))
        except (pylsl.util.TimeoutError, pylsl.util.LostError):
            return  # going away; the next pull says so
        self._offset_jumped |= abs(offset - self.clock_offset_s) > OFFSET_JUMP_S
        self.clock_offset_s = offset

    def take_offset_jump(self) -> bool:
        """Whether the clock offset jumped since the last call."""
        jumped, self._offset_jumped = self._offset_jumped, False
        return jumped

    def close(self) -> None:
        """Close the stream."""
        self._inlet.close_stream()


_NO_TIMES: Floats = np.empty(0)
_NO_UNITS: Ints = np.empty(0, dtype=np.int64)


def _check_match(
    name: str, stream_units: Sequence[str], bundle_units: Sequence[str], min_known_share: float
) -> None:
    match = UnitMatch(stream_units, bundle_units)
    if match.n_known == 0 and stream_units:
        raise StreamError(
            f"none of the {len(stream_units)} units of stream {name!r} ({stream_units[0]}, …) is "
            f"among the bundle's {len(bundle_units)} ({bundle_units[0]}, …); is this the right "
            "bundle?"
        )
    if match.n_known < min_known_share * len(bundle_units):
        raise StreamError(
            f"stream {name!r} has {match.n_known} of the bundle's {len(bundle_units)} "
            f"units; expected at least {min_known_share:.0%} (--min-known-share); "
            "recalibrate, or choose the bundle of these units"
        )


class _EventParser:
    """Rows of `channel, unit, …` become unit indices by one table look-up.

    grows: a pair that nobody described is a unit too, from its first event on.
    """

    def __init__(
        self, name: str, described: Mapping[tuple[int, int], str], *, grows: bool = False
    ) -> None:
        self.unit_ids: list[str] = []
        self._name, self._grows = name, grows
        self._table = np.full((1, 1), UNKNOWN, dtype=np.int64)
        self._add(described)

    def __call__(self, samples: NDArray[np.generic], stamps: Floats) -> tuple[Floats, Ints]:
        channel = samples[:, 0].astype(np.int64)
        unit = samples[:, 1].astype(np.int64)
        index = self._look_up(channel, unit)
        if self._grows and (index == UNKNOWN).any():
            new = (index == UNKNOWN) & (channel >= 0) & (unit >= 0)
            new &= (channel < MAX_NUMBERED[0]) & (unit < MAX_NUMBERED[1])
            pairs = sorted(set(zip(channel[new].tolist(), unit[new].tolist(), strict=True)))
            self._add({(c, u): f"{c}/{u}" for c, u in pairs})
            index = self._look_up(channel, unit)
        return stamps, index

    def _look_up(self, channel: Ints, unit: Ints) -> Ints:
        n_channels, n_units = self._table.shape
        inside = (channel >= 0) & (channel < n_channels) & (unit >= 0) & (unit < n_units)
        index = self._table[np.where(inside, channel, 0), np.where(inside, unit, 0)]
        return np.where(inside, index, UNKNOWN)

    def _add(self, described: Mapping[tuple[int, int], str]) -> None:
        if not described:
            return
        needed = [max(key[axis] for key in described) + 1 for axis in (0, 1)]
        shape = tuple(np.maximum(self._table.shape, needed).tolist())
        if shape[0] * shape[1] > MAX_CHANNEL:
            raise StreamError(
                f"stream {self._name!r} describes channel and unit numbers up to "
                f"{max(described)}; expected small ones, counted from 0"
            )
        table = np.full(shape, UNKNOWN, dtype=np.int64)
        table[: self._table.shape[0], : self._table.shape[1]] = self._table
        self._table = table
        for key, unit_id in described.items():
            table[key] = len(self.unit_ids)
            self.unit_ids.append(unit_id)


class _CountParser:
    """Counts (n_bins, n_channels) become spikes spread evenly inside their bins."""

    def __init__(self, labels: Iterable[str], bin_s: float) -> None:
        self.unit_ids, self._bin_s = list(labels), bin_s

    def __call__(self, samples: NDArray[np.generic], stamps: Floats) -> tuple[Floats, Ints]:
        finite = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=0.0)
        most = np.ceil(MAX_UNIT_RATE_HZ * self._bin_s)
        counts = np.clip(finite, 0, most).round().astype(np.int64)
        flat = counts.ravel()
        total = int(flat.sum())
        if total == 0:
            return _NO_TIMES, _NO_UNITS
        cell = np.repeat(np.arange(len(flat)), flat)
        first = np.cumsum(flat) - flat
        rank = np.arange(total) - first[cell]
        start = stamps[cell // counts.shape[1]] - self._bin_s
        times = start + (rank + 0.5) / flat[cell] * self._bin_s
        return times, cell % counts.shape[1]


def _parser(info: pylsl.StreamInfo, bundle_units: Sequence[str]) -> _EventParser | _CountParser:
    if info.channel_format() == pylsl.cf_string:
        raise StreamError(f"stream {info.name()!r} carries strings; expected numbers")
    if info.type() == COUNTS:
        return _count_parser(info)
    return _event_parser(info, bundle_units)


def _event_parser(info: pylsl.StreamInfo, bundle_units: Sequence[str]) -> _EventParser:
    if info.channel_count() < 2:
        raise StreamError(
            f"stream {info.name()!r} has {info.channel_count()} channel; expected `channel, unit`"
        )
    if described := described_units(info):
        return _EventParser(info.name(), described)
    if info.type() != EVENTS:
        raise StreamError(
            f"stream {info.name()!r} has no desc/units; expected one `unit` each with id, "
            "channel and unit (docs/STREAMS.md)"
        )
    return _EventParser(info.name(), _numbered_units(bundle_units), grows=True)


def described_units(info: pylsl.StreamInfo) -> dict[tuple[int, int], str]:
    """Unit id by (channel, unit), from a stream's `desc/units`."""
    described: dict[tuple[int, int], str] = {}
    node = info.desc().child("units").child("unit")
    while not node.empty():
        try:
            key = (int(node.child_value("channel")), int(node.child_value("unit")))
        except ValueError as error:
            raise StreamError(
                f"stream {info.name()!r}: desc/units has a unit without whole-number channel "
                f"and unit ({error})"
            ) from error
        if min(key) >= 0:
            described[key] = node.child_value("id")
        node = node.next_sibling("unit")
    return described


def _numbered_units(unit_ids: Sequence[str]) -> dict[tuple[int, int], str]:
    """Those of a bundle's units whose id is `channel/unit` in numbers."""
    numbered = {}
    for unit_id in unit_ids:
        channel, slash, unit = unit_id.partition("/")
        if slash and channel.isdigit() and unit.isdigit():
            key = int(channel), int(unit)
            if key[0] < MAX_NUMBERED[0] and key[1] < MAX_NUMBERED[1]:
                numbered[key] = unit_id
    return numbered


def _count_parser(info: pylsl.StreamInfo) -> _CountParser:
    rate_hz = info.nominal_srate()
    labels = info.get_channel_labels()
    if not rate_hz > 0 or not labels or any(label is None for label in labels):
        raise StreamError(
            f"stream {info.name()!r} has rate {rate_hz} Hz and channel labels {labels}; expected "
            "a regular rate and one label (the unit's id) a channel"
        )
    return _CountParser([str(label) for label in labels], 1.0 / rate_hz)


class Connector:
    """Finds and opens a stream in a thread that ends when it has one.

    Only while there is no stream: a busy thread beside the loop would make ticks late. `query` and
    `bundle_units` may be changed at any time; what was found with others is closed. Nothing that a
    stream or liblsl does is raised here: `problem` says it, and the search goes on.
    """

    def __init__(
        self, query: StreamQuery, bundle_units: Sequence[str], *, min_known_share: float = 0.0
    ) -> None:
        self.query = query
        self._min_known_share = min_known_share
        self.problem: str | None = None
        self.bundle_units = bundle_units
        self._found: tuple[StreamQuery, Sequence[str], SpikeInlet] | None = None
        self._searching = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._stop.clear()
        self._searching = True
        self._thread = threading.Thread(target=self._search, name="lsl-connector", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread is to be had now; `take` tries again
            self._searching = False
            self.problem = f"can't look for the stream: {error}"

    def take(self) -> SpikeInlet | None:
        """The opened stream, once; None while there is none yet."""
        if self._found is None:
            if not self._searching:
                self.start()
            return None
        (query, bundle_units, inlet), self._found = self._found, None
        if query is self.query and bundle_units is self.bundle_units:
            return inlet
        inlet.close()
        self.start()
        return None

    def stop(self) -> None:
        """End the search."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * OPEN_TIMEOUT_S)

    def _search(self) -> None:
        while not self._stop.is_set():
            try:
                found = self._look()
            except Exception as error:  # whatever it was: it is said, and tried again
                known = isinstance(error, StreamError)
                self.problem = str(error) if known else f"can't open {self.query}: {error!r}"
                self._stop.wait(RETRY_S)
                continue
            self.problem = None
            if found is not None:
                self._found = found
                return

    def _look(self) -> tuple[StreamQuery, Sequence[str], SpikeInlet] | None:
        query, bundle_units = self.query, self.bundle_units
        found = query.resolve(RESOLVE_S)
        if found is None:
            return None
        inlet = SpikeInlet(found, bundle_units, min_known_share=self._min_known_share)
        return query, bundle_units, inlet
