"""`volition rig`: a complete closed loop on this machine, each part a process of its own.

    participant --LSL--> daemon --ZeroMQ--> task --LSL--> participant
                           ^ REST: calibrate, from the task's kinematics

From the shipped decoder: calibrate (observation), closed loop, drift, closed loop, recalibrate,
closed loop; the score of each. Only the participant is simulated.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakSet

import msgspec

from clients.harness.daemon import BUNDLES
from clients.harness.server import SHIPPED, Server
from clients.participant.drift import Drift
from clients.rig.score import BlockScore, score_trials
from clients.task.trial import Trial, read_trials
from clients.task.workspace import Block, Mode
from decoder.errors import SettingsError, TrainingError
from server.schemas import Calibration, CalibrationRequest, FiltersPatch, Labels, Method, Promote
from streaming.wire.children import Child

READY_S = 30.0
MORE_S = 120.0  # length of an observation block beyond the collected seconds, for the learning
LONGEST_TRIAL = 3.0  # limits per trial, with the way back to the centre
CLOSED_LOOP_GAIN = 0.8  # for a decoder that learned from closed loop after a drift (docs/RIG.md)
DRIFT = Drift(replaced=0.5, turned_deg=60.0)
Made = TypeVar("Made")
PHASES = ("calibrated", "drifted", "recalibrated")
_children: WeakSet[Child] = WeakSet()  # of the running loops; a loop ends without them


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of one run.

    seed: seed of the participant's day and the order of targets.
    method: method of both calibrations. seconds: length of each.
    allowed_s: seconds of learning in each; None: as the decoder's family needs.
    trials: trials per closed-loop block.
    labels: labels of the recalibration. `kinematics` collects an observation block; the others
        learn from closed loop with the decoder after the drift.
    tick_ms: time between decodes. delay_ms: delay of the participant's screen.
    gain: gain of the output filters. A gain of 0.5 is easier to steer than a gain of 1
        (docs/RIG.md): it halves the noise, and the participant compensates by intending faster
        movements.
    """

    folder: Path
    seed: int = 1
    preset: str = "stream"
    method: Method = "units"  # `full` scores higher offline, but learns from reaches only
    task: str = "center-out"
    trials: int = 64
    seconds: float = 40.0
    allowed_s: float | None = None
    labels: Labels = "kinematics"
    gain: float = 0.4
    drift: Drift = DRIFT
    tick_ms: float = 10.0
    delay_ms: float = 150.0
    units: int = 96

    def __post_init__(self) -> None:
        if self.preset not in SHIPPED:
            raise SettingsError(f"preset {self.preset!r}; expected {' or '.join(SHIPPED)}")
        self.drift.check(self.units)


@dataclass
class LoopResult:
    """The results of a run. scores: one score per phase in `PHASES`."""

    settings: LoopSettings
    scores: dict[str, BlockScore] = field(default_factory=dict)
    calibrations: list[Calibration] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The results as a dictionary, for scripts."""
        return {
            "seed": self.settings.seed,
            "preset": self.settings.preset,
            "method": self.settings.method,
            "labels": self.settings.labels,
            "gain": self.settings.gain,
            "phases": {phase: score.as_dict() for phase, score in self.scores.items()},
            "calibrations": [c.model_dump(mode="json") for c in self.calibrations],
        }


class Loop:
    """A running loop: participant, server with its daemon, and task."""

    def __init__(
        self, settings: LoopSettings, participant: Child, server: Server, task: Child, prefix: str
    ) -> None:
        self.settings, self.prefix, self.server = settings, prefix, server
        self.participant, self.task = participant, task

    def calibrate(
        self,
        labels: Labels = "kinematics",
        *,
        mode: Mode = "observation",
        promote: Promote = "auto",
    ) -> Calibration:
        """Calibrate while a block is played, and swap. Raises TrainingError if it fails."""
        self.begin(mode, f"calibrate-{mode}", trials=None, seconds=self.settings.seconds + MORE_S)
        calibration = self.learn(labels=labels, method=self.settings.method, promote=promote)
        self.end()
        return calibration

    def learn(
        self, *, labels: Labels = "kinematics", method: Method, promote: Promote,
        data: str | None = None,
    ) -> Calibration:  # fmt: skip
        """Run one calibration by REST, on the current block or on the data of an earlier one.

        Raises TrainingError if it makes no decoder, or one that should be promoted and isn't.
        """
        request = CalibrationRequest(
            seconds=self.settings.seconds, method=method, labels=labels, promote=promote, data=data,
            allowed_s=self.settings.allowed_s, kinematics=f"{self.prefix}-kinematics",
            markers=f"{self.prefix}-markers",
        )  # fmt: skip
        with self.server.client() as client:
            *_, calibration = client.calibrate(request)
        if calibration.candidate is None or (promote == "auto" and calibration.state != "promoted"):
            why = calibration.problem.detail if calibration.problem else calibration.verdict
            raise TrainingError(f"calibration {calibration.state}: {why}")
        return calibration

    def use(self, calibration: Calibration) -> None:
        """Activate the decoder of a calibration."""
        assert calibration.candidate is not None
        with self.server.client() as client:
            client.activate(calibration.candidate)

    def set_gain(self, gain: float) -> None:
        """Set the gain of the daemon's output filters."""
        with self.server.client() as client:
            client.set_filters(FiltersPatch(gain=gain))

    def quicken(self) -> None:
        """Raise the gain of a decoder that learned from slow movements in closed loop."""
        self.set_gain(CLOSED_LOOP_GAIN)

    def steer(self, name: str, **block: Any) -> None:
        """Play a closed-loop block. block: fields of `Block` that differ from the settings."""
        given = {"trials": self.settings.trials, "limit_s": Block.limit_s, **block}
        self.begin("closed", name, **given)
        trials = given["trials"] or self.settings.trials
        self.task.wait_for("ended", trials * LONGEST_TRIAL * given["limit_s"])

    def drift(self) -> None:
        """Change the units to those of another day."""
        self.participant.send(drift=msgspec.to_builtins(self.settings.drift))
        self.participant.wait_for("drifted", READY_S + self.settings.drift.ramp_s)

    def begin(self, mode: Mode, name: str, **block: object) -> None:
        """Start a block; arguments as in `steer`."""
        given = {"task": self.settings.task, "seed": self.settings.seed, **block}
        self.task.send(block={"mode": mode, "name": name, **given})
        self.task.wait_for("begun", READY_S)

    def end(self) -> None:
        """End the current block."""
        self.task.send(end=True)
        self.task.wait_for("ended", READY_S)


@contextmanager
def running_loop(settings: LoopSettings, **variables: str) -> Iterator[Loop]:
    """Start all processes in the order in which they need each other; end them on exit."""
    prefix = f"volition-rig-{os.getpid()}-{threading.get_ident()}-{settings.seed}"
    logs, folder = settings.folder / "logs", settings.folder
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as ends:
        participant = start_participant(settings, prefix)
        ends.callback(participant.stop)
        bundle = BUNDLES / f"{SHIPPED[settings.preset]}.bundle"
        server = Server(
            bundle, folder / "home", f"{prefix}-spikes",
            VOLITION_TICK_MS=str(settings.tick_ms), **variables,
        )  # fmt: skip
        ends.enter_context(server)
        task = _child(
            "task", settings.task, "--lines", "--prefix", prefix,
            "--address", server.address, "--log", str(folder / "trials.jsonl"),
            log=logs / "task.log",
        )  # fmt: skip
        ends.callback(task.stop)
        task.wait_for("ready", READY_S)
        for _ in ("kinematics", "markers"):
            participant.wait_for("sees", READY_S)
        loop = Loop(settings, participant, server, task, prefix)
        loop.set_gain(settings.gain)
        yield loop


def start_participant(settings: LoopSettings, prefix: str) -> Child:
    """Start a participant and wait for its spike stream."""
    participant = _child(
        "participant", "--prefix", prefix, "--seed", str(settings.seed),
        "--units", str(settings.units), "--delay-ms", str(settings.delay_ms),
        log=settings.folder / "logs" / "participant.log",
    )  # fmt: skip
    participant.wait_for("ready", READY_S)
    return participant


def _child(*arguments: str, log: Path) -> Child:
    child = Child("clients", *arguments, log=log)
    _children.add(child)
    return child


def side_by_side(
    run: Callable[[LoopSettings], Made], loops: Sequence[LoopSettings], jobs: int
) -> Iterator[Made]:
    """The results of `run`, in order, `jobs` in parallel. After an error no further loop starts.

    Ctrl-C or SIGTERM ends all running loops. Call it from the main thread.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        yield from pool.map(run, loops)
    except (KeyboardInterrupt, GeneratorExit):
        pool.shutdown(wait=False, cancel_futures=True)
        for child in list(_children):
            child.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def run_loop(
    settings: LoopSettings, say: Callable[[str], None] = lambda what: None, **variables: str
) -> LoopResult:
    """Calibrate, steer, drift, steer, recalibrate, steer. say: called with each step."""
    result = LoopResult(settings=settings)
    with running_loop(settings, **variables) as loop:
        say(f"seed {settings.seed}: dashboard at {loop.server.url}")
        say(f"seed {settings.seed}: calibrating on {settings.seconds:g} s of observation")
        result.calibrations.append(loop.calibrate())
        for phase in PHASES:
            if phase == "drifted":
                loop.drift()
            if phase == "recalibrated":
                say(f"seed {settings.seed}: recalibrating")
                mode: Mode = "observation" if settings.labels == "kinematics" else "closed"
                result.calibrations.append(loop.calibrate(settings.labels, mode=mode))
                if mode == "closed":
                    loop.quicken()
            say(f"seed {settings.seed}: {phase}, {settings.trials} trials in closed loop")
            loop.steer(phase)
    result.trials = read_trials(settings.folder / "trials.jsonl")
    result.scores = {score.block: score for score in score_trials(result.trials)}
    result.scores = {phase: result.scores[phase] for phase in PHASES}
    return result
