"""What REST was asked for and what it answered, compared with what the daemon does afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pylsl import local_clock

from decoder.errors import VolitionError

Does = dict[str, Any]  # decoder, paused, gain


class Orders:
    """Orders to one server, one after the other.

    An order that was answered with success must hold. One that was refused or not answered may
    hold or not. `allowed` is therefore a list for each subject: the last that was accepted, and
    those in doubt since.
    """

    def __init__(self) -> None:
        self.allowed: dict[str, list[Any]] = {}
        self.n_accepted = 0
        self.paused: list[tuple[float, float]] = []  # from an accepted pause to the next resume

    def give(self, subject: str, value: Any, call: Callable[[], Any]) -> bool:
        """Call, and remember the answer; whether it was accepted."""
        if subject == "paused" and value is None:
            self._resumes()
        doubt = self.allowed.setdefault(subject, [])
        try:
            call()
        except VolitionError:
            doubt.append(value)
            return False
        self.allowed[subject] = [value]
        self.n_accepted += 1
        if subject == "paused" and value is not None:
            self.paused.append((local_clock(), float("inf")))
        return True

    def _resumes(self) -> None:
        if self.paused:
            start, end = self.paused[-1]
            self.paused[-1] = (start, min(end, local_clock()))

    def later(self, subject: str, value: Any, call: Callable[[], Any]) -> threading.Thread:
        """The same in a thread that was started."""
        thread = threading.Thread(target=self.give, args=(subject, value, call), daemon=True)
        thread.start()
        return thread

    def lost(self, does: Does) -> list[str]:
        """What the daemon does that no order allows."""
        return [
            f"{subject} is {does[subject]!r}; accepted or in doubt: {values}"
            for subject, values in self.allowed.items()
            if does[subject] not in values
        ]
