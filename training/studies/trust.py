"""Tests the promotion gate with calibrations on faulty data.

    python -m training.studies.trust BUNDLE [SESSION …] --count 100 -o docs/trust.json

Each calibration has one fault or none. The days are recorded (SESSION; BUNDLE knows their units),
or simulated if none is given. The gate decides about each candidate as in the server
(`training.calibration.worker`). Candidate and active decoder are scored on the day's unseen test
domain: a promotion is harmful if the active decoder is better by more than `HARM`. In half of the
calibrations the active decoder is BUNDLE, adapted to a minute of the same day; in the other half it
is BUNDLE itself (for simulated days, adapted to 15 s).

Rows are written as they are finished; a second start continues with the missing ones. Training runs
for a number of steps, not seconds, so results don't depend on the machine's load.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from decoder.arrays import Floats
from decoder.bundles.bundle import Bundle, open_bundle
from decoder.errors import TrainingError
from decoder.files import write_text
from decoder.gate import Answer, Evidence, decide
from decoder.score import pooled_r2
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s, intersect, time_after
from streaming.sessions.session import Session, sorted_spikes
from training.baselines.linear import Kind
from training.calibration.adapt import Method
from training.calibration.candidate import Plan, prepare, train_candidate
from training.data.simulate import simulate
from training.evaluation.offline import decode_split

Fault = Literal["none", "shuffled", "other day", "idle", "silent", "shifted"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
HARM = 0.02  # loss of R² above which a promotion is harmful
SECONDS = (40.0, 60.0)
SHUFFLED_S = 1.0
REST_SHARE = 0.25  # the slowest share of the session's samples counts as rest
REST_S = 0.1
SHIFT_S = 0.3
STEPS = 20  # after 40 steps of `units`; the server's 6 s allow more
OWN_S, LITTLE_S = 60.0, 15.0  # data of the active decoder
TEST_S, TEST_TICK_S = 60.0, 0.05
SUBJECTS = range(9, 19)  # simulated; not in the training data of the shipped decoders
Row = dict[str, Any]


def shuffled(session: Session, other: Session, rng: np.random.Generator) -> Session:
    """Shuffle the labels in blocks of a second."""
    inside = _indices(session)
    n_blocks = max(2, round(duration_s(session.train_domain) / SHUFFLED_S))
    blocks = np.array_split(inside, n_blocks)
    order = np.concatenate([blocks[i] for i in rng.permutation(n_blocks)])
    vel, pos = session.cursor_vel.copy(), session.cursor_pos.copy()
    vel[inside], pos[inside] = vel[order], pos[order]
    return replace(session, cursor_vel=vel, cursor_pos=pos)


def of_another_day(session: Session, other: Session, rng: np.random.Generator) -> Session:
    """Replace the labels with labels of another day."""
    inside = _indices(session)
    times = session.cursor_times[inside] - session.cursor_times[inside[0]]
    domain = other.train_domain
    room = max(0.0, duration_s(domain) - times[-1])
    at = time_after(domain, float(rng.uniform(0, room))) + times
    vel, pos = session.cursor_vel.copy(), session.cursor_pos.copy()
    vel[inside] = other.velocity_at(at)
    pos[inside] = np.stack(
        [np.interp(at, other.cursor_times, axis) for axis in other.cursor_pos.T], axis=1
    )
    return replace(session, cursor_vel=vel, cursor_pos=pos)


def idle(session: Session, other: Session, rng: np.random.Generator) -> Session:
    """Replace the spikes with spikes of the session's rests, while the cursor moves."""
    speed = np.linalg.norm(session.cursor_vel, axis=1)
    still = speed <= np.quantile(speed, REST_SHARE)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], still.astype(int), [0]))))
    starts, ends = session.cursor_times[edges[::2]], session.cursor_times[edges[1::2] - 1]
    long = ends - starts >= REST_S
    starts, ends = starts[long], ends[long]
    if not len(starts):
        raise TrainingError(f"{session.session_id} has no rest of at least {REST_S:g} s")
    first, last = session.train_domain[0, 0], session.train_domain[-1, 1]
    times, units, at = [], [], float(first)
    while at < last:
        piece = int(rng.integers(len(starts)))
        inside = session.spikes_between(float(starts[piece]), float(ends[piece]))
        times.append(session.spike_times[inside] - starts[piece] + at)
        units.append(session.spike_units[inside])
        at += float(ends[piece] - starts[piece])
    outside = (session.spike_times < first) | (session.spike_times >= last)
    moved, moved_units = np.concatenate(times), np.concatenate(units)
    kept = moved < last
    spike_times, spike_units, _ = sorted_spikes(
        np.concatenate([session.spike_times[outside], moved[kept]]),
        np.concatenate([session.spike_units[outside], moved_units[kept]]),
    )
    return replace(session, spike_times=spike_times, spike_units=spike_units)


def half_silent(session: Session, other: Session, rng: np.random.Generator) -> Session:
    """Silence half of the units during the calibration."""
    lost = rng.permutation(session.n_units)[: session.n_units // 2]
    first, last = session.train_domain[0, 0], session.train_domain[-1, 1]
    during = (session.spike_times >= first) & (session.spike_times < last)
    kept = ~(during & np.isin(session.spike_units, lost))
    return replace(
        session, spike_times=session.spike_times[kept], spike_units=session.spike_units[kept]
    )


def shifted(session: Session, other: Session, rng: np.random.Generator) -> Session:
    """Shift all labels by `SHIFT_S`, early or late."""
    by_s = SHIFT_S * float(rng.choice([-1.0, 1.0]))
    at = session.cursor_times + by_s
    pos = [np.interp(at, session.cursor_times, axis) for axis in session.cursor_pos.T]
    return replace(session, cursor_vel=session.velocity_at(at), cursor_pos=np.stack(pos, axis=1))


MAKE: dict[Fault, Callable[[Session, Session, np.random.Generator], Session]] = {
    "none": lambda session, other, rng: session,
    "shuffled": shuffled,
    "other day": of_another_day,
    "idle": idle,
    "silent": half_silent,
    "shifted": shifted,
}


def _indices(session: Session) -> Any:
    """Indices of the kinematics samples in the training domain."""
    first, last = np.searchsorted(
        session.cursor_times, (session.train_domain[0, 0], session.train_domain[-1, 1])
    )
    return np.arange(first, last)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One calibration. day: index of the day. own: the active decoder is adapted to that day."""

    number: int
    fault: Fault
    day: int
    seconds: float
    own: bool


def trials(count: int, n_days: int) -> list[Trial]:
    """`count` trials, balanced over faults, days, lengths and active decoders."""
    return [
        Trial(
            number=number,
            fault=FAULTS[number % len(FAULTS)],
            day=(turn := number // len(FAULTS)) % n_days,
            seconds=SECONDS[turn // n_days % len(SECONDS)],
            own=(turn + number) % 2 == 0,
        )
        for number in range(count)
    ]


class Study:
    """Runs calibrations of several days from one bundle. folder: for the bundles."""

    def __init__(self, bundle: Path, days: Sequence[Path], *, folder: Path, plan: Plan) -> None:
        self._days, self._folder, self._plan = list(days), folder, plan
        self._ready = prepare(bundle)
        self.day = lru_cache(maxsize=4)(self._day)

    @property
    def n_days(self) -> int:
        return len(self._days) or len(SUBJECTS)

    def _day(self, index: int) -> Session:
        """A recorded or simulated day, under an id that the bundle doesn't know."""
        if self._days:
            session = sessions.load(self._days[index % self.n_days])
        else:
            subject = SUBJECTS[index % self.n_days]
            session = simulate(n_units=96, minutes=5.0, subject=subject, seed=700 + index)
        return replace(session, session_id=f"{session.session_id}-today")

    def run(self, trial: Trial) -> Row:
        """Calibrate, apply the gate, and score on the test domain."""
        rng = np.random.default_rng([trial.number, 1])
        session, other = self.day(trial.day), self.day((trial.day + 1) % self.n_days)
        test = replace(session, test_domain=_first(session.test_domain, TEST_S))
        active = self._active(session, trial)
        start_s = float(rng.uniform(0, duration_s(session.train_domain) - trial.seconds))
        made = MAKE[trial.fault](_part(session, start_s, trial.seconds), other, rng)
        candidate, verdict, evidence = self.calibrate(made, active)
        row: Row = vars(trial) | evidence | {
            "day": session.session_id, "answer": verdict,
            "r2_active": r2_on_test(active, test), "r2_candidate": r2_on_test(candidate, test),
        }  # fmt: skip
        row["harmful"] = verdict == "promote" and row["r2_candidate"] < row["r2_active"] - HARM
        return row

    def calibrate(self, session: Session, active: Bundle) -> tuple[Bundle, Answer, Row]:
        """Calibrate as in the server; returns the candidate, the gate's answer, and its reasons."""
        path = self._folder / "candidate.bundle"
        done = train_candidate(session, active, path, self._plan, self._ready)
        verdict = decide(done.evidence, Evidence.none(), done.doubts)
        better = done.evidence.better_by()
        return done.made, verdict.answer, {
            "method": done.method,
            "r2_gate": done.evidence.r2().value,
            "r2_gate_active": done.evidence.active_r2(),
            "better_by": better and [better.low, better.value, better.high],
            "why": verdict.why,
        }  # fmt: skip

    def _active(self, session: Session, trial: Trial) -> Bundle:
        """The active decoder: the bundle, or the bundle adapted to faultless data of that day."""
        if not trial.own and self._days:
            return self._ready.bundle
        start_s = 0.0 if trial.own else duration_s(session.train_domain) / 2
        path = self._folder / f"{session.session_id}-{trial.own}.bundle"
        if not path.exists():
            seconds = OWN_S if trial.own else LITTLE_S
            train_candidate(_part(session, start_s, seconds), None, path, self._plan, self._ready)
        return open_bundle(path)


def _part(session: Session, start_s: float, seconds: float) -> Session:
    """Cut the training domain to `seconds` from `start_s` on."""
    domain = session.train_domain
    first, last = time_after(domain, start_s), time_after(domain, start_s + seconds)
    part = intersect(domain, first, last)
    return replace(session, train_domain=part, domain=part)


def _first(domain: Floats, seconds: float) -> Floats:
    return intersect(domain, domain[0, 0], time_after(domain, seconds))


def r2_on_test(bundle: Bundle, session: Session) -> float:
    """R² of both axes together on the test domain, as in the gate."""
    decoded = decode_split(bundle, session, "test", tick_s=TEST_TICK_S)
    return pooled_r2(session.velocity_at(decoded.times), decoded.velocity)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Answers by fault, and how many candidates would have harmed or helped."""
    lines = []
    for fault in FAULTS:
        some = [row for row in rows if row["fault"] == fault]
        if some:
            given = Counter(row["answer"] for row in some)
            gains = [r["r2_candidate"] - r["r2_active"] for r in some if r["answer"] == "promote"]
            lines.append({
                "fault": fault, "calibrations": len(some), "promote": given["promote"],
                "undecided": given["undecided"], "reject": given["reject"],
                "harmful": sum(row["harmful"] for row in some),
                "worst_promotion": round(min(gains), 3) if gains else None,
                "would_harm": sum(r["r2_candidate"] < r["r2_active"] - HARM for r in some),
                "would_help": sum(r["r2_candidate"] > r["r2_active"] + HARM for r in some),
            })  # fmt: skip
    return lines


def study(
    bundle: Path, days: Sequence[Path], path: Path, *, count: int, steps: int,
    method: Method | Kind = "auto", say: Callable[[Row], None] = lambda row: None,
) -> list[Row]:  # fmt: skip
    """Run the missing ones of `count` calibrations; returns all rows.

    Raises TrainingError if `path` has the results of another study.
    """
    about: Row = {
        "bundle": bundle.name, "days": [day.stem for day in days] or "simulated",
        "steps": steps, "method": method, "harm": HARM,
    }  # fmt: skip
    rows: list[Row] = []
    if path.exists():
        before = json.loads(path.read_text())
        if {name: before.get(name) for name in about} != about:
            raise TrainingError(f"{path} has results of another study; choose another -o")
        rows = before["rows"]
    done = {row["number"] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(method=method, allowed_s=None, steps=steps)
        running = Study(bundle, days, folder=Path(folder), plan=plan)
        for trial in trials(count, running.n_days):
            if trial.number not in done:
                rows.append(running.run(trial))
                document = about | {"summary": summary(rows), "rows": rows}
                write_text(path, json.dumps(document, indent=1) + "\n", TrainingError)
                say(rows[-1])
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("sessions", type=Path, nargs="*", help="recorded days; default: simulated")
    parser.add_argument("--count", type=int, default=120, help="calibrations; one in six is good")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each model's last phase")
    parser.add_argument("--method", choices=[*get_args(Method), *get_args(Kind)], default="auto")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/trust.json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(markup=False)

    def say(row: Row) -> None:
        console.print(
            f"{row['number']:>3} {row['fault']:<10} {row['day']:<30} {row['seconds']:g} s: "
            f"R² {row['r2_active']:.3f} to {row['r2_candidate']:.3f}, {row['answer']}"
            + (", HARMFUL" if row["harmful"] else ""),
            markup=False,
        )

    rows = study(
        given.bundle, given.sessions, given.output, count=given.count,
        steps=given.steps, method=given.method, say=say,
    )  # fmt: skip
    lines = summary(rows)
    table = Table(title=f"{len(rows)} calibrations", title_justify="left")
    for name in lines[0]:
        table.add_column(name.replace("_", " "))
    for line in lines:
        table.add_row(*(str(value) for value in line.values()))
    console.print(table)


if __name__ == "__main__":
    main()
