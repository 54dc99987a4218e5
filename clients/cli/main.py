"""The `volition` command. Its verbs are in the other files of this room; they import lazily."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from typing import NoReturn

import typer

from clients.cli import bench, control, learning, live, rig, sessions, studies
from clients.cli.options import styled, terminal
from decoder.errors import VolitionError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Real-time neural decoding: spikes in over LSL, cursor velocity out over ZeroMQ.\n\n"
        "For research. Not a medical device.\n\n"
        "[bold]Start here[/bold]  volition demo"
    ),
)
for group in (sessions, learning, live, control, rig):  # in the order of `volition --help`
    app.add_typer(group.verbs)
app.add_typer(bench.verbs, name="bench")
app.add_typer(studies.verbs, name="study")

ADVICE = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "free some space, or choose another folder",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "choose another folder, or change its permissions",
    errno.EPERM: "choose another folder, or change its permissions",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file, not a folder",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.EADDRINUSE: "choose another address, or end the program that uses it",
}


def main() -> None:
    """Run the command. Errors that a user can act on are printed in one line, with exit code 1.

    This includes all errors of the disk and the network. Other errors are bugs and keep their
    traceback.
    """
    # Set before torch is loaded, for its threads here and in child processes. On a busy machine,
    # spinning threads take the processor from the threads that they wait for: a training step
    # with two threads took 1.2-1.7 s, and 0.2-0.6 s with this. On an idle machine both take 13 ms.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    threading.excepthook = _print_error_of_thread
    try:
        app()
    except VolitionError as error:
        _fail(str(error))
    except OSError as error:
        _fail(_os_error(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # for a second Ctrl-C during exit


def _print_error_of_thread(error: threading.ExceptHookArgs) -> None:
    """Print an OSError of a thread in one line: TensorBoard's thread may see a full disk first."""
    if isinstance(error.exc_value, OSError):
        text = styled(("warning:", "bold yellow"), f" {_os_error(error.exc_value)}")
        terminal(stderr=True).print(text, soft_wrap=True)
    else:
        threading.__excepthook__(error)


def _fail(text: str) -> NoReturn:
    terminal(stderr=True).print(styled(("error:", "bold red"), f" {text}"), soft_wrap=True)
    sys.exit(1)


def _os_error(error: OSError) -> str:
    from decoder.errors import brief

    if error.errno is None:  # raised by a library, with a text of its own
        return brief(error)
    files = [repr(str(name)) for name in (error.filename, error.filename2) if name is not None]
    text = ": ".join([*files, error.strerror or type(error).__name__])
    advice = ADVICE.get(error.errno)
    return brief(f"{text}; {advice}" if advice else text)
