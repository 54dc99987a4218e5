"""The child process of the harness, which runs the cases.

    python -m tests.fuzz.child TARGET FOLDER SEED FIRST END BYTES

It writes one line of JSON per case to standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

import numpy as np

from decoder.errors import VolitionError
from tests.fuzz.harness import LONGEST_LINE, MEMORY_BYTES


def main() -> None:
    name, folder, seed, first, end, more_bytes = sys.argv[1:]
    target = importlib.import_module(f"tests.fuzz.{name}")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    originals = Path(folder)
    with contextlib.suppress(Exception):  # imports must not count as memory of a case
        _case(target, originals, int(seed), int(first))
    _limit_memory(int(more_bytes))
    for number in range(int(first), int(end)):
        answer = {"number": number, **judge(target, originals, int(seed), number)}
        answers.write(json.dumps(answer | {"peak_mb": round(_peak_mb(), 1)}) + "\n")


def judge(target: ModuleType, originals: Path, seed: int, number: int) -> dict[str, str]:
    """The outcome of one case; for a failure also its kind and its text."""
    try:
        _case(target, originals, seed, number)
    except VolitionError as error:
        text = str(error)
        if not text.strip() or "\n" in text or len(text) > LONGEST_LINE:
            how = "the error is not one short line"
            return {"outcome": "failed", "how": how, "text": text[:4000]}
        return {"outcome": "refused"}
    except BaseException as error:
        last = traceback.format_exc()[-4000:]
        return {"outcome": "failed", "how": f"raised {type(error).__name__}", "text": last}
    if _peak_mb() * 2**20 > MEMORY_BYTES:
        return {"outcome": "failed", "how": f"took {_peak_mb():.0f} MB", "text": ""}
    return {"outcome": "opened"}


def _case(target: ModuleType, originals: Path, seed: int, number: int) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="case-", dir=originals.parent))
    try:
        target.case(originals, np.random.default_rng([seed, number]), scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _limit_memory(more_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
