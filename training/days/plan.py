"""What a study of other days trains and scores, and the jobs that this takes.

Models are pretrained on the first days (the last ones with `backward`; all but one, each in turn,
with `leave_one_out`). Every other day is then decoded. A job is one model, one seed and one split
of the days. Its rows go to a file of its own, so a study that was interrupted goes on where it
stopped.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from decoder.errors import TrainingError, brief
from decoder.files import read_json, write_text
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from training.baselines.multiday import N_STEPS
from training.pretraining.settings import PretrainSettings

MULTI_DAY, OWN_DAY = "multi-day gru", "own day"
SPIKES, TOGETHER = "unlabelled", "together"  # beside the methods of an adaptation
METHODS = (SPIKES, "align", "instant", "units", "full", "scratch", TOGETHER)
FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Ids of the days to train on and of those to decode. name: of the split, may be empty."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan of a study.

    folder: sessions of one subject. output: folder for runs and rows.
    n_train: number of days to pretrain on: the first, or with `backward` the last.
    leave_one_out: pretrain on all days but one, for each day; `n_train` is ignored.
    without: ids of sessions that are neither trained on nor decoded.
    seconds: labelled seconds of a new day; None for its whole training domain.
    methods: of an adaptation (`align` of streaming models only); `unlabelled`: units by their
        activity alone; `together`: the day's training domain together with the days of
        pretraining, for a quarter of its time.
    """

    folder: Path
    output: Path
    n_train: int = 0
    backward: bool = False
    leave_one_out: bool = False
    without: tuple[str, ...] = ()
    presets: tuple[str, ...] = ("stream", "rt")
    seeds: tuple[int, ...] = (0, 1)
    seconds: tuple[float | None, ...] = (20.0, 60.0, 240.0, None)
    methods: tuple[str, ...] = METHODS
    minutes: float | None = 20.0
    steps: int | None = None
    network_steps: int = N_STEPS  # of the multi-day GRU
    threads: int = 1

    def __post_init__(self) -> None:
        known = (*METHODS, "units+head", "auto")
        if unknown := [method for method in self.methods if method not in known]:
            raise TrainingError(f"method {unknown[0]!r}; expected one of {', '.join(known)}")

    def days(self) -> dict[str, Session]:
        """The sessions by id, in order of their dates. Raises TrainingError if one has no date."""
        days = [day for day in _sessions(self.folder) if day.session_id not in self.without]
        if undated := [day.session_id for day in days if day.recorded_at is None]:
            raise TrainingError(f"{undated[0]} has no date; expected sessions of known days")
        ordered = sorted(days, key=lambda day: day.recorded_at)  # type: ignore[arg-type, return-value]
        return {day.session_id: day for day in (ordered[::-1] if self.backward else ordered)}

    def splits(self) -> list[Split]:
        """The splits of the days. Raises TrainingError if no day would be left to decode."""
        names = tuple(self.days())
        if self.leave_one_out and len(names) < 2:
            raise TrainingError(f"{self.folder} has {len(names)} days; expected at least 2")
        if self.leave_one_out:
            return [
                Split(
                    name=f"without-{name}",
                    train=tuple(other for other in names if other != name),
                    test=(name,),
                )
                for name in names
            ]
        if not 1 <= self.n_train < len(names):
            raise TrainingError(
                f"{self.n_train} days to train on; expected 1 to {len(names) - 1} of the "
                f"{len(names)} days of {self.folder} (--train, or --leave-one-out)"
            )
        return [Split(name="", train=names[: self.n_train], test=names[self.n_train :])]

    def jobs(self) -> list[Job]:
        """The jobs, the longest first. Decoders of a day alone take one job for all days.

        Raises TrainingError if there are too few days, to decode or for `instant`.
        """
        splits = self.splits()
        least, fewest = PretrainSettings.profiled_from, min(len(split.train) for split in splits)
        if self.presets and "instant" in self.methods and fewest < least:
            raise TrainingError(
                f"{fewest} days to train on; the method instant needs at least {least}. Train on "
                "more days, or name the other methods (--method)"
            )
        pairs = [(split, seed) for seed in self.seeds for split in splits]
        tested = tuple(dict.fromkeys(day for split in splits for day in split.test))
        return [
            *(Job(self, preset, split, seed) for preset in self.presets for split, seed in pairs),
            *(Job(self, MULTI_DAY, split, seed) for split, seed in pairs),
            Job(self, OWN_DAY, Split(name="", train=(), test=tested)),
        ]

    def keep(self) -> None:
        """Write the plan to its output folder.

        Raises TrainingError if the folder has the rows of another plan.
        """
        path, mine = self.output / FILE, json.loads(json.dumps(asdict(self), default=str))
        growing = ("seconds", "methods", "seeds", "presets", "threads", "output")
        if path.exists():
            other = read_json(path, TrainingError)
            names = [n for n in mine if n not in growing and mine[n] != other.get(n)]
            if names:
                raise TrainingError(
                    f"{self.output} has a study with {names[0]} {other.get(names[0])!r}, not "
                    f"{mine[names[0]]!r}; choose another folder"
                )
        self.output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(mine, indent=1) + "\n", TrainingError)


@dataclass(frozen=True)
class Job:
    """One model, one seed and one split. model: a preset, `multi-day gru`, or `own day`."""

    plan: Plan
    model: str
    split: Split
    seed: int = 0

    @property
    def name(self) -> str:
        parts = (self.model.replace(" ", "-"), str(self.seed), self.split.name)
        return "-".join(part for part in parts if part)

    def days(self) -> list[Session]:
        """The days to decode."""
        days = self.plan.days()
        return [days[name] for name in self.split.test]

    def training_days(self) -> list[Session]:
        """The days to pretrain on."""
        days = self.plan.days()
        return [days[name] for name in self.split.train]

    def apart(self, day: Session) -> int | None:
        """Days between a day and the nearest day of pretraining; None if there is none."""
        others = [other.recorded_at.date() for other in self.training_days()]  # type: ignore[union-attr]
        date = day.recorded_at.date()  # type: ignore[union-attr]
        return min((abs((date - other).days) for other in others), default=None)


@lru_cache(maxsize=4)
def _sessions(folder: Path) -> tuple[Session, ...]:
    return tuple(sessions.open_all(folder))


Row = dict[str, Any]


class Rows:
    """The rows of one job on disk, a line each."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run of the job wrote; a line that was cut off is dropped."""
        self._path = path
        self._known: dict[tuple[Any, ...], Row] = {}
        if path.exists():
            whole = path.read_bytes().rpartition(b"\n")[0]
            path.write_bytes(whole + b"\n" if whole else b"")
            for line in whole.splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["day"], row["seconds"], row["method"]] = row
                except (ValueError, KeyError, TypeError) as error:
                    raise TrainingError(
                        f"{path}: not a row of a study ({brief(error)}); delete the file"
                    ) from error

    def __contains__(self, key: tuple[str, float | None, str]) -> bool:
        return key in self._known

    def __iter__(self) -> Any:
        return iter(self._known.values())

    def add(self, row: Row) -> None:
        """Append a row."""
        self._known[row["day"], row["seconds"], row["method"]] = row
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
