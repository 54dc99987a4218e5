"""Launch Lightning Fabric, for one process or for the processes of torchrun.

    torchrun --nproc-per-node 4 -m clients pretrain DIR -o RUN
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29400 -m clients pretrain …

With CUDA, each process takes one GPU and they communicate over NCCL; without, over gloo.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from decoder.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed")


def launch(run: Path, precision: str = "32-true") -> Fabric:
    """Launch a Fabric that logs to `run/tensorboard`."""
    from lightning_fabric import Fabric  # imports torch._dynamo: 1.7 s
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger

    if precision not in PRECISIONS:
        raise TrainingError(f"precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*srun.*")
        fabric = Fabric(
            accelerator="cuda" if torch.cuda.is_available() else "cpu",
            devices=local,
            num_nodes=max(1, world // local),
            strategy="ddp" if world > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
            loggers=TensorBoardLogger(root_dir=run, name="", version="tensorboard"),
        )
        fabric.launch()
    return fabric
