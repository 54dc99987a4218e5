"""Collector, trainer and shadow of a scripted calibration, without slow imports.

python -I -S scripted_child.py MODULE FOLDER    FOLDER/candidates has bundles to hand out

If FOLDER/alike exists, the collected data can't tell the candidate from the active decoder.
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path


def send(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(module: str, folder: Path) -> None:
    while (folder / f"{module} hangs").exists():
        time.sleep(0.01)
    order = json.loads(sys.stdin.readline())
    if module == "server.calibration.collect":
        send(collected=5.0, spikes=1000)
        session = Path(order["folder"]) / "session.h5"
        session.write_bytes(b"")
        send(done=str(session), phases_s={"saving the session": 0.0})
        return
    varied = [0.9 + 0.01 * (block % 20) for block in range(60)]  # errors of each second
    evidence = {
        "seconds": [1.0] * 60,
        "total": varied,
        "candidate": [0.1 * value for value in varied],
        "active": [0.6 * value for value in varied],
    }
    if module == "server.calibration.shadow":
        send(done=evidence)
        return
    if (folder / "alike").exists():
        evidence["candidate"] = [(0.5, 0.7)[block % 2] * varied[block] for block in range(60)]
    send(prepared="scripted")
    order = json.loads(sys.stdin.readline())
    candidates = sorted((folder / "candidates").iterdir())
    chosen = candidates[int.from_bytes(os.urandom(1), "big") % len(candidates)]
    shutil.copytree(chosen, order["output"])
    send(phase="units", share=0.5, r2=0.5)
    send(made=order["output"])
    judged = {"method": "units", "evidence": evidence, "doubts": [], "notes": []}
    send(done=judged | {"learned_s": 0.0, "phases_s": {"comparing": 0.0}})


main(sys.argv[1], Path(sys.argv[2]))
