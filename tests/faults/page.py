"""Writes docs/RELIABILITY.md and docs/reliability.json from the tries of a campaign."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.campaign import FAULTS
from tests.faults.fault import Try

TEMPLATE = Path(__file__).with_suffix(".md")


def write(path: Path, tries: Sequence[Try], *, seed: int) -> None:
    """Write the page, and the JSON next to it."""
    rows = [_row(fault.name, tries) for fault in FAULTS]
    totals = {
        "faults": sum(row["tries"] > 0 for row in rows),
        "tries": len(tries),
        "tries_that_held": sum(not one.problems for one in tries),
        "frames": sum(one.frames for one in tries),
        "valid_frames": sum(one.valid for one in tries),
        "accepted_orders": sum(one.orders for one in tries),
        "seed": seed,
        "cores": os.cpu_count(),
        "load": round(median([one.load for one in tries]), 1) if tries else None,
    }
    content = json.dumps({"totals": totals, "faults": rows}, indent=1)
    path.with_name(f"{path.stem.lower()}.json").write_text(content + "\n")
    lines = [f"| {r['what']} | {r['must_hold']} | {_observed(r)} | {r['tries']} |" for r in rows]
    path.write_text(
        TEMPLATE.read_text().format(summary=_summary(totals), rows="\n".join(lines), **totals)
    )


def _row(name: str, tries: Sequence[Try]) -> dict[str, Any]:
    fault = next(fault for fault in FAULTS if fault.name == name)
    mine = [one for one in tries if one.fault == name]
    timed = sorted({key for one in mine for key in one.seconds})
    values = {key: [one.seconds[key] for one in mine if key in one.seconds] for key in timed}
    return {
        "name": name,
        "what": fault.what,
        "must_hold": fault.must_hold,
        "tries": len(mine),
        "held": sum(not one.problems for one in mine),
        "seconds": {
            key: {"p50": round(median(v), 3), "max": round(max(v), 3)} for key, v in values.items()
        },
        "frames": sum(one.frames for one in mine),
        "valid_frames": sum(one.valid for one in mine),
        "accepted_orders": sum(one.orders for one in mine),
        "problems": sorted({problem[:300] for one in mine for problem in one.problems}),
        "blocked": None if mine else fault.blocked(),
    }


def _observed(row: dict[str, Any]) -> str:
    if not row["tries"]:
        return f"not tried: {row['blocked'] or 'not chosen'}"
    broke = row["tries"] - row["held"]
    verdict = "held" if not broke else f"**broke in {broke}**: {_plain(row['problems'][0])}"
    timed = [f"{name} {s['p50']:.2f}, {s['max']:.2f}" for name, s in row["seconds"].items()]
    return "; ".join([verdict, *timed])


def _plain(text: str) -> str:
    """Text that fits into a cell of a table."""
    return " ".join(text.replace("|", "/").split())[:160]


def _summary(totals: dict[str, Any]) -> str:
    return (
        f"{totals['faults']} faults, {totals['tries']:,} tries: {totals['tries_that_held']:,} "
        "held. "
        f"{totals['frames']:,} frames were checked, {totals['valid_frames']:,} of them valid; "
        f"{totals['accepted_orders']:,} orders were accepted over REST."
    )
