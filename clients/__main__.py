"""Where the `volition` command begins: Ctrl-C ends it quietly from its first import on."""

try:
    import signal
    import sys
except KeyboardInterrupt:
    raise SystemExit(130) from None

from types import FrameType

LOOK_AGAIN_S = 0.02


def main() -> None:
    """Load the verbs and run the one that was asked for.

    While they load, Ctrl-C ends the process as it ends any program that handles no signal. A verb
    imports more; then Ctrl-C waits for the end of the import. Raised inside it, KeyboardInterrupt
    may be printed, turned into an ImportError, or end the process in a C++ library's abort. Raised
    inside a destructor it is lost; then it comes again.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN_S)
        else:
            raise KeyboardInterrupt

    def see_lost(lost: "sys.UnraisableHookArgs") -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN_S)
        else:
            sys.__unraisablehook__(lost)

    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # started with "&" by a script
    if not is_ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from clients.cli import main as cli

    if not is_ignored:
        signal.signal(signal.SIGALRM, interrupt)
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = see_lost
    cli.main()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
