"""Spikes from LSL: times on this host's clock, and the stream's unit indices.

There are three types of stream (docs/STREAMS.md):

- `Spikes`: irregular, int32, fields `channel, unit`. The time stamp is the spike's time;
  `desc/units` names each unit.
- `SpikeCounts`: regular, one channel per unit. The time stamp is the end of the bin; a count
  becomes spikes spread evenly inside the bin.
- `SpikeEvents`, sent by neural-data-simulator: like `Spikes`, followed by a waveform. Without
  `desc/units`, a unit's id is `channel/unit`.

LSL's time correction is added here and not by `proc_clocksync`, which would add the same number:
each frame reports the offset. Nothing is dejittered, because spikes are irregular.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
import pylsl
from numpy.typing import NDArray

from decoder.arrays import Bools, Floats, Ints
from decoder.errors import StreamError
from streaming.inlets.connector import Connector, open_stream
from streaming.inlets.inlet import Inlet
from streaming.inlets.search import Query
from streaming.units import NONE, UNKNOWN, UnitMatch, none_left, repeated_units

StreamKind = Literal["Spikes", "SpikeCounts", "SpikeEvents"]
KINDS: tuple[StreamKind, ...] = get_args(StreamKind)
SPIKES, COUNTS, EVENTS = KINDS
BUFFER_HUNDREDS = 4000  # for irregular streams, in hundreds of samples: 400,000 events
BUFFER_S = 10  # for regular streams
MAX_UNIT_RATE_HZ = 1000.0  # a higher count can't be the spikes of one unit
MAX_NUMBERED = (4096, 256)  # channels and units of a stream without a description
MAX_UNITS = 4096  # units per such stream; events of further units count as unknown
MAX_NEW_UNITS = 256  # new units per drain in the daemon; the rest wait for the next drain
MAX_CELLS = 2**20  # channel numbers times unit numbers in a description
RESOLVE_S = 2.0  # duration of a search: peers are not asked at once


@dataclass(frozen=True, kw_only=True)
class StreamQuery(Query):
    """Selects a spike stream: by `name` if given, else the only one of type `kind`."""

    kind: StreamKind = SPIKES
    name: str | None = None

    how_to_choose: ClassVar[str] = "--stream-name"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise StreamError(f"stream type {self.kind!r}; expected one of {', '.join(KINDS)}")


def find_spikes(query: StreamQuery, timeout_s: float) -> SpikeInlet | None:
    """Opens the one matching spike stream; None if there is none."""
    return open_stream(query, SpikeInlet, timeout_s)


class SpikeInlet(Inlet):
    """An open spike stream.

    unit_ids: ids of the stream's units; an event's unit index is a position in it. It grows if a
        stream without a description sends new units.
    bundle_units: the units to decode; None to accept all units.
    min_known_share: least share of the bundle's units in the stream, excluded or not.
    excluded: ids of units that are not decoded.
    bin_ends: for a regular stream, the ends (n_bins,) of the bins drained last, also of empty
        bins; else None.
    Raises StreamError if the stream has too few of the bundle's units.
    """

    def __init__(
        self,
        found: pylsl.StreamInfo,
        bundle_units: Sequence[str] | None = None,
        *,
        min_known_share: float = 0.0,
        excluded: Set[str] = NONE,
    ) -> None:
        self._bundle_units, self._min_known_share = bundle_units, min_known_share
        self._excluded = excluded
        regular = found.nominal_srate() > 0
        self.max_buflen = BUFFER_S if regular else BUFFER_HUNDREDS
        super().__init__(found)
        self.bin_ends: Floats | None = _NO_TIMES if regular else None

    def check(self, info: pylsl.StreamInfo) -> None:
        """Read the units, while the stream is being opened."""
        self._parse = _parser(info, self._bundle_units)
        if problem := repeated_units(self.unit_ids):
            raise StreamError(f"stream {self.name!r}: {problem}")
        if self._bundle_units is not None:
            match = UnitMatch(self.unit_ids, self._bundle_units, self._excluded)
            _check_match(self.name, self.unit_ids, self._bundle_units, match, self._min_known_share)

    @property
    def unit_ids(self) -> list[str]:
        return self._parse.unit_ids

    def drain(self, now: float) -> tuple[Floats, Ints]:
        """The waiting events: times (n,) on this host's clock, unit indices (n,).

        Never blocks, and returns at most a full buffer. Raises StreamError if the sender is gone.
        """
        samples, times = self._pull(now)
        if self.bin_ends is not None:
            self.bin_ends = times
        if len(times) == 0:
            return _NO_TIMES, _NO_UNITS
        return self._parse(samples, times)


_NO_TIMES: Floats = np.empty(0)
_NO_UNITS: Ints = np.empty(0, dtype=np.int64)


def _check_match(
    name: str,
    stream_units: Sequence[str],
    bundle_units: Sequence[str],
    match: UnitMatch,
    min_known_share: float,
) -> None:
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
    if match.n_known and not match.n_used:
        raise StreamError(f"stream {name!r}: {none_left(match.n_known)}")


class _EventParser:
    """Maps rows of `channel, unit, …` to unit indices with one table lookup.

    most_new: number of undescribed pairs that each call may add as new units. The table then has
        its greatest size from the start, so that a tick never allocates one.
    """

    def __init__(
        self, name: str, described: Mapping[tuple[int, int], str], *, most_new: int = 0
    ) -> None:
        self.unit_ids: list[str] = []
        self._most_new = most_new
        shape = MAX_NUMBERED if most_new else _table_shape(name, described)
        self._table = np.full(shape, UNKNOWN, dtype=np.int32)
        for key, unit_id in described.items():
            self._add(key, unit_id)

    def __call__(self, samples: NDArray[np.generic], stamps: Floats) -> tuple[Floats, Ints]:
        channel = samples[:, 0].astype(np.int64)
        unit = samples[:, 1].astype(np.int64)
        n_channels, n_units = self._table.shape
        inside = (channel >= 0) & (channel < n_channels) & (unit >= 0) & (unit < n_units)
        cell = np.where(inside, channel * n_units + unit, 0)
        index = self._look_up(cell, inside)
        if room := max(0, min(self._most_new, MAX_UNITS - len(self.unit_ids))):
            new = np.unique(cell[inside & (index == UNKNOWN)])
            for number in new[:room].tolist():
                key = divmod(number, n_units)
                self._add(key, f"{key[0]}/{key[1]}")
            if len(new):
                index = self._look_up(cell, inside)
        return stamps, index

    def _look_up(self, cell: Ints, inside: Bools) -> Ints:
        return np.where(inside, self._table.ravel()[cell], UNKNOWN).astype(np.int64)

    def _add(self, key: tuple[int, int], unit_id: str) -> None:
        self._table[key] = len(self.unit_ids)
        self.unit_ids.append(unit_id)


def _table_shape(name: str, described: Mapping[tuple[int, int], str]) -> tuple[int, int]:
    n_channels, n_units = (max(key[axis] for key in described) + 1 for axis in (0, 1))
    if n_channels * n_units > MAX_CELLS:
        raise StreamError(
            f"stream {name!r} describes channel and unit numbers up to {max(described)}; "
            "expected small ones, counted from 0"
        )
    return n_channels, n_units


class _CountParser:
    """Converts counts (n_bins, n_channels) to spikes spread evenly inside their bins."""

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


def _parser(
    info: pylsl.StreamInfo, bundle_units: Sequence[str] | None
) -> _EventParser | _CountParser:
    if info.channel_format() == pylsl.cf_string:
        raise StreamError(f"stream {info.name()!r} carries strings; expected numbers")
    if info.type() == COUNTS:
        return _count_parser(info)
    return _event_parser(info, bundle_units)


def _event_parser(info: pylsl.StreamInfo, bundle_units: Sequence[str] | None) -> _EventParser:
    if info.channel_count() < 2:
        raise StreamError(
            f"stream {info.name()!r} has {info.channel_count()} channel; expected `channel, unit`"
        )
    if described := described_units(info):
        return _EventParser(info.name(), described)
    if info.type() != EVENTS:
        raise StreamError(
            f"stream {info.name()!r} has no desc/units; expected one `unit` per unit with id, "
            "channel and unit (docs/STREAMS.md)"
        )
    most_new = MAX_UNITS if bundle_units is None else MAX_NEW_UNITS
    return _EventParser(info.name(), _numbered_units(bundle_units or ()), most_new=most_new)


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
        unit_id = node.child_value("id")
        if described.setdefault(key, unit_id) != unit_id:
            raise StreamError(
                f"stream {info.name()!r}: desc/units calls channel {key[0]}, unit {key[1]} both "
                f"{described[key]!r} and {unit_id!r}; expected one id. Number the channels of "
                "several probes one after the other"
            )
        node = node.next_sibling("unit")
    return {key: unit_id for key, unit_id in described.items() if min(key) >= 0}


def _numbered_units(unit_ids: Sequence[str]) -> dict[tuple[int, int], str]:
    """The units of a bundle whose id is `channel/unit` in numbers."""
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
            "a regular rate and one label (the unit's id) per channel"
        )
    return _CountParser([str(label) for label in labels], 1.0 / rate_hz)


class SpikeConnector(Connector[SpikeInlet]):
    """Keeps a stream open that has the units of a decoder.

    `query`, `bundle_units` and `excluded` may be changed at any time; a stream found with the old
    ones is closed.
    """

    def __init__(
        self,
        query: StreamQuery,
        bundle_units: Sequence[str],
        *,
        min_known_share: float = 0.0,
        excluded: Set[str] = NONE,
    ) -> None:
        self._bundle_units, self._excluded = bundle_units, excluded

        def open_inlet(found: pylsl.StreamInfo) -> SpikeInlet:
            return SpikeInlet(
                found,
                self._bundle_units,
                min_known_share=min_known_share,
                excluded=self._excluded,
            )

        super().__init__(query, open_inlet)

    @property
    def bundle_units(self) -> Sequence[str]:
        """The units that the stream should have."""
        return self._bundle_units

    @bundle_units.setter
    def bundle_units(self, bundle_units: Sequence[str]) -> None:
        self._bundle_units = bundle_units
        self.forget_found()

    @property
    def excluded(self) -> Set[str]:
        """The units that are not decoded."""
        return self._excluded

    @excluded.setter
    def excluded(self, excluded: Set[str]) -> None:
        self._excluded = excluded
        self.forget_found()
