"""Runs the decode daemon, set up by VOLITION_… variables; `volition decode` also has options.

    python -m streaming.daemon decode BUNDLE

A server starts its daemon this way, and recognizes a running one by the word `decode`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import ValidationError

from decoder.errors import SettingsError, VolitionError, invalid_fields
from streaming.daemon.loop import run
from streaming.daemon.settings import DaemonSettings
from streaming.logs import end


def main(arguments: list[str]) -> None:
    """Decode until SIGINT or SIGTERM. An error is one line, with exit code 1."""
    try:
        if len(arguments) != 2 or arguments[0] != "decode":
            raise SettingsError("expected: python -m streaming.daemon decode BUNDLE")
        run(Path(arguments[1]), DaemonSettings())
    except ValidationError as error:
        end(invalid_fields(error))
    except VolitionError as error:
        end(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
