"""Orders given over REST and their answers, compared with the daemon's state afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pylsl import local_clock

from decoder.errors import VolitionError

Does = dict[str, Any]  # decoder, paused, gain


class Orders:
    """Orders to one server, one after another.

    An order that was confirmed must hold. One that was refused or not answered may hold or not. So
    `allowed` has a list for each subject: the last accepted value, and those in doubt since then.
    """

    def __init__(self) -> None:
        self.allowed: dict[str, list[Any]] = {}
        self.n_accepted = 0
        self.paused: list[tuple[float, float]] = []  # from an accepted pause to the next resume

    def give(self, subject: str, value: Any, call: Callable[[], Any]) -> bool:
        """Give an order and record the answer; returns whether it was accepted."""
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
        """Give an order in a new thread."""
        thread = threading.Thread(target=self.give, args=(subject, value, call), daemon=True)
        thread.start()
        return thread

    def lost(self, does: Does) -> list[str]:
        """The values of the daemon's state that no order allows."""
        return [
            f"{subject} is {does[subject]!r}; accepted or in doubt: {values}"
            for subject, values in self.allowed.items()
            if does[subject] not in values
        ]
