"""Where the `volition` command begins: Ctrl-C ends it quietly from its first import on."""

try:
    import signal
except KeyboardInterrupt:
    raise SystemExit(130) from None

from types import FrameType


def main() -> None:
    """Load the verbs and run the one that was asked for.

    While they load, Ctrl-C ends the process as it ends any program that handles no signal: Python
    would raise KeyboardInterrupt inside whatever import is under way, which then prints it. Later a
    verb's own imports may still be cut short, and a library that tries one again calls it an
    ImportError.
    """
    pressed = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(number, frame)

    is_ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # started with "&" by a script
    if not is_ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from clients import cli

    if not is_ignored:
        signal.signal(signal.SIGINT, interrupt)
    try:
        cli.main()
    except ImportError:
        if not pressed:
            raise
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
