"""How long the server waits for its daemon, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds. The defaults are for a rig; tests with a scripted daemon use shorter ones."""

    look_every_s: float = 0.02  # whether the process lives
    beat_every_s: float = 0.25  # whether it answers
    answer_s: float = 1.5  # the longest tick is 1 s, and a command waits for its end
    order_s: float = 3.0  # the same for an order, which a daemon that is starting may still take
    fresh_s: float = 2.0  # an answer older than this says nothing of now
    hung_after_s: float = 5.0  # without an answer, once it has answered
    start_s: float = 60.0  # until the first answer: a GPU or a cold disk takes its time
    adopt_s: float = 0.5  # for a daemon of the server before
    load_s: float = 60.0  # for a decoder to be opened beside the active one
    good_after_s: float = 5.0  # a decoder that ran so long doesn't kill its daemon
    back_off_s: float = 0.25  # first wait after a daemon that died young; doubled each time
    longest_back_off_s: float = 30.0
    stop_s: float = 5.0  # for a daemon that was told to stop
    silent_s: float = 90.0  # for what a process may say nothing, besides the work it was given
