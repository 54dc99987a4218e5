"""The closed loop in simulated time: participant, decoder and task, stepped without sockets.

It is much faster than `volition rig`, and repeats exactly. A decoded velocity moves the cursor at
once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clients.participant.screen import Seen
from clients.participant.simulated import Participant, ParticipantSettings
from clients.task.cursor import Cursor
from clients.task.play import BlockPlay
from clients.task.trial import Trial
from clients.task.workspace import Block
from decoder.arrays import Floats
from decoder.runtimes.base import Runtime
from streaming.sessions.session import Session, Trials

TICK_S = 0.01
SETTLE_S = 1.0  # of rest before a block, in which the decoder's window fills
SLACK_S = 1e-6


class Steered(NamedTuple):
    """A block that was played: its trials, and what a collector would have recorded of it."""

    trials: list[Trial]
    session: Session


class SteppedLoop:
    """One participant and a cursor. A runtime's units are the participant's, in order."""

    def __init__(self, settings: ParticipantSettings) -> None:
        self.participant = Participant(settings, 0.0)
        self.cursor = Cursor()
        self._n_ticks = self._n_trials = 0

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self._n_ticks * TICK_S

    def play(
        self, block: Block, name: str, runtime: Runtime | None = None, *, gain: float = 1.0
    ) -> Steered:
        """Play a block, moved by a runtime's output times `gain`, unless it is an observation.

        name: the id of the session. Its velocity is that before the gain, as a collector stores it.
        """
        play = BlockPlay(block, self.cursor, number=self._n_trials)
        begins = self.now
        spikes, samples = [], []
        markers = [(self.now, f"block {block.label}")]
        while not play.done:
            if play.target is None and self.now >= begins + SETTLE_S - SLACK_S:
                play.begin(self.now)
            target = play.target.position if play.target else (np.nan, np.nan)
            values = np.array([[*self.cursor.position, *self.cursor.velocity, *target]])
            seen = Seen(times=np.array([self.now]), values=values, markers=markers)
            self._n_ticks += 1
            spikes.append(self.participant.step(self.now + SLACK_S, seen))
            decoded = self.cursor.velocity
            if runtime is not None:
                runtime.append(*spikes[-1])
                x, y = runtime.decode(self.now).tolist()
                decoded = x, y
                play.steer((gain * x, gain * y), TICK_S, self.now)
            if play.target is not None:
                play.move(self.now)
                play.judge(self.now)
            markers = list(play.markers)
            play.markers.clear()
            velocity = decoded if runtime is not None else self.cursor.velocity
            samples.append((self.now, *self.cursor.position, *velocity))
        self._n_trials = play.number
        return Steered(play.trials, self._recorded(name, begins, spikes, np.array(samples), play))

    def _recorded(
        self,
        name: str,
        begins: float,
        spikes: list[tuple[Floats, np.ndarray]],
        samples: Floats,
        play: BlockPlay,
    ) -> Session:
        domain = np.array([[begins + SETTLE_S, self.now]])
        none = np.empty((0, 2))
        settings = self.participant.settings
        return Session(
            session_id=name,
            subject_id=f"sim{settings.subject:02d}",
            unit_ids=self.participant.unit_ids,
            spike_times=np.concatenate([times for times, _ in spikes]),
            spike_units=np.concatenate([units for _, units in spikes]),
            cursor_times=samples[:, 0],
            cursor_pos=samples[:, 1:3],
            cursor_vel=samples[:, 3:5],
            domain=domain,
            train_domain=domain,
            valid_domain=none,
            test_domain=none,
            trials=Trials(
                intervals=np.array([(trial.on, trial.end) for trial in play.trials]),
                target_pos=np.array([trial.target for trial in play.trials]),
            ),
            source="simulated by volition",
            notes=(f"simulated: {play.block.label}, {len(play.trials)} trials",),
        )
