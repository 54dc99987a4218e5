"""A stream's units as a decoder's: by id, whatever their order.

A stream numbers its units in the order of its description, a bundle in that of its manifest.
Decoders come and go on one stream, so spikes are kept by the stream's numbers and matched anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from decoder.arrays import Ints

UNKNOWN = -1  # unit index of an event whose unit nobody knows


class UnitMatch:
    """Positions in a bundle's unit ids, of the units of a stream.

    n_known: units that the stream has and the bundle knows. n_unknown: that the bundle doesn't
    know. n_missing: units of the bundle that the stream doesn't have.
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
        """Bundle indices of stream indices (n,); UNKNOWN stays."""
        return self._table[stream_index]


def repeated_units(unit_ids: Sequence[str]) -> str | None:
    """What is wrong with ids that name more than one unit; None if each names one.

    Two probes that both count from 0 would be decoded, or recorded, as one: whoever reads units
    (a live stream, a recording, a file) refuses them at first sight, with these words.
    """
    repeated = [unit_id for unit_id, n in Counter(unit_ids).items() if n > 1]
    if not repeated:
        return None
    listed = ", ".join(map(repr, repeated[:3])) + (", …" if len(repeated) > 3 else "")
    return (
        f"{len(repeated)} unit ids name more than one unit ({listed}); expected each once. "
        "Give the units of each probe ids of their own, such as `probe1/7`"
    )
