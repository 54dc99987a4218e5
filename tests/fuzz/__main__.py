"""`python -m tests.fuzz TARGET --count N --seed S`; exit code 1 if a case failed."""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.fuzz import harness


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a module of tests/fuzz: bundles, control, frames, …")
    parser.add_argument("--count", type=int, default=1000, help="number of cases [1000]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case, by its number")
    given = parser.parse_args()
    target = importlib.import_module(f"tests.fuzz.{given.target}")
    run = getattr(target, "run", None)  # targets other than files have their own
    if run is None:
        first, count = (0, given.count) if given.only is None else (given.only, 1)
        report = harness.run(given.target, count, seed=given.seed, first=first)
    else:
        report = run(given.count, seed=given.seed)
    print(report)
    sys.exit(1 if report.failures else 0)


if __name__ == "__main__":
    main()
