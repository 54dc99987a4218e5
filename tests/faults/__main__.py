"""`python -m tests.faults --times 5 --page docs/RELIABILITY.md`"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console

from tests import isolation
from tests.faults import campaign, page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=campaign.__doc__)
    parser.add_argument("--times", type=int, default=5, help="tries of each fault [5]")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="only these faults")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments [0]")
    parser.add_argument("--jobs", type=int, default=1, help="number of faults at a time [1]")
    parser.add_argument("--folder", type=Path, default=Path("build/faults"))
    parser.add_argument("--fresh", action="store_true", help="discard earlier tries")
    parser.add_argument("--page", type=Path, help="write the page here, and its JSON next to it")
    given = parser.parse_args()
    isolation.own_lsl_session()  # isolated from any rig on this network
    if given.fresh:
        shutil.rmtree(given.folder, ignore_errors=True)
    held = campaign.run(
        campaign.chosen(given.only), times=given.times, seed=given.seed, folder=given.folder,
        console=Console(), jobs=given.jobs,
    )  # fmt: skip
    if given.page:
        page.write(given.page, campaign.read_tries(given.folder), seed=given.seed)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
