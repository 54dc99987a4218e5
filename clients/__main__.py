"""Entry point of the `volition` command. Ctrl-C ends it quietly from its first import on."""

try:
    import signal
    import sys
except KeyboardInterrupt:
    raise SystemExit(130) from None

from types import FrameType

LOOK_AGAIN_S = 0.02


def main() -> None:
    """Load the verbs and run one.

    While the verbs load, Ctrl-C ends the process like any program without a signal handler. Later
    imports, inside a verb, delay Ctrl-C until they end: a KeyboardInterrupt inside an import may be
    printed, become an ImportError, or make a C++ library abort. One inside a destructor is lost, so
    it is raised again.
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
