"""Decides when an unattended calibration is due. Knows no clock: every call passes the time.

Three things keep it from oscillating. An alarm must hold for `HOLD_S`. After a calibration there is
a rest, which doubles after each one that was not promoted. And it leaves a decoder that somebody
chose by hand alone for a while.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.unattended.bodies import Unattended

HOLD_S = 60.0  # an alarm must last this long
LONGEST_REST_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The state of the server at one moment.

    is_decoding: the daemon decodes, and is not paused. is_beyond: its distance is beyond the limit.
    is_busy: a calibration is running.
    """

    is_decoding: bool
    is_beyond: bool
    is_busy: bool


class Due:
    """When the next calibration is due. Times are in seconds, on any clock that never steps back.

    now_s: when these settings were made.
    rest_s: the next rest, s. rest_until_s: end of the present one.
    """

    def __init__(
        self,
        settings: Unattended,
        now_s: float,
        *,
        hold_s: float = HOLD_S,
        rest_s: float | None = None,
        rest_until_s: float = -math.inf,
    ) -> None:
        self._settings, self._hold_s = settings, hold_s
        self._shortest_rest_s = 60.0 * settings.rest_minutes
        self.rest_s = self._shortest_rest_s if rest_s is None else rest_s
        self.rest_until_s = rest_until_s
        self._hand_until_s = -math.inf
        self._beyond_since_s: float | None = None
        self._next_s = now_s + 60.0 * settings.every_minutes

    def by_hand(self, at_s: float) -> None:
        """Note that somebody has changed the decoder."""
        self._hand_until_s = max(self._hand_until_s, at_s + 60.0 * self._settings.by_hand_minutes)

    def ended(self, now_s: float, *, promoted: bool) -> None:
        """Note the end of an unattended calibration."""
        longest_s = max(LONGEST_REST_S, self._shortest_rest_s)
        self.rest_s = self._shortest_rest_s if promoted else min(2 * self.rest_s, longest_s)
        self.rest_until_s = now_s + self.rest_s
        self._next_s = now_s + 60.0 * self._settings.every_minutes
        self._beyond_since_s = None

    def why_not(self, now_s: float, seen: Seen) -> str:
        """Why no calibration starts now; empty if one is due. Call it at every look."""
        if not seen.is_beyond:
            self._beyond_since_s = None
        elif self._beyond_since_s is None:
            self._beyond_since_s = now_s
        when = self._settings.when
        if when == "off":
            return "it is off"
        if seen.is_busy:
            return "a calibration is running"
        if not seen.is_decoding:
            return "the daemon is paused or does not decode"
        if now_s < self._hand_until_s:
            return f"the decoder was changed by hand; {_in(self._hand_until_s - now_s)}"
        if now_s < self.rest_until_s:
            return f"it rests after the last calibration; {_in(self.rest_until_s - now_s)}"
        if when == "every":
            return "" if now_s >= self._next_s else f"the next is due {_in(self._next_s - now_s)}"
        if self._beyond_since_s is None:
            return "there is no alarm: the neurons are as usual, or it is too early to tell"
        left_s = self._beyond_since_s + self._hold_s - now_s
        return "" if left_s <= 0 else f"the neurons have changed; it starts {_in(left_s)}"

    def due_s(self) -> float | None:
        """When a calibration may start, s; None if it is off, or waits for an alarm."""
        if self._settings.when == "every":
            own_s = self._next_s
        elif self._settings.when == "alarm" and self._beyond_since_s is not None:
            own_s = self._beyond_since_s + self._hold_s
        else:
            return None
        return max(own_s, self._hand_until_s, self.rest_until_s)


def _in(seconds: float) -> str:
    return f"in {math.ceil(seconds)} s" if seconds < 100 else f"in {math.ceil(seconds / 60)} min"
