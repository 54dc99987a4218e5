"""The readers in other languages: a real daemon's frames, and frames that they must not act on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from pylsl import local_clock

from clients.harness.daemon import free_port
from clients.subscriber import CursorSubscriber
from streaming.wire import messages as wire
from streaming.wire.states import State
from tests import isolation
from tests.rig import daemon, running, wait_for

READERS = Path(__file__).parent.parent.parent / "examples" / "readers"
TOOLS = {  # of each language: its tools, and how Debian names what brings them
    "python": [],
    "c++": ["g++"],
    "javascript": ["node", "npm"],
    "octave": ["octave-cli"],
}
HEADERS = ["zmq.hpp", "nlohmann/json.hpp"]
N_FRAMES = 200
SAME = {"octave": 1e-14}  # relative; its jsondecode rounds the last digit. Others: equal
N_COMMON = 50  # frames that a reader and the subscriber both got; each may miss some

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Reader:
    """A reader in a process of its own, and what it printed."""

    def __init__(self, command: list[str], output: Path) -> None:
        self._output = output
        with output.open("w") as to:
            self.popen = subprocess.Popen(command, stdout=to, stderr=subprocess.STDOUT)

    def lines(self) -> list[str]:
        """The complete lines so far."""
        return self._output.read_text().split("\n")[:-1]

    def last(self) -> str:
        assert self.popen.poll() is None, self._output.read_text()
        return next(reversed(self.lines()), "")

    def velocities(self) -> dict[int, tuple[float, float]]:
        """Velocity by sequence number, of the frames that it acted on."""
        rows = [line.split() for line in self.lines() if not line.startswith("stop:")]
        return {int(seq): (float(x), float(y)) for seq, x, y in rows}


@contextmanager
def reading(language: str, built: Path, address: str, folder: Path) -> Iterator[Reader]:
    commands = {
        "python": [sys.executable, str(READERS / "reader.py")],
        "c++": [str(built / "reader")],
        "javascript": ["node", str(built / "reader.mjs")],
        "octave": ["octave-cli", "--norc", str(READERS / "reader.m")],
    }
    reader = Reader([*commands[language], address], folder / f"{language}.txt")
    try:
        yield reader
    finally:
        reader.popen.kill()
        reader.popen.wait()


@pytest.fixture(scope="session")
def built(run_folder: Path) -> Path:
    """The folder of the compiled C++ reader and the installed JavaScript reader."""
    return isolation.made_once(run_folder, "readers", build)


def build(folder: Path) -> None:
    if missing("c++") is None:
        compile_ = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
        target = ["-o", str(folder / "reader"), "-lzmq"]
        subprocess.run([*compile_, str(READERS / "reader.cpp"), *target], check=True)
    if missing("javascript") is None:
        for name in ("reader.mjs", "package.json"):
            shutil.copy(READERS / name, folder)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund"]
        subprocess.run(install, cwd=folder, check=True, timeout=300)


def missing(language: str) -> str | None:
    """What a reader can't run without; None if it can."""
    if absent := [tool for tool in TOOLS[language] if shutil.which(tool) is None]:
        return f"no {', '.join(absent)}"
    if language == "c++":
        includes = "".join(f"#include <{header}>\n" for header in HEADERS)
        check = ["g++", "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
        found = subprocess.run(check, input=includes, text=True, capture_output=True, check=False)
        return None if found.returncode == 0 else "no cppzmq-dev or nlohmann-json3-dev"
    if language == "octave":
        check = ["octave-cli", "--norc", "--eval", "pkg load zeromq"]
        found = subprocess.run(check, text=True, capture_output=True, check=False)
        return None if found.returncode == 0 else "no octave-zeromq"
    return None


def skip_if_missing(*languages: str) -> None:
    if absent := {name: why for name in languages if (why := missing(name)) is not None}:
        pytest.skip(f"tools are missing: {absent} (.ci/run installs them)")


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
@pytest.mark.parametrize(
    "languages", [("python", "c++", "javascript"), ("octave",)], ids=["three", "octave"]
)
def test_all_readers_get_the_values_of_one_live_stream(
    languages: tuple[str, ...], tiny, built: Path, tmp_path: Path
) -> None:
    skip_if_missing(*languages)
    stream = f"{tiny.session.session_id}-spikes"
    play = ("replay", str(tiny.session_path), "--wait", "--loop")
    with (
        running(tmp_path / "replay.log", *play) as player,
        daemon(tmp_path, tiny.bundle.path, stream) as (process, address),
        CursorSubscriber(address) as cursor,
        ExitStack() as stack,
    ):
        readers = [
            stack.enter_context(reading(name, built, address, tmp_path)) for name in languages
        ]
        true: dict[int, tuple[float, float]] = {}

        def all_have_enough() -> bool:
            while (frame := cursor.receive(timeout_s=0.0)) is not None:
                if frame.valid:
                    true[frame.seq] = frame.velocity
            return all(len(reader.velocities()) >= N_FRAMES for reader in readers)

        wait_for("frames in every reader", all_have_enough)
        player.stop()
        wait_for("stale frames", lambda: all("stop: stale" in reader.lines() for reader in readers))
        process.popen.kill()
        wait_for("silence", lambda: all(reader.last() == "stop: silence" for reader in readers))
        for language, reader in zip(languages, readers, strict=True):
            got = reader.velocities()
            common = sorted(got.keys() & true.keys())
            assert len(common) >= N_COMMON
            expected = pytest.approx(
                np.array([true[seq] for seq in common]), rel=SAME.get(language, 0.0), abs=0.0
            )
            assert np.array([got[seq] for seq in common]) == expected, language
            assert any(velocity != (0.0, 0.0) for velocity in got.values())


@pytest.mark.parametrize("language", TOOLS)
def test_a_reader_stops_at_frames_that_it_must_not_act_on(
    language: str, built: Path, tmp_path: Path
) -> None:
    skip_if_missing(language)
    address = f"tcp://127.0.0.1:{free_port()}"
    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.bind(address)
        with reading(language, built, address, tmp_path) as reader:

            def answer(payload: Callable[[], bytes], expected: str) -> None:
                """Send frames until the reader answers as expected."""

                def answered() -> bool:
                    socket.send(b"cursor.json:" + payload())
                    return reader.last().startswith(expected)

                wait_for(f"{language}: {expected}", answered)

            answer(good, "7 0.25 -0.5")
            answer(lambda: sent(published=local_clock() - 0.5), "stop: an old frame")
            answer(good, "7 0.25 -0.5")
            answer(lambda: sent(schema=2), "stop: another schema")
            answer(lambda: sent(valid=False, state="fault"), "stop: fault")
            answer(lambda: sent(velocity=["fast", "faster"]), "stop: unreadable")
            answer(lambda: b'{"schema": 1', "stop: unreadable")
            answer(lambda: b"[]", "stop: unreadable")
            answer(lambda: sent(started=2.0, published=local_clock() - 900.0), "7 0.25 -0.5")
            wait_for("silence", lambda: reader.last() == "stop: silence")


def good() -> bytes:
    return sent()


def sent(**changes: object) -> bytes:
    """A frame of now, with changes."""
    frame = wire.cursor_frame(
        State.DECODING, started=1.0, seq=7, session="s", decoder="d", velocity=(0.25, -0.5),
        window_end=local_clock(), published=local_clock(),
    )  # fmt: skip
    return json.dumps(json.loads(wire.encode_frame_json(frame)) | changes).encode()
