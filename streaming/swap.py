"""The next decoder: opened and warmed beside the one in use, then put in its place.

Opening takes a second or less in a thread; where only the unit tables are new, the graph is shared
and it takes milliseconds.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from decoder.bundle import open_bundle
from decoder.errors import SettingsError, VolitionError
from decoder.runtime import Runtime, open_runtime

log = logging.getLogger("volition.decode")


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

    def load(self, path: Path, current: Runtime, *, epoch: float) -> None:
        """Begin; `candidate` or `problem` says how it went once it isn't `busy`."""
        self.candidate = self.problem = None
        self._thread = threading.Thread(
            target=self._load, args=(path, current, epoch), name="decoder-loader", daemon=True
        )
        self._thread.start()

    def drop(self) -> None:
        """Forget the candidate."""
        self.candidate = self.problem = None

    def _load(self, path: Path, current: Runtime, epoch: float) -> None:
        try:
            runtime = open_runtime(
                open_bundle(path), epoch=epoch, settings=current.settings, like=current
            )
            check_tick(runtime, self._tick_s)
            runtime.warm_up()
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
