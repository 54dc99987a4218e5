"""Token rows of POYO: the key and value of a spike's unit, rotated by the spike's time.

The key and value of a spike depend only on its unit. Time enters through the rotation alone
(RoFormer, Su et al. 2021; POYO rotates the value too). So each unit has one row, computed when the
bundle is made, and each spike's row is computed once, when it arrives.

Layout of a head: `[real | imaginary | unrotated]`, the n_rotary pairs first, so that a rotation is
two multiply-adds on contiguous halves. Angles are computed in float64, relative to an epoch: with a
period of 0.1 ms, float32 clock times would be all noise.
"""

from __future__ import annotations

import numpy as np

from decoder.arrays import Float32s, Floats, Ints


def phases(seconds: Floats, omega: Floats) -> tuple[Float32s, Float32s]:
    """Cosine and sine (n, n_rotary) float32 at `seconds` (n,) float64 since the epoch."""
    angles = np.multiply.outer(seconds, omega)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def embed(unit_rows: Float32s, unit_index: Ints, seconds: Floats, omega: Floats) -> Float32s:
    """The rotated keys and values of spikes, (n_spikes, 2 * cross_heads, dim_head) float32.

    unit_rows: (n_units, 2 * cross_heads, dim_head), unrotated; see `AttentionTables.tokens`.
    unit_index: (n_spikes,) rows of `unit_rows`.
    seconds: (n_spikes,) float64, spike times since the epoch.
    """
    rows = unit_rows[unit_index]
    cos, sin = phases(seconds, omega)
    cos, sin = cos[:, None], sin[:, None]
    n_rotary = omega.shape[0]
    real, imag = rows[..., :n_rotary], rows[..., n_rotary : 2 * n_rotary]
    turned = real * sin
    real *= cos
    real -= imag * sin
    imag *= cos
    imag += turned
    return rows
