"""Units for neural-data-simulator's encoder: velocity in m/s, firing rates in Hz.

    encoder -o encoder.model=examples/nds/units.py encoder.output.n_channels=96 …

A plug-in of its interface, for when its sample data can't be downloaded. Cosine tuning to
direction and speed (Moran & Schwartz 1999), the same units in each run. It runs in NDS's
interpreter and knows nothing of Volition.
"""

import numpy as np
from neural_data_simulator.core.samples import Samples

N_UNITS = 96
SEED = 1


class TunedUnits:
    """Rates of cosine-tuned units."""

    def __init__(self, n_units: int = N_UNITS, seed: int = SEED) -> None:
        random = np.random.default_rng(seed)
        preferred = random.uniform(0, 2 * np.pi, n_units)
        depth_hz_per_m_s = random.gamma(2.0, 60.0, n_units)  # at 0.1 m/s 12 Hz in the mean
        self._baseline_hz = random.gamma(2.0, 6.0, n_units)
        self._direction = depth_hz_per_m_s * np.stack([np.cos(preferred), np.sin(preferred)])
        self._speed = 0.3 * depth_hz_per_m_s * random.normal(size=n_units)

    def encode(self, data: Samples) -> Samples:
        """data: (n_samples, 2) m/s. Returns (n_samples, n_units) Hz."""
        speed = np.linalg.norm(data.data, axis=1, keepdims=True)
        rates = self._baseline_hz + data.data @ self._direction + speed * self._speed
        return Samples(timestamps=data.timestamps, data=np.clip(rates, 0, None))


def create_model() -> TunedUnits:
    """What the encoder asks a plug-in for."""
    return TunedUnits()
