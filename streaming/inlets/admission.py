"""Decides which spikes reach the decoder: the policy for every kind of odd time stamp.

| time stamp                                    | policy                | counter          |
|-----------------------------------------------|-----------------------|------------------|
| in the window, older than the last tick       | taken                 | `late`           |
| in the window, older than the newest so far   | taken and sorted      | `out_of_order`   |
| same unit and time as another of its tick     | taken                 | `duplicate`      |
| ahead of now, by at most `FUTURE_S` (0.1 s)   | kept for its window   | -                |
| ahead of now by more                          | left out              | `future`         |
| older than the window                         | left out              | `too_old`        |
| more than `STEP_BACK_S` before the previous   | judged by its own age | `backward_steps` |
| zero, or not a number                         | left out              | `no_time`        |
| any, of a unit that is not in the bundle      | left out              | `unknown_unit`   |
| any, of a unit that is excluded               | left out              | `excluded`       |

The end of a bin (`SpikeCounts`) is judged like a spike at that time.

Attention doesn't depend on the order of spikes, so any order inside the window is accepted.
Duplicates are accepted: a source that stamps a whole chunk with one time sends real spikes that
look like duplicates.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from decoder.arrays import Bools, Floats, Ints
from decoder.runtimes.base import FUTURE_S
from streaming.units import EXCLUDED, UNKNOWN

STEP_BACK_S = 0.1


@dataclass
class Counters:
    """Number of events since the start, by outcome."""

    taken: int = 0
    late: int = 0
    out_of_order: int = 0
    duplicate: int = 0
    future: int = 0
    too_old: int = 0
    backward_steps: int = 0
    no_time: int = 0
    unknown_unit: int = 0
    excluded: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class Admission:
    """Judges events tick by tick.

    max_age_s: age at which an event is too old, which is the decoder's window.
    newest: time of the newest admitted spike, s. left_out: number of events left out since the
        last admitted one, by reason.
    """

    def __init__(self, max_age_s: float) -> None:
        self.max_age_s = max_age_s
        self.counters = Counters()
        self.newest: float | None = None
        self.left_out: dict[str, int] = {}
        self._previous_time = -np.inf
        self._newest_stamp = -np.inf
        self._last_tick = -np.inf

    def forget(self) -> None:
        """Forget the stream, as after its loss. The counters go on."""
        self.newest = None
        self.left_out = {}
        self._previous_time = self._newest_stamp = -np.inf

    def admit(
        self, times: Floats, unit_index: Ints, *, window_end: float, now: float
    ) -> tuple[Floats, Ints]:
        """Returns the times and unit indices of the admitted events, in order of arrival.

        times: (n_events,) float64, s, LSL clock of this host.
        unit_index: (n_events,) int64, `UNKNOWN` for units that are not in the bundle, `EXCLUDED`
            for those that are excluded.
        window_end: end of this tick's window; events older than the window are left out.
        now: when the events were drained; events stamped later are in the future.
        """
        if len(times):
            known = unit_index >= 0
            timed, future, too_old = _by_time(times, window_end - self.max_age_s, now)
            take = known & timed & ~future & ~too_old
            if not known.all():
                self._leave_out("unknown_unit", unit_index == UNKNOWN)
                self._leave_out("excluded", unit_index == EXCLUDED)
            self._leave_out("no_time", known & ~timed)
            self._leave_out("future", known & future)
            self._leave_out("too_old", known & too_old)
            self._count_backward_steps(times[timed & ~future])
            times, unit_index = times[take], unit_index[take]
            self._count_oddities(times, unit_index)
            self._note_newest(times, now)
        self._last_tick = window_end
        return times, unit_index

    def admit_bins(self, ends: Floats, *, window_end: float, now: float) -> Floats:
        """Returns the ends of bins (n_bins,) at which a spike would be admitted: signs of life.

        They are not in `counters`, which count spikes.
        """
        timed, future, too_old = _by_time(ends, window_end - self.max_age_s, now)
        taken = timed & ~future & ~too_old
        if taken.any():
            self.left_out.clear()
        for name, out in (("no_time", ~timed), ("future", future), ("too_old", too_old)):
            self._note_left_out(name, int(out.sum()))
        return ends[taken]

    def _leave_out(self, name: str, out: Bools) -> None:
        if n_out := int(out.sum()):
            setattr(self.counters, name, getattr(self.counters, name) + n_out)
            self._note_left_out(name, n_out)

    def _note_left_out(self, name: str, n_out: int) -> None:
        if n_out:
            self.left_out[name] = self.left_out.get(name, 0) + n_out

    def _count_backward_steps(self, times: Floats) -> None:
        if len(times) == 0:
            return
        steps = np.diff(times, prepend=self._previous_time)
        self.counters.backward_steps += int((steps < -STEP_BACK_S).sum())
        self._previous_time = float(times[-1])

    def _count_oddities(self, times: Floats, unit_index: Ints) -> None:
        if len(times) == 0:
            return
        count = self.counters
        count.taken += len(times)
        count.late += int((times < self._last_tick).sum())
        seen_before = np.empty_like(times)  # the newest time before each event
        seen_before[0] = self._newest_stamp
        seen_before[1:] = np.maximum(np.maximum.accumulate(times[:-1]), seen_before[0])
        count.out_of_order += int((times < seen_before).sum())
        if (np.diff(np.sort(times)) == 0).any():
            pairs = np.stack([times, unit_index.astype(np.float64)], axis=1)
            count.duplicate += len(pairs) - len(np.unique(pairs, axis=0))
        self._newest_stamp = float(max(seen_before[-1], times[-1]))

    def _note_newest(self, times: Floats, now: float) -> None:
        """A spike stamped in the future counts as of its arrival, so that it can't hide silence."""
        if len(times):
            self.left_out.clear()
            newest = min(float(times.max()), now)
            self.newest = newest if self.newest is None else max(self.newest, newest)


def _by_time(times: Floats, oldest: float, now: float) -> tuple[Bools, Bools, Bools]:
    """Masks (n,): has a time; has one in the future; has one older than `oldest`."""
    timed = np.isfinite(times) & (times != 0.0)
    return timed, timed & (times > now + FUTURE_S), timed & (times < oldest)
