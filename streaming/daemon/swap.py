"""Loads the next decoder in a thread, while the current one goes on decoding.

A bundle with a new graph is first tested in a process of its own (`decoder.runtimes.proof`): a
graph that hangs or crashes there can't end the daemon. If only the unit tables are new, the graph
is shared and loading takes milliseconds. In both cases the decoder must then decode the stream's
last spikes to a velocity in this process.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from decoder.arrays import Floats, Ints
from decoder.bundles.bundle import open_bundle
from decoder.errors import SettingsError, VolitionError
from decoder.runtimes.base import Runtime
from decoder.runtimes.opening import open_runtime
from decoder.runtimes.proof import Spikes, prove, prove_apart
from streaming.units import NONE, UnitMatch

log = logging.getLogger("volition.decode")


@dataclass(frozen=True, kw_only=True)
class StreamSpikes:
    """Spikes with the stream's unit indices, (n_spikes,) each, and the stream's unit ids.

    excluded: ids of units whose spikes are left out.
    """

    times: Floats
    stream_units: Ints
    unit_ids: Sequence[str]
    excluded: Set[str] = NONE

    def for_units(self, bundle_units: Sequence[str]) -> Spikes:
        """The spikes of a bundle's units."""
        unit_index = UnitMatch(self.unit_ids, bundle_units, self.excluded)(self.stream_units)
        used = unit_index >= 0
        return Spikes(times=self.times[used], unit_index=unit_index[used])


class Loader:
    """Opens one candidate at a time.

    candidate: the decoder, once it is ready. problem: why the last one could not be opened.
    tick_s: seconds between ticks; a decoder that needs shorter ticks is refused.
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
        """Start loading; `candidate` or `problem` is set once `busy` is false.

        recent: the stream's last spikes, used to test the decoder.
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
        except Exception as error:  # no bundle may end the daemon
            log.exception("loading %s", path)
            self.problem = f"{path} can't be loaded ({error!r})"
        else:
            self.candidate = runtime


def check_tick(runtime: Runtime, tick_s: float) -> None:
    """Raises SettingsError if a decoder needs shorter ticks than `tick_s`."""
    if tick_s >= runtime.window_s:
        raise SettingsError(
            f"--tick-ms {1e3 * tick_s:g}: {runtime.bundle.path.name} needs a decode at least every "
            f"{runtime.window_s:g} s; choose a shorter tick"
        )
