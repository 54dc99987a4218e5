"""Matches a stream's units to a bundle's units by id.

A stream numbers its units in the order of its description, a bundle in the order of its manifest.
Decoders are swapped while a stream is read. So spikes are kept with the stream's unit numbers and
matched again for each decoder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from decoder.arrays import Ints

UNKNOWN = -1  # unit index of an event whose unit is not in the bundle


class UnitMatch:
    """Maps a stream's unit indices to positions in a bundle's unit ids.

    n_known: units in both. n_unknown: units of the stream that are not in the bundle.
    n_missing: units of the bundle that are not in the stream.
    """

    def __init__(self, stream_units: Sequence[str], bundle_units: Sequence[str]) -> None:
        index_of = {unit: index for index, unit in enumerate(bundle_units)}
        found = [index_of.get(unit, UNKNOWN) for unit in stream_units]
        self._table = np.array([*found, UNKNOWN], dtype=np.int64)  # UNKNOWN, -1, finds the last
        self.n_stream = len(found)
        self.n_known = sum(index != UNKNOWN for index in found)
        self.n_unknown = len(found) - self.n_known
        self.n_missing = len(index_of) - len(set(found) - {UNKNOWN})

    def __call__(self, stream_index: Ints) -> Ints:
        """Returns the bundle indices (n,) of stream indices (n,); `UNKNOWN` maps to itself."""
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
