"""Settings and progress of a pretraining run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from decoder.errors import TrainingError
from training.pretraining import runs


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How long and how to train. A run ends after `minutes` or `steps`, whichever comes first.

    batch_size: windows per step, over all processes and accumulated micro-batches; None: as many as
        suit the model (`usual_batch` of its configuration).
    accumulate: micro-batches per process and step, computed one after another.
    sampling_power: see `training.data.windows.WindowSource`.
    workers: processes that read windows ahead; 0 reads them in the training process.
    shared_share, profiled_share: see `training.data.windows.WindowSource`.
    profiled_from: sessions of a run, at least, for profiles. Few units teach nothing about others,
        and the windows are missed elsewhere.
    base: run or bundle of the same preset whose weights the run starts from; default: random.
    """

    preset: str = "rt"
    minutes: float | None = 10.0
    steps: int | None = None
    seed: int = 0
    batch_size: int | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.03
    ema_decay: float = 0.998
    threads: int | None = None
    accumulate: int = 1
    sampling_power: float = 1.0
    precision: str = "32-true"
    workers: int = 0
    checkpoint_every_s: float = 60.0
    base: str | None = None
    shared_share: float = 0.5
    profiled_share: float = 0.4
    profiled_from: int = 4

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise TrainingError("no --minutes and no --steps: training would never end; give one")
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"--steps {self.steps}; expected at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise TrainingError(f"--minutes {self.minutes}; expected more than 0")
        if self.accumulate < 1:
            raise TrainingError(f"--accumulate {self.accumulate}; expected at least 1")


def settings_of(
    run: Path | str, *, minutes: float | None = None, steps: int | None = None
) -> PretrainSettings:
    """The settings of a run, for resuming it. `minutes` and `steps` replace its end if given."""
    recorded = runs.load_record(Path(run)).settings
    names = {field.name for field in fields(PretrainSettings)}
    if not names <= {
        *recorded,
        "base",
        "shared_share",
        "profiled_share",
        "profiled_from",
    }:  # which older runs lack
        raise TrainingError(f"{run} was adapted or imported, not pretrained here; start a new run")
    recorded = {name: recorded[name] for name in names & set(recorded)}
    for share in ("shared_share", "profiled_share"):
        recorded.setdefault(share, 0.0)
    if minutes is not None or steps is not None:
        recorded |= {"minutes": minutes, "steps": steps}
    return PretrainSettings(**recorded)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Progress of a run after a step, for display."""

    step: int
    share: float
    loss: float
    tokens_per_s: float
    seconds: float
    r2: float | None
