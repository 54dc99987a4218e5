"""Trials and their targets from markers, as sent by tasks and `volition replay`; written notes.

| marker | meaning |
|---|---|
| `trial_start i`, `trial_end i` | start and end of trial `i`; both may omit `i` |
| `target i X Y` | position of its target, metres |

Other markers are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from decoder.arrays import Floats
from streaming.sessions.session import BlockNote, Trials

NEAR_S = 3600.0  # a written note may be this far from the kinematics
MAX_NOTE = 1000  # characters
EDGE_S = 0.1  # a trial may begin this long before the first sample
_EDGE = re.compile(r"trial_(start|end)\b\s*(\S*)")
_TARGET = re.compile(r"target (\S+) (\S+) (\S+)")


def trials_of(
    markers: Iterable[tuple[float, str]],
    times: Floats,
    targets: Floats,
    *,
    metres: float = 1.0,
    notes: list[str] | None = None,
) -> Trials | None:
    """The trials that begin during the kinematics; None if there are none.

    times: (n,) times of the kinematics, s, ascending. targets: (n, 2), m; NaN while no target is
    shown. A trial's target is the last one shown during it, unless a marker gives its position.
    metres: metres per unit of the markers' targets. notes: gets a note on trials and targets that
    were left out.
    """
    notes = [] if notes is None else notes
    begun: dict[str, float] = {}
    placed: dict[str, tuple[float, float]] = {}
    intervals: list[tuple[float, float]] = []
    at_end: list[Floats] = []
    outside: list[float] = []
    n_open = n_unread = 0
    for time, text in sorted(markers, key=lambda marker: marker[0]):
        if match := _TARGET.fullmatch(text):
            at = (_number(match[2]) * metres, _number(match[3]) * metres)
            placed[match[1]] = at
            n_unread += not np.isfinite(at).all()
        elif match := _EDGE.match(text):
            edge, number = match[1], match[2]
            if edge == "start":
                n_open += number in begun
                begun[number] = time
                continue
            start = begun.pop(number if number in begun or number else _latest(begun), None)
            target = placed.pop(number, None)
            if start is None or not start < time:
                n_open += bool(
                    intervals or outside or begun
                )  # if not, it began before the recorder
                continue
            if not times[0] - EDGE_S <= start:
                outside.append(start)
                continue
            intervals.append((start, time))
            shown = _last_shown(times, targets, start, time)
            at_end.append(shown if target is None else np.array(target))
        else:
            n_unread += text.startswith("target ")
    n_open += max(0, len(begun) - 1)  # one may still run when the recorder stops
    _note_left_out(n_open, outside, n_unread, float(times[0]), notes)
    if not intervals:
        return None
    has_targets = bool(np.isfinite(at_end).all(axis=1).any())
    return Trials(
        intervals=np.array(intervals), target_pos=np.array(at_end) if has_targets else None
    )


def block_notes_of(
    written: Iterable[tuple[float, str]], times: Floats, notes: list[str]
) -> tuple[BlockNote, ...]:
    """What people wrote within `NEAR_S` of the kinematics: times (n,), s, ascending.

    written: times and texts. notes: gets a note on those that were left out.
    """
    written = sorted(written)
    near = [(at, text) for at, text in written if times[0] - NEAR_S <= at <= times[-1] + NEAR_S]
    if n_far := len(written) - len(near):
        notes.append(f"{n_far} written notes are from another time and were left out")
    return tuple(BlockNote(time_s=at, text=text[:MAX_NOTE]) for at, text in near)


def _note_left_out(
    n_open: int, outside: list[float], n_unread: int, begin_s: float, notes: list[str]
) -> None:
    if n_open:
        notes.append(f"{n_open} trials without a start and an end were left out")
    if outside:
        notes.append(
            f"{len(outside)} trials begin before the kinematics (at {min(outside):.1f} s, before "
            f"{begin_s:.1f} s) and were left out: are the markers on another clock?"
        )
    if n_unread:
        notes.append(f"{n_unread} target markers can't be read; expected `target I X Y`, metres")


def _latest(begun: dict[str, float]) -> str:
    return max(begun, key=lambda number: begun[number], default="")


def _last_shown(times: Floats, targets: Floats, start: float, end: float) -> Floats:
    first, last = np.searchsorted(times, (start, end))
    return np.asarray(targets[last - 1]) if last > first else np.full(2, np.nan)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
