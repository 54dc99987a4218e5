"""Train a POYO on sessions, for decoding at the window's end.

    volition pretrain DIR --preset rt --minutes 10 -o RUN

Queries lie all over each window (they teach more than queries at its end alone), and the
validation score is causal: the query at the window's end, which sees no future. The learning
rate is annealed to nothing over the time or the steps allowed; what is kept is a running mean
of the weights, at its best validation score. Ctrl-C keeps the best so far.

Not yet: more than one process, data larger than memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_brain.models.poyo import POYO

from decoder.errors import TrainingError
from streaming.sessions import Session, Split
from training import runs
from training.baselines import Score, r2
from training.model import ModelConfig, build, forward, preset
from training.windows import OutputScale, WindowSource, unit_words

VALIDATE_EVERY_S = 60.0
N_VALIDATIONS = 20  # of a run that ends by steps
VALIDATE_STEP_S = 0.1  # between the window ends that are scored


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How long and how to train. One of `minutes` and `steps` ends the run, whichever is first."""

    preset: str = "rt"
    minutes: float | None = 10.0
    steps: int | None = None
    seed: int = 0
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warmup_share: float = 0.03
    ema_decay: float = 0.998
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise TrainingError("give --minutes or --steps, or training would never end")
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"--steps {self.steps}; expected at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise TrainingError(f"--minutes {self.minutes}; expected more than 0")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a progress display shows, after every step."""

    step: int
    share: float
    loss: float
    tokens_per_s: float
    seconds: float
    r2: float | None


def pretrain(
    sessions: Sequence[Session],
    run: Path | str,
    settings: PretrainSettings,
    *,
    session_paths: dict[str, str] | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    resume: bool = False,
) -> runs.RunRecord:
    """Train on `sessions` and write the run folder; returns its record."""
    run = Path(run)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    if resume:
        trainer = Trainer.resume(sessions, run, settings)
    else:
        if (run / "run.json").exists():
            raise TrainingError(f"{run}: there is a run already; --resume goes on with it")
        trainer = Trainer.start(sessions, run, settings, session_paths or {})
    try:
        trainer.train(on_step)
    except KeyboardInterrupt:
        trainer.interrupted = True
    trainer.finish()
    return trainer.record


class Trainer:
    """One run in memory: model, running mean, optimizer, and where it stands."""

    def __init__(
        self,
        sessions: Sequence[Session],
        run: Path,
        settings: PretrainSettings,
        record: runs.RunRecord,
    ) -> None:
        self.run, self.settings, self.record = run, settings, record
        self.config = record.config()
        self.model = build(self.config, record.unit_words, record.session_words)
        self.average = {name: t.clone() for name, t in runs.weights(self.model).items()}
        self.optimizer = _optimizer(self.model, settings)
        self.source = window_source(sessions, self.model, self.config, record)
        self.interrupted = False
        self._rng = np.random.default_rng([settings.seed, record.step])
        self._validated_at = record.seconds

    @classmethod
    def start(
        cls,
        sessions: Sequence[Session],
        run: Path,
        settings: PretrainSettings,
        session_paths: dict[str, str],
    ) -> Trainer:
        """A new run: vocabularies and scales from the sessions."""
        scales = {session.session_id: OutputScale.of(session) for session in sessions}
        record = runs.RunRecord(
            preset=settings.preset,
            seed=settings.seed,
            model=runs.model_fields(preset(settings.preset)),
            unit_words=[word for session in sessions for word in unit_words(session)],
            session_words=[session.session_id for session in sessions],
            session_paths=session_paths,
            output_mean={k: (s.mean[0], s.mean[1]) for k, s in scales.items()},
            output_std={k: (s.std[0], s.std[1]) for k, s in scales.items()},
            settings={
                "batch_size": settings.batch_size,
                "learning_rate": settings.learning_rate,
                "weight_decay": settings.weight_decay,
                "ema_decay": settings.ema_decay,
                "minutes": settings.minutes,
                "steps": settings.steps,
            },
        )
        run.mkdir(parents=True, exist_ok=True)
        return cls(sessions, run, settings, record)

    @classmethod
    def resume(cls, sessions: Sequence[Session], run: Path, settings: PretrainSettings) -> Trainer:
        """Go on where `last.safetensors` stands."""
        record = runs.load_record(run)
        known = set(record.session_words)
        if missing := sorted(known - {session.session_id for session in sessions}):
            raise TrainingError(f"{run} was trained on {missing}, which is not among the sessions")
        trainer = cls([s for s in sessions if s.session_id in known], run, settings, record)
        state = runs.load_tensors(run / "last.safetensors")
        runs.set_weights(trainer.model, _part(state, "weights."))
        trainer.average = _part(state, "average.")
        _restore_optimizer(trainer.optimizer, trainer.model, state)
        return trainer

    def train(self, on_step: Callable[[Progress], None]) -> None:
        """Take steps until the time or the steps are used up."""
        began = time.monotonic() - self.record.seconds
        tokens, tokens_since = 0, time.monotonic()
        self.model.train()
        while (share := self._share(time.monotonic() - began)) < 1.0:
            self._set_learning_rate(share)
            batch = self.source.draw(self._rng, self.settings.batch_size)
            output = forward(self.model, self.config, **batch.inputs())
            loss = torch.nn.functional.mse_loss(output, batch.target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self._average()
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss became {loss.item()} at step {self.record.step}")
            self.record.step += 1
            self.record.seconds = time.monotonic() - began
            tokens += batch.n_tokens
            score = self._validate_when_due(float(loss.detach()))
            on_step(
                Progress(
                    step=self.record.step,
                    share=share,
                    loss=float(loss.detach()),
                    tokens_per_s=tokens / max(time.monotonic() - tokens_since, 1e-9),
                    seconds=self.record.seconds,
                    r2=score,
                )
            )

    def _share(self, seconds: float) -> float:
        """How much of the run has passed, by time or by steps."""
        by_time = seconds / (60.0 * self.settings.minutes) if self.settings.minutes else 0.0
        by_steps = self.record.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)

    def _set_learning_rate(self, share: float) -> None:
        """Linear warm-up, then a cosine to nothing."""
        warm = min(1.0, (share + 1e-3) / self.settings.warmup_share)
        rate = self.settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * share))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _average(self) -> None:
        """Running mean of the weights, with a shorter memory at the start."""
        decay = min(self.settings.ema_decay, (1 + self.record.step) / (10 + self.record.step))
        own = runs.weights(self.model)
        names = list(own)
        torch._foreach_lerp_([self.average[n] for n in names], [own[n] for n in names], 1.0 - decay)

    def _validate_when_due(self, loss: float) -> float | None:
        """Validate every minute; by steps where steps end the run, so that it can be run again."""
        if self.settings.steps:
            due = self.record.step % max(1, self.settings.steps // N_VALIDATIONS) == 0
        else:
            due = self.record.seconds - self._validated_at >= VALIDATE_EVERY_S
        return self.validate(loss) if due else None

    def validate(self, loss: float) -> float:
        """Causal R² of the running mean on the validation domains; keeps the best."""
        live = {name: t.clone() for name, t in runs.weights(self.model).items()}
        runs.set_weights(self.model, self.average)
        score = float(
            np.mean(
                [
                    evaluate(
                        self.model, self.config, self.source, index, "valid",
                        step_s=VALIDATE_STEP_S,
                    ).r2_mean
                    for index in range(len(self.source.sessions))
                ]
            )
        )  # fmt: skip
        if score > self.record.best_r2:
            self.record.best_r2 = score
            runs.save_tensors(self.run / "best.safetensors", runs.weights(self.model))
        runs.set_weights(self.model, live)
        self.model.train()
        self.record.history.append(
            {"step": self.record.step, "seconds": self.record.seconds, "loss": loss, "r2": score}
        )
        self._save()
        self._validated_at = self.record.seconds
        return score

    def _save(self) -> None:
        state = {f"weights.{k}": v for k, v in runs.weights(self.model).items()}
        state |= {f"average.{k}": v for k, v in self.average.items()}
        state |= _optimizer_tensors(self.optimizer, self.model)
        runs.save_tensors(self.run / "last.safetensors", state)
        runs.save_record(self.run, self.record)

    def finish(self) -> None:
        """Score what training ended with, unless nothing was trained."""
        if self.record.step:
            last = self.record.history[-1]["loss"] if self.record.history else float("nan")
            self.validate(last)


def window_source(
    sessions: Sequence[Session], model: POYO, config: ModelConfig, record: runs.RunRecord
) -> WindowSource:
    """Windows of sessions in a model's vocabulary, with the run's output scales."""
    return WindowSource(
        sessions,
        model.unit_emb.vocab,
        model.session_emb.vocab,
        window_s=config.sequence_length,
        scales={s.session_id: record.scale(s.session_id) for s in sessions},
    )


@torch.no_grad()
def evaluate(
    model: POYO, config: ModelConfig, source: WindowSource, index: int, split: Split,
    *, step_s: float,
) -> Score:  # fmt: skip
    """Causal R² of one session: the query at the end of windows that end every `step_s`."""
    model.eval()
    true, decoded = [], []
    for _, batch in source.walk(index, split, step_s=step_s):
        decoded.append(forward(model, config, **batch.inputs())[:, -1])
        true.append(batch.target[:, -1])
    if not true:
        raise TrainingError(f"no window of {config.sequence_length} s fits the {split} domain")
    return r2(torch.cat(true).double().numpy(), torch.cat(decoded).double().numpy())


def _optimizer(model: POYO, settings: PretrainSettings) -> torch.optim.AdamW:
    """AdamW; embeddings, norms and biases are not decayed."""
    decayed: list[torch.nn.Parameter] = []
    kept: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or "_emb" in name else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer, model: POYO) -> dict[str, Tensor]:
    return {
        f"adam.{field}.{name}": value
        for name, parameter in model.named_parameters()
        for field, value in optimizer.state[parameter].items()
    }


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, model: POYO, state: dict[str, Tensor]
) -> None:
    for name, parameter in model.named_parameters():
        optimizer.state[parameter] = {
            field: state[f"adam.{field}.{name}"] for field in ("step", "exp_avg", "exp_avg_sq")
        }
