"""neural-data-simulator's centre-out task, with a scripted hand on its mouse.

    SDL_VIDEODRIVER=dummy MPLBACKEND=agg python examples/nds/hand.py --trials 24 -o …

Takes all options of NDS's `center_out_reach`. The task, its state machine and its metrics are
NDS's; only who moves the mouse is replaced: somebody who sees the decoded cursor late and pushes
toward the target. It runs in NDS's interpreter and knows nothing of Volition. At the end, a line of
JSON: how the reaches outward went, and the metrics as NDS prints them.
"""

import argparse
import json
import re
import sys
import time
from collections import deque

import matplotlib.pyplot as plt
import numpy as np
from neural_data_simulator.tasks import run_center_out_reach as task
from neural_data_simulator.tasks.center_out_reach.input_events import InputEvent, InputHandler
from neural_data_simulator.tasks.center_out_reach.metrics import MetricsCollector
from neural_data_simulator.tasks.center_out_reach.task_state import (
    InTarget,
    Reaching,
    TaskState,
    WaitingForCue,
)
from neural_data_simulator.tasks.center_out_reach.task_window import TaskWindow

RATE_HZ = 50.0  # NDS's default `sampling_rate`
SEEN_LATE = 7  # samples, 140 ms
APPROACH_HZ = 2.5  # wanted speed over distance
TOP_SPEED = 1.5  # distances from centre to target a second
INERTIA = 0.3  # share of the wanted change that a sample makes
TREMBLE = 0.15  # of the speed

given = argparse.Namespace()  # trials, seed, picture
reaches = []  # (acquired, seconds) of each reach outward
window = None  # NDS's, once it is there


class SeenWindow(TaskWindow):
    """NDS's window; begins without a click, and can be looked at."""

    def __init__(self, *args, **kwargs):
        global window
        super().__init__(*args, **kwargs)
        window, self.ready = self, False
        self.start_task()

    def set_target_ready(self, ready):
        super().set_target_ready(ready)
        self.ready = ready


class Hand(InputHandler):
    """Moves NDS's mouse, in whole pixels, until enough reaches were made."""

    def __init__(self):
        super().__init__()
        self._random = np.random.default_rng(given.seed)
        self._seen, self._moved = deque(maxlen=SEEN_LATE + 1), deque(maxlen=SEEN_LATE)
        self._velocity, self._rest = np.zeros(2), np.zeros(2)

    def get_cursor_relative_position(self):
        self._velocity += INERTIA * (self._wanted() - self._velocity)
        tremble = TREMBLE * np.linalg.norm(self._velocity) * self._random.normal(size=2)
        exact = self._velocity + tremble + self._rest
        moved = np.round(exact)
        self._rest = exact - moved
        self._moved.append(moved)
        return int(moved[0]), int(moved[1])

    def _wanted(self):
        """Pixels a sample, from where the cursor is believed to be by now."""
        self._seen.append(np.array(window.decoded_cursor.position, dtype=float))
        if not window.ready:
            return np.zeros(2)
        away = np.array(window.target.position) - (self._seen[0] + sum(self._moved))
        distance = np.linalg.norm(away)
        top = TOP_SPEED * window.params.radius_to_target
        return away / max(distance, 1e-9) * min(APPROACH_HZ * distance, top) / RATE_HZ

    def poll(self):
        super().poll()
        if len(reaches) >= given.trials:
            self.event_handlers[InputEvent.EXIT]()


class WatchedState(TaskState):
    """NDS's state machine; notes how each reach outward ended."""

    def advance(self):
        before = self.state_machine.current_state
        begun, outward = before.time_started_trial, not self.task_window.is_target_centered
        held = isinstance(before, InTarget) and (
            before.time_in_state > before.params.target_holding_time
        )
        super().advance()
        ended = isinstance(self.state_machine.current_state, WaitingForCue)
        if ended and outward and isinstance(before, (Reaching, InTarget)):
            reaches.append((held, time.time() - begun))


class PrintedMetrics(MetricsCollector):
    """NDS's metrics; the R² that it writes over its plots is printed too."""

    def plot_metrics(self, targets):
        super().plot_metrics(targets)
        titles = [axes.get_title() for axes in plt.figure("Velocities overview").axes]
        if given.picture:
            plt.figure("Trajectories overview").savefig(given.picture)
        report(nds_r2=[float(re.search(r"r2 = (-?[\d.]+)", title)[1]) for title in titles])


def report(**more):
    """A line of JSON."""
    acquired = [seconds for held, seconds in reaches if held]
    print(
        json.dumps({
            "reaches": len(reaches), "acquired": len(acquired),
            "median_s": float(np.median(acquired)) if acquired else None, **more,
        }),
        flush=True,
    )  # fmt: skip


def main():
    """Take our options, leave NDS its own, and run its task."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture")
    _, sys.argv[1:] = parser.parse_known_args(namespace=given)
    np.random.seed(given.seed)  # noqa: NPY002, since NDS chooses targets with it
    task.InputHandler, task.TaskWindow, task.TaskState = Hand, SeenWindow, WatchedState
    task.MetricsCollector = PrintedMetrics
    task.run()
    if not plt.get_fignums():  # the hand's own cursor, which NDS doesn't score
        report()


if __name__ == "__main__":
    main()
