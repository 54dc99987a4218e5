"""Matches a stream's units to a bundle's units by id, without the units that are excluded.

A stream numbers its units in the order of its description, a bundle in the order of its manifest.
Decoders are swapped while a stream is read. So spikes are kept with the stream's unit numbers and
matched again for each decoder.

An operator may exclude units, such as a broken channel. Their spikes are left out before the
decoder, whichever decoder and stream is in use.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Sequence, Set

import numpy as np

from decoder.arrays import Ints

UNKNOWN = -1  # unit index of an event whose unit is not in the bundle
EXCLUDED = -2  # unit index of an event whose unit is excluded
MAX_EXCLUDED = 1000  # units
MAX_EXCLUDED_JSON = 100_000  # bytes of their ids; Linux limits an environment variable to 128 KiB
NONE: Set[str] = frozenset()


class UnitMatch:
    """Maps a stream's unit indices to positions in a bundle's unit ids.

    excluded: ids of units that are mapped to `EXCLUDED`, whether or not they are in the bundle.
    n_known: units in both, `n_used` of which are not excluded. n_unknown: units of the stream that
    are not in the bundle. n_missing: units of the bundle that are not in the stream.
    """

    def __init__(
        self,
        stream_units: Sequence[str],
        bundle_units: Sequence[str],
        excluded: Set[str] = NONE,
    ) -> None:
        index_of = {unit: index for index, unit in enumerate(bundle_units)}
        found = [index_of.get(unit, UNKNOWN) for unit in stream_units]
        used = [
            EXCLUDED if unit in excluded else index
            for unit, index in zip(stream_units, found, strict=True)
        ]
        self._table = np.array([*used, UNKNOWN], dtype=np.int64)  # UNKNOWN, -1, finds the last
        self.n_stream = len(found)
        self.n_known = sum(index != UNKNOWN for index in found)
        self.n_used = sum(index >= 0 for index in used)
        self.n_unknown = len(found) - self.n_known
        self.n_missing = len(index_of) - len(set(found) - {UNKNOWN})

    def __call__(self, stream_index: Ints) -> Ints:
        """Returns the bundle indices (n,) of stream indices (n,); `UNKNOWN` maps to itself.

        Spikes that a decoder may use have an index of 0 or more.
        """
        return self._table[stream_index]


def repeated_units(unit_ids: Sequence[str]) -> str | None:
    """An error message if an id names more than one unit, else None.

    Two probes that both count from 0 would be decoded or recorded as one. Live streams, recordings
    and files all refuse such ids with this message.
    """
    repeated = [unit_id for unit_id, n in Counter(unit_ids).items() if n > 1]
    if not repeated:
        return None
    listed = ", ".join(map(repr, repeated[:3])) + (", …" if len(repeated) > 3 else "")
    return (
        f"{len(repeated)} unit ids name more than one unit ({listed}); expected each once. "
        "Give the units of each probe ids of their own, such as `probe1/7`"
    )


def too_many_excluded(unit_ids: Collection[str]) -> str | None:
    """An error message if so many units can't be excluded together, else None."""
    if len(unit_ids) > MAX_EXCLUDED:
        return f"{len(unit_ids):,} units to exclude; expected at most {MAX_EXCLUDED:,}"
    if (size := len(json.dumps(list(unit_ids)))) > MAX_EXCLUDED_JSON:
        return (
            f"the ids of the units to exclude have {size:,} bytes as JSON; expected at most "
            f"{MAX_EXCLUDED_JSON:,}"
        )
    return None


def none_left(n_known: int) -> str:
    """Why it is refused to exclude all units that a decoder knows."""
    return (
        f"all {n_known} units that the decoder knows would be excluded; it would decode silence. "
        "Leave at least one, or activate a decoder of other units"
    )


def mark_of(unit_ids: Set[str]) -> str:
    """A short text that identifies a set of units; empty for none."""
    if not unit_ids:
        return ""
    return hashlib.sha256(json.dumps(sorted(unit_ids)).encode()).hexdigest()[:16]
