"""The process that trains: Lightning Fabric, for one process or those of torchrun, and its memory.

    torchrun --nproc-per-node 4 -m clients pretrain DIR -o RUN
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-endpoint HOST:29400 -m clients pretrain …

With CUDA, each process takes one GPU and they communicate over NCCL; without, over gloo.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from decoder.errors import TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = ("32-true", "bf16-mixed")
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


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


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, if the C library is glibc. Returns whether it does.

    A training step allocates and frees tens of megabytes repeatedly. By default, glibc returns them
    to the system each time and their pages fault in again: 5,900 page faults per step of `rt`, 7 %
    of its time. With these settings there are 600.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return all(bool(mallopt(option, value)) for option, value in settings.items())
