"""Tries every fault a number of times, at random moments drawn from a seed.

Each try is a line of `tries.jsonl` in the folder, so an interrupted campaign continues where it
stopped. The process logs of a failed try are kept next to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from decoder.errors import VolitionError
from tests.faults import of_decoding, of_recordings, of_senders, of_server, of_sockets
from tests.faults.fault import Fault, Try

FAULTS: tuple[Fault, ...] = (
    *of_senders.FAULTS, *of_decoding.FAULTS, *of_server.FAULTS, *of_sockets.FAULTS,
    *of_recordings.FAULTS,
)  # fmt: skip
TRIES = "tries.jsonl"


class RigError(Exception):
    """The processes of a fault did not start, so it could not be tried."""


def chosen(only: Sequence[str]) -> list[Fault]:
    """The faults with these names or prefixes; all if none is given."""
    found = [f for f in FAULTS if not only or any(f.name.startswith(name) for name in only)]
    if not found:
        raise SystemExit(
            f"no fault {', '.join(only)}, expected one of {', '.join(f.name for f in FAULTS)}"
        )
    return found


def read_tries(folder: Path) -> list[Try]:
    """The tries so far."""
    file = folder / TRIES
    lines = file.read_text().splitlines() if file.exists() else []
    return [Try(**json.loads(line)) for line in lines]


def run(
    faults: Sequence[Fault], *, times: int, seed: int, folder: Path, console: Console, jobs: int = 1
) -> bool:
    """Run the missing tries, `jobs` faults at a time; returns whether all held."""
    folder.mkdir(parents=True, exist_ok=True)
    done = {(one.fault, one.number) for one in read_tries(folder)}
    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn()
    writing, stopping = threading.Lock(), threading.Event()
    with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
        task = bar.add_task("", total=times * len(faults))

        def note(one: Try) -> None:
            with writing, (folder / TRIES).open("a") as file:
                file.write(json.dumps(asdict(one)) + "\n")
            bar.update(task, advance=1, description=one.fault)
            for problem in one.problems:
                console.print(f"{one.fault} {one.number}: {problem[:500]}", markup=False)

        def try_one(fault: Fault) -> bool:
            missing = [n for n in range(times) if (fault.name, n) not in done]
            bar.advance(task, times - len(missing))
            if missing and (why := fault.blocked()):
                console.print(f"{fault.name}: not tried ({why})")
                bar.advance(task, len(missing))
                return True
            held = True
            try:
                with contextlib.closing(_tries(fault, missing, seed, folder)) as tries:
                    for one in tries:
                        if stopping.is_set():  # Ctrl-C ended the processes, not a fault
                            return False
                        note(one)
                        held &= not one.problems
            except RigError as error:
                console.print(f"{fault.name}: {error}", markup=False)
                return False
            return held

        with ThreadPoolExecutor(jobs) as pool:
            try:
                return all(list(pool.map(try_one, faults)))
            except KeyboardInterrupt:
                stopping.set()
                pool.shutdown(cancel_futures=True)
                raise


def _tries(
    fault: Fault, numbers: Sequence[int], seed: int, folder: Path
) -> Generator[Try, None, None]:
    """Run tries one after another, on the same rig as long as they hold."""
    rig, logs = None, folder
    try:
        for number in numbers:
            if rig is None:
                logs = folder / f"{fault.name}-{number}"
                rig = _started(fault, logs)
            one = Try(fault=fault.name, number=number, problems=[])
            try:
                attempt(fault, rig, one, Random(f"{seed} {fault.name} {number}"))
            except Exception as error:  # any exception in a try is a finding
                one.problems.append(f"{type(error).__name__}: {error}")
            yield one
            if one.problems:
                rig.close()
                rig = None
    finally:
        if rig is not None:
            rig.close()
            shutil.rmtree(logs, ignore_errors=True)


def _started(fault: Fault, logs: Path) -> Any:
    """Start a rig until it decodes; with retries, because a failed start is not a finding."""
    for last in (False, False, True):
        shutil.rmtree(logs, ignore_errors=True)
        rig = fault.rig(logs)
        try:
            rig.__enter__()
            rig.settle()
            return rig
        except (AssertionError, OSError, VolitionError) as error:
            rig.close()
            if last:
                raise RigError(f"the processes did not start, see {logs}: {error}") from error
    raise AssertionError("unreachable")


def attempt(fault: Fault, rig: Any, one: Try, rng: Random) -> None:
    """Try a fault on a started rig and record the result in `one`."""
    rig.rng = rng
    rig.settle()
    one.problems += rig.problems()
    first, orders = len(rig.checker.frames), rig.orders.n_accepted
    try:
        one.seconds = fault.attempt(rig) or {}
    except Exception as error:
        one.problems.append(f"{type(error).__name__}: {error}")
    one.problems += rig.problems()
    frames = [frame for _, frame in rig.checker.frames[first:]]
    one.frames, one.valid = len(frames), sum(frame.valid for frame in frames)
    one.orders = rig.orders.n_accepted - orders
    one.load = round(os.getloadavg()[0], 2)
