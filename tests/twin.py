"""Generates the blocking REST client from the asyncio one.

python -m tests.twin            # rewrite clients/control.py
python -m tests.twin --check    # exit 1 if it is out of date
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "clients" / "control_async.py"
TARGET = ROOT / "clients" / "control.py"
DOCSTRING = (
    '"""'
    + """A typed client of the REST interface, blocking and asyncio.

    with ControlClient() as volition:
        volition.pause("between blocks")
        for calibration in volition.calibrate(CalibrationRequest(seconds=40)):
            print(calibration.state, calibration.collected_s)
        print(calibration.held_out)

Bodies and answers are the server's own models (`server.schemas`). A refusal by the server raises
ProblemError with its problem document; a server that does not answer raises UnreachableError.

Generated from `clients/control_async.py` by `python -m tests.twin`.
"""
    + '"""'
)
EXPORTS = """
from clients.control_async import AsyncControlClient
from clients.rest import ProblemError
"""
ALL = """
__all__ = ["AsyncControlClient", "ControlClient", "ProblemError", "UnreachableError"]
"""
REPLACED = {
    "A client for asyncio": "A blocking client",
    r"\basync (def|with|for)\b": r"\1",
    r"\bawait ": "",
    r"\bAsyncControlClient\b": "ControlClient",
    r"\bAsyncClient\b": "Client",
    r"\bAsyncIterator\b": "Iterator",
    r"\b__a(enter|exit)__\b": r"__\1__",
    r"\baclose\b": "close",
    r"\baconnect_sse\b": "connect_sse",
    r"\baiter_sse\b": "iter_sse",
    r"\basyncio\b": "time",
    r"for (\w+) in (self\.\w+\(.*\)):\n +yield \1\n": r"yield from \2\n",
}


def blocking() -> str:
    """The source of the blocking client."""
    text = SOURCE.read_text()
    for pattern, replacement in REPLACED.items():
        text = re.sub(pattern, replacement, text)
    text = text[text.index("from __future__") :]
    text = text.replace("\nfrom clients.rest import", EXPORTS + "from clients.rest import", 1)
    text = text.replace('T = TypeVar("T")\n', 'T = TypeVar("T")\n' + ALL, 1)
    for command in (["check", "--fix", "--quiet", "--exit-zero", "-"], ["format", "-"]):
        arguments = ["--stdin-filename", str(TARGET)]
        done = subprocess.run(
            [sys.executable, "-m", "ruff", command[0], *arguments, *command[1:]],
            input=f"{DOCSTRING}\n\n{text}" if command[0] == "check" else text,
            text=True, capture_output=True, check=True, cwd=ROOT,
        )  # fmt: skip
        text = done.stdout
    return text


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.twin", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    check = parser.parse_args().check
    text = blocking()
    if check:
        return int(text != TARGET.read_text())
    TARGET.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
