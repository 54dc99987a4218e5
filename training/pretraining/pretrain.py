"""Train a model on sessions, for causal decoding.

    volition pretrain DIR --preset rt --minutes 10 -o RUN
    torchrun --nproc-per-node 2 -m clients pretrain DIR --steps 10000 -o RUN

Where in its windows a model is asked is its own (docs/ACCURACY.md compares); the validation
score is causal: no query sees its future. The learning
rate is annealed to nothing over the time or the steps allowed; what is kept is a running mean
of the weights, at its best validation score. Ctrl-C keeps the best so far.

Which windows a step sees, and what dropout does to them, follows from the seed, the step and
the number of the micro-batch alone. So nothing of a sampler has to be saved, a run that was
killed goes on exactly, and N processes with one micro-batch each do what one process does
that accumulates over N.

It does not know windows (`training.data.windows`) or files (`training.pretraining.runs`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from decoder.arrays import Floats
from decoder.errors import TrainingError
from streaming.sessions.session import Session, Split
from training.baselines.ridge import Score, r2
from training.data.tuning import nearest_mean, tuning
from training.data.windows import Batch, OutputScale, WindowSource, unit_words, window_ends
from training.models.families import Config, Model, build, family, forward, preset
from training.models.possm import Possm
from training.pretraining import runs
from training.pretraining.fabric import launch
from training.pretraining.memory import keep_freed_memory
from training.pretraining.optimizer import (
    build_optimizers,
    restore_state,
    set_learning_rate,
    state_tensors,
)

VALIDATE_EVERY_S = 60.0
MAX_VALIDATING = 0.2  # share of a timed run; a longer validation comes less often
N_VALIDATIONS = 20  # of a run that ends by steps
VALIDATE_STEP_S = 0.1  # between the window ends that are scored
MAX_VALIDATED = 3000  # windows scored at a validation, over all sessions
LOG_EVERY = 10  # steps between entries for TensorBoard


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How long and how to train. One of `minutes` and `steps` ends the run, whichever is first.

    batch_size: windows a step, over all processes and accumulated micro-batches.
    accumulate: micro-batches a process computes one after the other in a step.
    sampling_power: see `training.data.windows.WindowSource`.
    workers: processes that read windows ahead; 0 reads in the training process.
    base: a run or bundle of the same preset whose weights it begins with; None: drawn anew.
    """

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
    accumulate: int = 1
    sampling_power: float = 1.0
    precision: str = "32-true"
    workers: int = 0
    checkpoint_every_s: float = 60.0
    base: str | None = None

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise TrainingError("give --minutes or --steps, or training would never end")
        if self.steps is not None and self.steps < 1:
            raise TrainingError(f"--steps {self.steps}; expected at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise TrainingError(f"--minutes {self.minutes}; expected more than 0")
        if self.accumulate < 1:
            raise TrainingError(f"--accumulate {self.accumulate}; expected at least 1")


def settings_of(
    run: Path | str, *, minutes: float | None = None, steps: int | None = None
) -> PretrainSettings:
    """The settings of a run, to go on with it; another end where one is given."""
    recorded = runs.load_record(Path(run)).settings
    names = {field.name for field in fields(PretrainSettings)}
    if not names <= {*recorded, "base"}:  # which runs of old don't have
        raise TrainingError(f"{run} was adapted or imported, not pretrained here; start a new run")
    recorded = {name: recorded[name] for name in names & set(recorded)}
    if minutes is not None or steps is not None:
        recorded |= {"minutes": minutes, "steps": steps}
    return PretrainSettings(**recorded)  # type: ignore[arg-type]


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
    fabric: Fabric | None = None,
) -> runs.RunRecord:
    """Train on `sessions` and write the run folder; returns its record.

    fabric: a launched one; made here (this process, or torchrun's) where left out.
    """
    run = Path(run)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    fabric = fabric or launch(run, settings.precision)
    torch.manual_seed(settings.seed)
    if resume:
        trainer = Trainer.resume(sessions, run, settings, fabric)
    else:
        exists = fabric.broadcast((run / "run.json").exists())
        if exists:
            raise TrainingError(f"{run}: there is a run already; --resume goes on with it")
        trainer = Trainer.start(sessions, run, settings, fabric, session_paths or {})
    with _stopped_by_ctrl_c(trainer):
        trainer.train(on_step)
    trainer.finish()
    return trainer.record


@contextmanager
def _stopped_by_ctrl_c(trainer: Trainer) -> Iterator[None]:
    """SIGINT ends training after the step that runs, so that weights and progress agree."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        trainer.interrupted = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class FastForward(nn.Module):
    """A model behind its family's forward pass, as a module that DDP can wrap."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, sealed: SealedBatch) -> Tensor:
        """Mean squared error of a batch."""
        batch = sealed.batch
        output = forward(self.model, self.config, **batch.inputs())
        return nn.functional.mse_loss(output.float(), batch.target)


class SealedBatch:
    """A batch that Fabric passes on as it is: it would cast the float64 times."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class MicroBatches(Dataset[Batch]):
    """The micro-batches of this process, by their number since the run's start."""

    def __init__(
        self, source: WindowSource, settings: PretrainSettings, *, rank: int, world: int
    ) -> None:
        self.source, self.settings = source, settings
        self.rank, self.n_micro = rank, world * settings.accumulate
        if settings.batch_size % self.n_micro:
            raise TrainingError(
                f"--batch-size {settings.batch_size} can't be shared by {world} processes with "
                f"{settings.accumulate} micro-batches each; expected a multiple of {self.n_micro}"
            )
        if source.layout.n_together > 1 and settings.batch_size == self.n_micro:
            raise TrainingError(
                "a micro-batch of one window has no other that its state could be carried on from; "
                f"give --batch-size {2 * self.n_micro} or more, or fewer micro-batches "
                "(--accumulate) or processes"
            )

    def __getitem__(self, number: int) -> Batch:
        step, turn = divmod(number, self.settings.accumulate)
        rng = np.random.default_rng([self.settings.seed, step])
        size = self.settings.batch_size // self.n_micro
        plans = self.source.plan(rng, self.settings.batch_size, micro=size)
        first = self.micro(turn) * size
        return self.source.build(plans[first : first + size])

    def micro(self, turn: int) -> int:
        """Number, in the global batch, of this process' micro-batch."""
        return self.rank * self.settings.accumulate + turn

    def __len__(self) -> int:
        return 2**62

    def since(self, step: int) -> Iterator[Batch]:
        """Micro-batches from `step` on, for ever; read ahead by `workers`."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=_CountFrom(step * self.settings.accumulate),
            num_workers=self.settings.workers,
            persistent_workers=self.settings.workers > 0,
            worker_init_fn=_leave_ctrl_c_to_the_trainer,
        )
        return iter(loader)


def _leave_ctrl_c_to_the_trainer(worker: int) -> None:
    """A terminal sends it to every process; a worker that ends would be an error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _CountFrom(torch.utils.data.Sampler[int]):
    def __init__(self, first: int) -> None:
        self._first = first

    def __iter__(self) -> Iterator[int]:
        number = self._first
        while True:
            yield number
            number += 1


class Trainer:
    """One run in memory: model, running mean, optimizer, and where it stands."""

    def __init__(
        self,
        sessions: Sequence[Session],
        run: Path,
        settings: PretrainSettings,
        fabric: Fabric,
        record: runs.RunRecord,
    ) -> None:
        self.run, self.settings, self.fabric, self.record = run, settings, fabric, record
        self.config = record.config()
        self.model = build(self.config, record.unit_words, record.session_words)
        self.source = window_source(
            sessions, self.model, self.config, record, sampling_power=settings.sampling_power
        )
        optimizers = build_optimizers(
            self.model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.module, *self.optimizers = fabric.setup(
            FastForward(self.model, self.config), *optimizers
        )
        self.average = {name: t.clone() for name, t in runs.weights(self.model).items()}
        for session in self.source.sessions:
            if len(window_ends(session, "valid", self.config.window_s, 0.1)) == 0:
                raise TrainingError(
                    f"{session.session_id}: no window of {self.config.window_s} s fits the "
                    "validation domain; leave the session out or cut its domains anew"
                )
        self.batches = MicroBatches(
            self.source, settings, rank=fabric.global_rank, world=fabric.world_size
        )
        if settings.base is not None and record.step == 0:
            self.begin_with(Path(settings.base))
        self.interrupted = False
        self._last_loss = math.nan  # none in a run that goes on when its time is up already
        self._began = time.monotonic() - record.seconds
        self._validated_at = self._saved_at = record.seconds  # when the last one had ended
        self._validation_s = 0.0  # that it took

    @classmethod
    def start(
        cls,
        sessions: Sequence[Session],
        run: Path,
        settings: PretrainSettings,
        fabric: Fabric,
        session_paths: dict[str, str],
    ) -> Trainer:
        """A new run: vocabularies and scales from the sessions."""
        scales = {session.session_id: OutputScale.of(session) for session in sessions}
        config = preset(settings.preset)
        record = runs.RunRecord(
            preset=settings.preset,
            seed=settings.seed,
            family=family(config),
            model=asdict(config),
            unit_words=[word for session in sessions for word in unit_words(session)],
            session_words=[session.session_id for session in sessions],
            session_paths=session_paths,
            output_mean={k: (s.mean[0], s.mean[1]) for k, s in scales.items()},
            output_std={k: (s.std[0], s.std[1]) for k, s in scales.items()},
            settings=asdict(settings) | {"world_size": fabric.world_size},
        )
        run.mkdir(parents=True, exist_ok=True)
        trainer = cls(sessions, run, settings, fabric, record)
        if fabric.is_global_zero:
            runs.save_record(run, record)  # so that a run killed from now on can go on
        return trainer

    @classmethod
    def resume(
        cls, sessions: Sequence[Session], run: Path, settings: PretrainSettings, fabric: Fabric
    ) -> Trainer:
        """Go on where `last.safetensors` stands, from the start where there is none yet."""
        record = runs.load_record(run)
        state = runs.load_tensors(run / runs.LAST) if (run / runs.LAST).exists() else None
        if state is not None:
            runs.go_back_to(record, state)
        elif (run / runs.BEST).exists():
            raise TrainingError(f"{run} was adapted or imported; it has no training to go on with")
        record.settings = asdict(settings) | {"world_size": fabric.world_size}
        given = {session.session_id: session for session in sessions}
        if missing := sorted(set(record.session_words) - set(given)):
            raise TrainingError(f"{run} was trained on {missing}, which is not among the sessions")
        in_order = [given[name] for name in record.session_words]
        trainer = cls(in_order, run, settings, fabric, record)
        if state is None:
            return trainer
        runs.set_weights(trainer.model, _part(state, "weights."))
        for name, tensor in _part(state, "average.").items():
            trainer.average[name].copy_(tensor)
        restore_state(trainer.optimizers, trainer.model, state)
        return trainer

    def begin_with(self, base: Path) -> None:
        """Another run's weights. Units that it doesn't know begin as those do that they are like.

        Raises TrainingError where that run is of another preset, or says nothing of its units.
        """
        model, record = runs.load_model(base)
        if record.config() != self.config:
            raise TrainingError(
                f"{base} is of preset {record.preset!r} or another version of it; expected "
                f"{self.record.preset!r}"
            )
        if not record.unit_tuning:
            raise TrainingError(f"{base} doesn't say what its units are tuned to; train it again")
        features = np.concatenate([tuning(session) for session in self.source.sessions])
        known = model.unit_emb.weight[1:].detach().double().numpy()
        units = nearest_mean(features, np.array(record.unit_tuning), known)
        place = {word: row for row, word in enumerate(record.unit_words)}
        for row, word in enumerate(self.record.unit_words):
            if word in place:
                units[row] = known[place[word]]
        own, days = runs.weights(self.model), model.session_emb.weight[1:].detach()
        with torch.no_grad():
            for name, tensor in runs.weights(model).items():
                if not name.startswith(("unit_emb", "session_emb")):
                    own[name].copy_(tensor)
            self.model.unit_emb.weight[1:] = torch.from_numpy(units).to(own["unit_emb.weight"])
            for row, word in enumerate(self.record.session_words, start=1):
                is_known = word in record.session_words
                self.model.session_emb.weight[row] = (
                    days[record.session_words.index(word)] if is_known else days.mean(dim=0)
                )
            for name, tensor in own.items():
                self.average[name].copy_(tensor)

    def train(self, on_step: Callable[[Progress], None]) -> None:
        """Take steps until the time or the steps are used up."""
        self._began = time.monotonic() - self.record.seconds
        tokens, tokens_since = 0, time.monotonic()
        batches = self.batches.since(self.record.step)
        self.module.train()
        while (share := self._share(self._elapsed())) < 1.0 and not self.interrupted:
            set_learning_rate(
                self.optimizers, self.settings.learning_rate, share, self.settings.warmup_share
            )
            loss, n_tokens = self.step(batches)
            self._last_loss = loss
            self.record.step += 1
            self.record.seconds = self._elapsed()
            tokens += n_tokens
            tokens_per_s = tokens / max(time.monotonic() - tokens_since, 1e-9)
            score = self._validate_when_due(loss)
            self._save_when_due()
            if self.record.step % LOG_EVERY == 0 or score is not None:
                self._log(loss, tokens_per_s, score)
            on_step(
                Progress(
                    step=self.record.step,
                    share=share,
                    loss=loss,
                    tokens_per_s=tokens_per_s,
                    seconds=self.record.seconds,
                    r2=score,
                )
            )

    def step(self, batches: Iterator[Batch]) -> tuple[float, int]:
        """One optimizer step; returns this process' loss and number of tokens."""
        total, n_tokens = 0.0, 0
        self.module.zero_grad(set_to_none=True)
        for turn in range(self.settings.accumulate):
            batch = next(batches).to(self.fabric.device)
            torch.manual_seed(_dropout_seed(self.settings, self.record.step, self.batches, turn))
            more = turn + 1 < self.settings.accumulate
            with self.fabric.no_backward_sync(self.module, enabled=more):
                loss = self.module(SealedBatch(batch)) / self.settings.accumulate
                self.fabric.backward(loss)
            total += float(loss.detach())
            n_tokens += batch.n_tokens
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        if not math.isfinite(norm):  # the same in every process
            raise TrainingError(
                f"the gradient became {norm} (loss {total}) at step {self.record.step}; look for "
                "odd values in the sessions (`volition info`), or lower --learning-rate"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return total, n_tokens

    def _elapsed(self) -> float:
        """Seconds of training and validating, over all processes that went on with the run."""
        return time.monotonic() - self._began

    def _share(self, seconds: float) -> float:
        """How much of the run has passed, by time or by steps; the same in every process."""
        by_time = seconds / (60.0 * self.settings.minutes) if self.settings.minutes else 0.0
        if self.fabric.world_size > 1:  # rank 0 says when to end
            by_time, self.interrupted = self.fabric.broadcast((by_time, self.interrupted))
        by_steps = self.record.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)

    @torch.no_grad()
    def _average(self) -> None:
        """Running mean of the weights, with a shorter memory at the start."""
        decay = min(self.settings.ema_decay, (1 + self.record.step) / (10 + self.record.step))
        own = runs.weights(self.model)
        names = list(own)
        torch._foreach_lerp_([self.average[n] for n in names], [own[n] for n in names], 1.0 - decay)

    def _validate_when_due(self, loss: float) -> float | None:
        """Validate every minute; by steps if steps end the run, so that it can be run again."""
        if self.settings.steps:
            due = self.record.step % max(1, self.settings.steps // N_VALIDATIONS) == 0
        else:
            pause_s = max(VALIDATE_EVERY_S, self._validation_s * (1.0 / MAX_VALIDATING - 1.0))
            due = self.record.seconds - self._validated_at >= pause_s
            due = due if self.fabric.world_size == 1 else self.fabric.broadcast(due)
        return self.validate(loss) if due else None

    def validate(self, loss: float) -> float:
        """Causal R² of the running mean on the validation domains; keeps the best."""
        began_s = self._elapsed()
        score = self.fabric.broadcast(self._score() if self.fabric.is_global_zero else 0.0)
        if score > self.record.best_r2:
            self.record.best_r2 = score
            if self.fabric.is_global_zero:
                runs.save_tensors(self.run / runs.BEST, self.average)
        self.record.history.append(
            {"step": self.record.step, "seconds": self.record.seconds, "loss": loss, "r2": score}
        )
        self._save()
        self._validated_at = self._elapsed()
        self._validation_s = self._validated_at - began_s
        return score

    def _score(self) -> float:
        """Causal R² over all sessions' scaled velocities, the running mean in the model's place."""
        live = {name: t.clone() for name, t in runs.weights(self.model).items()}
        n_sessions = len(self.source.sessions)
        try:
            runs.set_weights(self.model, self.average)
            parts = [
                decode_windows(
                    self.model, self.config, self.source, index, "valid",
                    step_s=VALIDATE_STEP_S, at_most=max(20, MAX_VALIDATED // n_sessions),
                )
                for index in range(n_sessions)
            ]  # fmt: skip
        finally:
            runs.set_weights(self.model, live)
            self.module.train()
        true, decoded = (np.concatenate(column) for column in zip(*parts, strict=True))
        return r2(true, decoded).r2_mean

    def _save_when_due(self) -> None:
        """Keep what a killed run goes on from."""
        if self.record.seconds - self._saved_at >= self.settings.checkpoint_every_s:
            self._save()

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self._write()
        self._saved_at = self._elapsed()

    def _write(self) -> None:
        state = {f"weights.{k}": v for k, v in runs.weights(self.model).items()}
        state |= {f"average.{k}": v for k, v in self.average.items()}
        state |= state_tensors(self.optimizers, self.model)
        runs.save_tensors(self.run / runs.LAST, state | runs.progress_tensors(self.record))
        runs.save_record(self.run, self.record)

    def _log(self, loss: float, tokens_per_s: float, score: float | None) -> None:
        """Into the run's TensorBoard folder."""
        values = {
            "train/loss": loss,
            "train/tokens_per_s": tokens_per_s,
            "train/learning_rate": self.optimizers[0].param_groups[0]["lr"],
        }
        if isinstance(self.model, Possm) and self.model.carried_share is not None:
            values["train/carried_share"] = float(self.model.carried_share)
        if score is not None:
            values["valid/r2_causal"] = score
        self.fabric.log_dict(values, step=self.record.step)

    def finish(self) -> None:
        """Score what training ended with, unless nothing was trained; note the units' tuning."""
        if self.fabric.is_global_zero:
            features = np.concatenate([tuning(session) for session in self.source.sessions])
            self.record.unit_tuning = features.round(3).tolist()
        if self.record.step and self._scored_step() != self.record.step:
            self.validate(self._last_loss)
        elif self.fabric.is_global_zero:
            runs.save_record(self.run, self.record)

    def _scored_step(self) -> float:
        return self.record.history[-1]["step"] if self.record.history else -1


def _dropout_seed(settings: PretrainSettings, step: int, batches: MicroBatches, turn: int) -> int:
    """A seed for each micro-batch of the global batch, whichever process computes it."""
    sequence = np.random.SeedSequence([settings.seed, step, batches.micro(turn)])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def window_source(
    sessions: Sequence[Session],
    model: Model,
    config: Config,
    record: runs.RunRecord,
    *,
    sampling_power: float = 1.0,
) -> WindowSource:
    """Windows of sessions in a model's vocabulary, with the run's output scales."""
    return WindowSource(
        sessions,
        model.unit_emb.vocab,
        model.session_emb.vocab,
        layout=config,
        scales={s.session_id: record.scale(s.session_id) for s in sessions},
        sampling_power=sampling_power,
    )


@torch.no_grad()
def evaluate(
    model: Model, config: Config, source: WindowSource, index: int, split: Split,
    *, step_s: float,
) -> Score:  # fmt: skip
    """Causal R² of one session, every `step_s`."""
    return r2(*decode_windows(model, config, source, index, split, step_s=step_s))


@torch.no_grad()
def decode_windows(
    model: Model, config: Config, source: WindowSource, index: int, split: Split,
    *, step_s: float, at_most: int | None = None,
) -> tuple[Floats, Floats]:  # fmt: skip
    """True and decoded velocity (n, 2) every `step_s` of a split, in the session's own scale.

    at_most: so many of the windows, drawn once and for all.
    """
    model.eval()
    device = next(model.parameters()).device
    true, decoded = [], []
    config = config.walking(source.sessions[index].intervals(split))
    for _, batch in source.walk(index, split, step_s=step_s, layout=config, at_most=at_most):
        output = forward(model, config, **batch.to(device).inputs())
        decoded.append(output.flatten(0, 1).cpu())
        true.append(batch.target.flatten(0, 1))
    if not true:
        raise TrainingError(
            f"{source.sessions[index].session_id}: no window of {config.window_s} s fits "
            f"the {split} domain"
        )
    return torch.cat(true).double().numpy(), torch.cat(decoded).double().numpy()


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
