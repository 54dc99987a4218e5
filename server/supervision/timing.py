"""The timeouts and intervals of the supervisor, in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Timing:
    """All values are in seconds. The defaults suit a rig; scripted tests use shorter ones."""

    look_every_s: float = 0.02  # interval of liveness checks
    beat_every_s: float = 0.25  # interval of status requests
    answer_s: float = 1.5  # timeout of a status request; the longest tick is 1 s
    order_s: float = 3.0  # timeout of an order; a starting daemon may still accept one
    fresh_s: float = 2.0  # age at which an answer is outdated
    hung_after_s: float = 5.0  # silence after which a daemon that has answered counts as hung
    start_s: float = 60.0  # until the first answer; a GPU or a cold disk is slow
    adopt_s: float = 0.5  # timeout for the daemon of an earlier server
    load_s: float = 60.0  # to open a decoder alongside the active one
    good_after_s: float = 5.0  # decoding for this long proves a decoder
    back_off_s: float = 0.25  # first wait after an early death; doubled each time
    longest_back_off_s: float = 30.0
    stop_s: float = 5.0  # for a daemon to stop when asked to
    silent_s: float = 90.0  # silence of a child process, in addition to the duration of its work
