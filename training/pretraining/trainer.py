"""The trainer of a run: steps, validation, checkpoints.

It depends neither on how windows are built (`training.data.windows`) nor on the format of a run
on disk (`training.pretraining.runs`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from decoder.errors import TrainingError
from streaming.sessions.session import Session, Split
from training.baselines.ridge import r2
from training.data.profile import N_PROFILE
from training.data.vocabulary import Vocabulary, tuning_of_words
from training.data.windows import Batch, window_ends
from training.models.families import (
    family,
    preset,
    same_sizes,
)
from training.models.possm import Possm
from training.pretraining import runs
from training.pretraining.batches import FastForward, MicroBatches, SealedBatch, dropout_seed
from training.pretraining.newcomer import with_session
from training.pretraining.optimizer import (
    build_optimizers,
    restore_state,
    set_learning_rate,
    state_tensors,
)
from training.pretraining.scoring import decode_windows, usual_states, window_source
from training.pretraining.settings import PretrainSettings, TrainingProgress

if TYPE_CHECKING:
    from lightning_fabric import Fabric

VALIDATE_EVERY_S = 60.0
MAX_VALIDATING = 0.05  # share of a timed run spent validating
N_VALIDATIONS, LEAST_STEPS = 20, 10  # per run with a given number of steps; between two
VALIDATE_STEP_S = 0.1  # between scored times
MAX_VALIDATED = 3000  # windows per validation, over all sessions
SPLITS: tuple[Split, ...] = ("train", "valid")  # which windows of training and validation fit
LOG_EVERY = 10  # steps between TensorBoard entries
UNITS = "unit_emb.weight"
DIFFERENCES = "differences"  # in a checkpoint: units that are stored as what differs (rows, n x 2)


class Trainer:
    """One run in memory: model, averaged weights, optimizers and progress."""

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
        self.model = record.build()
        self.source = window_source(
            sessions, self.model, self.config, record, sampling_power=settings.sampling_power,
            shared_share=settings.shared_share, profiled_share=settings.profiled_share,
        )  # fmt: skip
        optimizers = build_optimizers(
            self.model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.module, *self.optimizers = fabric.setup(
            FastForward(self.model, self.config), *optimizers
        )
        self._own, self._shared = torch.from_numpy(self.source.differences()).unbind(dim=1)
        with torch.no_grad():
            self.model.unit_emb.weight[self._own] = 0.0  # nothing differs yet
        self.average = {name: t.clone() for name, t in runs.weights(self.model).items()}
        for session in self.source.sessions:
            if len(window_ends(session, "valid", self.config.window_s, 0.1)) == 0:
                raise TrainingError(
                    f"{session.session_id}: no window of {self.config.window_s} s fits the "
                    "validation domain; leave the session out or give it other domains"
                )
        self.batches = MicroBatches(
            self.source, settings, rank=fabric.global_rank, world=fabric.world_size
        )
        if settings.base is not None and record.step == 0:
            self.initialise_from(Path(settings.base))
        self.interrupted = False
        self._last_loss = math.nan  # stays NaN if a run is resumed after its time is up
        self._began = time.monotonic() - record.seconds
        self._validated_at = self._saved_at = record.seconds  # end of the last one
        self._validation_s = 0.0  # duration of the last validation

    @classmethod
    def start(
        cls,
        sessions: Sequence[Session],
        run: Path,
        settings: PretrainSettings,
        fabric: Fabric,
        session_paths: dict[str, str],
    ) -> Trainer:
        """Start a new run, with vocabularies and output scales from the sessions."""
        words = Vocabulary.of(sessions, shared=settings.shared_share > 0)
        domains = [session.intervals(split) for session in sessions for split in SPLITS]
        config = preset(settings.preset).training_on(domains)
        profiled = settings.profiled_share > 0 and len(sessions) >= settings.profiled_from
        record = runs.RunRecord(
            preset=settings.preset,
            seed=settings.seed,
            family=family(config),
            model=asdict(config),
            unit_words=words.units,
            unit_tuning=_tuning(sessions, words.units),
            n_profile=N_PROFILE if profiled else 0,
            session_words=words.sessions,
            session_paths=session_paths,
            output_mean={k: (s.mean[0], s.mean[1]) for k, s in words.scales.items()},
            output_std={k: (s.std[0], s.std[1]) for k, s in words.scales.items()},
            settings=asdict(settings) | {"world_size": fabric.world_size},
        )
        run.mkdir(parents=True, exist_ok=True)
        trainer = cls(sessions, run, settings, fabric, record)
        if fabric.is_global_zero:
            runs.save_record(run, record)  # a run killed from here on can be resumed
        return trainer

    @classmethod
    def resume(
        cls, sessions: Sequence[Session], run: Path, settings: PretrainSettings, fabric: Fabric
    ) -> Trainer:
        """Resume a run from `last.safetensors`, or from its start if there is no checkpoint yet."""
        record = runs.load_record(run)
        state = runs.load_tensors(run / runs.LAST) if (run / runs.LAST).exists() else None
        if state is not None:
            runs.rewind(record, state)
        elif (run / runs.BEST).exists():
            raise TrainingError(
                f"{run} was adapted or imported and can't be resumed; start a new run"
            )
        record.settings = asdict(settings) | {"world_size": fabric.world_size}
        given = {session.session_id: session for session in sessions}
        if missing := sorted(set(record.sessions) - set(given)):
            raise TrainingError(
                f"{run} was trained on {missing}, missing from the given sessions; add them"
            )
        in_order = [given[name] for name in record.sessions]
        trainer = cls(in_order, run, settings, fabric, record)
        if state is None:
            return trainer
        runs.set_weights(trainer.model, _part(state, "weights."))
        for name, tensor in _part(state, "average.").items():
            trainer.average[name].copy_(tensor)
        if DIFFERENCES not in state:  # an older version stored whole embeddings
            for units in (trainer.model.unit_emb.weight.detach(), trainer.average[UNITS]):
                units[trainer._own] -= units[trainer._shared]
        restore_state(trainer.optimizers, trainer.model, state)
        return trainer

    def initialise_from(self, base: Path) -> None:
        """Initialise the weights from another run or bundle.

        The units of new sessions start as those of a recalibration
        (`training.pretraining.newcomer`). Raises TrainingError if the base has other sizes.
        """
        model, record = runs.load_model(base)
        if not same_sizes(record.config(), self.config):
            raise TrainingError(
                f"{base} has the sizes of preset {record.preset!r}, or of another version of it; "
                f"expected {self.record.preset!r}"
            )
        for session in self.source.sessions:
            if session.session_id not in record.session_words:
                model, record = with_session(model, record, session)
        theirs, own = runs.weights(model), runs.weights(self.model)
        for name in own.keys() & theirs.keys():  # an older base can't identify units by profiles
            if not name.startswith(("unit_emb", "session_emb")):
                own[name].copy_(theirs[name])
        for name in ("unit_emb", "session_emb"):
            ours, known = getattr(self.model, name), getattr(model, name)
            common = [word for word in ours.vocab if word in known.vocab]
            rows, of_base = ([one.vocab[w] for w in common] for one in (ours, known))
            ours.weight.detach()[rows] = known.weight.detach()[of_base].to(ours.weight)
        units, words = own[UNITS], list(self.model.unit_emb.vocab)
        for row in {int(row) for row in self._shared}:
            if words[row] not in model.unit_emb.vocab:  # a subject's days that are new together
                units[row] = units[self._own[self._shared == row]].mean(dim=0)
        units[self._own] -= units[self._shared]
        for name, tensor in own.items():
            self.average[name].copy_(tensor)

    def train(self, on_step: Callable[[TrainingProgress], None]) -> None:
        """Take steps until the time or the steps are used up, or a user interrupts."""
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
                TrainingProgress(
                    step=self.record.step,
                    share=share,
                    loss=loss,
                    tokens_per_s=tokens_per_s,
                    seconds=self.record.seconds,
                    r2=score,
                )
            )

    def step(self, batches: Iterator[Batch]) -> tuple[float, int]:
        """Take one optimizer step. Returns this process's loss and number of tokens."""
        total, n_tokens = 0.0, 0
        self.module.zero_grad(set_to_none=True)
        for index in range(self.settings.accumulate):
            batch = next(batches).to(self.fabric.device)
            torch.manual_seed(dropout_seed(self.settings, self.record.step, self.batches, index))
            more = index + 1 < self.settings.accumulate
            with self.fabric.no_backward_sync(self.module, enabled=more):
                loss = self.module(SealedBatch(batch)) / self.settings.accumulate
                self.fabric.backward(loss)
            total += float(loss.detach())
            n_tokens += batch.n_tokens
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), 1.0))
        if not math.isfinite(norm):  # the same in all processes
            raise TrainingError(
                f"the gradient norm is {norm} (loss {total}) at step {self.record.step}; check the "
                "sessions for implausible values (`volition info`) or lower --learning-rate"
            )
        for optimizer in self.optimizers:
            optimizer.step()
        self._average()
        return total, n_tokens

    def _elapsed(self) -> float:
        """Seconds of training and validation so far, including those before a resume."""
        return time.monotonic() - self._began

    def _share(self, seconds: float) -> float:
        """The share of the run that has passed, by time or steps; the same in all processes."""
        by_time = seconds / (60.0 * self.settings.minutes) if self.settings.minutes else 0.0
        if self.fabric.world_size > 1:  # rank 0 decides when to end
            by_time, self.interrupted = self.fabric.broadcast((by_time, self.interrupted))
        by_steps = self.record.step / self.settings.steps if self.settings.steps else 0.0
        return max(by_time, by_steps)

    @torch.no_grad()
    def _average(self) -> None:
        """Update the moving average of the weights, which has a shorter memory at the start."""
        decay = min(self.settings.ema_decay, (1 + self.record.step) / (10 + self.record.step))
        own = runs.weights(self.model)
        names = list(own)
        torch._foreach_lerp_([self.average[n] for n in names], [own[n] for n in names], 1.0 - decay)

    def _whole_average(self) -> dict[str, Tensor]:
        """The averaged weights, with whole embeddings of units, not what differs each day."""
        units = self.average[UNITS].clone()
        units[self._own] += units[self._shared]
        return self.average | {UNITS: units}

    def _validate_when_due(self, loss: float) -> float | None:
        """Validate if due: every minute, or by steps in a run with a given number of steps.

        Validation by steps makes such a run reproducible.
        """
        if self.settings.steps:
            every = max(LEAST_STEPS, self.settings.steps // N_VALIDATIONS)
            due = self.record.step % every == 0
        else:
            pause_s = max(VALIDATE_EVERY_S, self._validation_s * (1.0 / MAX_VALIDATING - 1.0))
            due = self.record.seconds - self._validated_at >= pause_s
            due = due if self.fabric.world_size == 1 else self.fabric.broadcast(due)
        return self.validate(loss) if due else None

    def validate(self, loss: float) -> float:
        """Score the averaged weights on the validation domains, and save them if they are best."""
        began_s = self._elapsed()
        score = self.fabric.broadcast(self._score() if self.fabric.is_global_zero else 0.0)
        if score > self.record.best_r2:
            self.record.best_r2 = score
            if self.fabric.is_global_zero:
                runs.save_tensors(self.run / runs.BEST, self._whole_average())
        self.record.history.append(
            {"step": self.record.step, "seconds": self.record.seconds, "loss": loss, "r2": score}
        )
        self._save()
        self._validated_at = self._elapsed()
        self._validation_s = self._validated_at - began_s
        return score

    def _score(self) -> float:
        """Causal R² of the averaged weights, over the scaled velocities of all sessions."""
        live = {name: t.clone() for name, t in runs.weights(self.model).items()}
        n_sessions = len(self.source.sessions)
        try:
            runs.set_weights(self.model, self._whole_average())
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
        """Save a checkpoint if due."""
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
        state[DIFFERENCES] = torch.stack([self._own, self._shared], dim=1)
        runs.save_tensors(self.run / runs.LAST, state | runs.progress_tensors(self.record))
        runs.save_record(self.run, self.record)

    def _log(self, loss: float, tokens_per_s: float, score: float | None) -> None:
        """Log a step to TensorBoard."""
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
        """Validate the last step, if that is not done yet, and record tuning and usual states.

        The log is complete on disk afterwards.
        """
        if self.fabric.is_global_zero:  # a run that an older version began has none
            self.record.unit_tuning = self.record.unit_tuning or _tuning(
                self.source.sessions, self.record.unit_words
            )
        if self.record.step and self._scored_step() != self.record.step:
            self.validate(self._last_loss)
        if self.fabric.is_global_zero:
            took_steps = not math.isnan(self._last_loss)
            if (took_steps or self.record.states is None) and (self.run / runs.BEST).exists():
                best, _ = runs.load_model(self.run)
                self.record.states = usual_states(best, self.record, self.source.sessions)
            runs.save_record(self.run, self.record)
        for logger in self.fabric.loggers:  # TensorBoard's writes in a thread of its own
            logger.finalize("success")

    def _scored_step(self) -> float:
        return self.record.history[-1]["step"] if self.record.history else -1


def _tuning(sessions: Sequence[Session], words: Sequence[str]) -> list[list[float]]:
    features: list[list[float]] = tuning_of_words(sessions, words).round(3).tolist()
    return features


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
