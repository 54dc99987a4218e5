"""The next decoder: opened, proven and warmed beside the one in use, then put in its place.

A new graph is proven in a process of its own first (`decoder.runtimes.proof`), so that one that
hangs or crashes can't end the daemon. If only the unit tables are new, the graph is shared, and it
takes milliseconds. Either way the stream's last spikes must decode to a velocity here too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import open_bundle
from decoder.errors import SettingsError, VolitionError
from decoder.runtimes.base import Runtime
from decoder.runtimes.opening import open_runtime
from decoder.runtimes.proof import Spikes, prove, prove_apart
from streaming.units import UNKNOWN, UnitMatch

log = logging.getLogger("volition.decode")


@dataclass(frozen=True, kw_only=True)
class StreamSpikes:
    """Spikes by the stream's unit numbers, (n_spikes,) each, and the ids that these mean."""

    times: Floats
    stream_units: Ints
    unit_ids: Sequence[str]

    def for_units(self, bundle_units: Sequence[str]) -> Spikes:
        """Those of a bundle's units."""
        unit_index = UnitMatch(self.unit_ids, bundle_units)(self.stream_units)
        known = unit_index != UNKNOWN
        return Spikes(times=self.times[known], unit_index=unit_index[known])


class Loader:
    """Opens one candidate at a time.

    tick_s: seconds between ticks; a decoder that needs them closer is refused.
    """

    def __init__(self, *, tick_s: float) -> None:
        self.candidate: Runtime | None = None
        self.problem: str | None = None
        self._tick_s = tick_s
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def load(
        self, path: Path, current: Runtime, *, epoch: float, recent: StreamSpikes | None = None
    ) -> None:
        """Begin; `candidate` or `problem` says how it went once it isn't `busy`.

        recent: the stream's last spikes, by which the decoder is proven.
        """
        self.candidate = self.problem = None
        self._thread = threading.Thread(
            target=self._load, args=(path, current, epoch, recent), name="decoder-loader",
            daemon=True,
        )  # fmt: skip
        self._thread.start()

    def drop(self) -> None:
        """Forget the candidate."""
        self.candidate = self.problem = None

    def _load(
        self, path: Path, current: Runtime, epoch: float, recent: StreamSpikes | None
    ) -> None:
        try:
            bundle = open_bundle(path)
            spikes = recent.for_units(bundle.manifest.unit_ids) if recent is not None else None
            if not current.same_graph(bundle):
                prove_apart(bundle, current.settings, spikes)
            runtime = open_runtime(
                bundle, epoch=epoch, settings=current.settings, graph_from=current
            )
            check_tick(runtime, self._tick_s)
            prove(runtime, epoch=epoch, recent=spikes)
        except VolitionError as error:
            self.problem = str(error)
        except Exception as error:  # the daemon goes on whatever a bundle does
            log.exception("loading %s", path)
            self.problem = f"{path} can't be loaded ({error!r})"
        else:
            self.candidate = runtime


def check_tick(runtime: Runtime, tick_s: float) -> None:
    """Raise SettingsError where a decoder needs decodes closer than every `tick_s`."""
    if tick_s >= runtime.window_s:
        raise SettingsError(
            f"--tick-ms {1e3 * tick_s:g}: {runtime.bundle.path.name} needs a decode at least every "
            f"{runtime.window_s:g} s; choose a shorter tick"
        )
