"""The micro-batches of a run: which windows each process computes at each step, and their loss."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from decoder.errors import TrainingError
from training.data.windows import Batch, WindowSource
from training.models.families import Config, Model, forward
from training.pretraining.settings import PretrainSettings


class SealedBatch:
    """Hides a batch from Fabric, which would cast its float64 times."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class FastForward(nn.Module):
    """A model with its family's forward pass and the loss, as a module that DDP can wrap."""

    def __init__(self, model: Model, config: Config) -> None:
        super().__init__()
        self.model, self.config = model, config
        self.identifier = getattr(model, "identifier", None)

    def forward(self, sealed: SealedBatch) -> Tensor:
        """Mean squared error of a batch."""
        batch = sealed.batch
        output = forward(self.model, self.config, **batch.inputs())
        loss = nn.functional.mse_loss(output.float(), batch.target)
        if self.identifier is not None:  # of every parameter, for DDP; momentum goes on
            loss = loss + 0.0 * sum(p.sum() for p in self.identifier.parameters())
        return loss


class MicroBatches(Dataset[Batch]):
    """The micro-batches of this process, numbered from the run's start."""

    def __init__(
        self, source: WindowSource, settings: PretrainSettings, *, rank: int, world: int
    ) -> None:
        self.source, self.settings = source, settings
        self.rank, self.n_micro = rank, world * settings.accumulate
        together = source.layout.n_together
        least = together * self.n_micro if together > 1 else 1
        self.batch_size = settings.batch_size or max(source.layout.usual_batch, least)
        if self.batch_size % self.n_micro:
            raise TrainingError(
                f"--batch-size {self.batch_size} can't be shared by {world} processes with "
                f"{settings.accumulate} micro-batches each; expected a multiple of {self.n_micro}"
            )
        if source.layout.n_together > 1 and self.batch_size == self.n_micro:
            raise TrainingError(
                "a streaming model needs at least 2 windows per micro-batch, to carry states over, "
                f"and here it has 1; give --batch-size {2 * self.n_micro} or more, or fewer "
                "micro-batches (--accumulate) or processes"
            )

    def __getitem__(self, number: int) -> Batch:
        step, index = divmod(number, self.settings.accumulate)
        rng = np.random.default_rng([self.settings.seed, step])
        size = self.batch_size // self.n_micro
        plans = self.source.plan(rng, self.batch_size, micro=size)
        first = self.micro(index) * size
        return self.source.build(plans[first : first + size])

    def micro(self, index: int) -> int:
        """Position of one of this process's micro-batches in the global batch."""
        return self.rank * self.settings.accumulate + index

    def since(self, step: int) -> Iterator[Batch]:
        """Iterate over micro-batches from `step` on, without end; `workers` read ahead."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=itertools.count(step * self.settings.accumulate),
            num_workers=self.settings.workers,
            persistent_workers=self.settings.workers > 0,
            worker_init_fn=_leave_ctrl_c_to_the_trainer,
        )
        return iter(loader)


def _leave_ctrl_c_to_the_trainer(worker: int) -> None:
    """Ignore SIGINT in a worker: a terminal sends it to every process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def dropout_seed(settings: PretrainSettings, step: int, batches: MicroBatches, index: int) -> int:
    """The dropout seed of a micro-batch, the same whichever process computes it."""
    sequence = np.random.SeedSequence([settings.seed, step, batches.micro(index)])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
