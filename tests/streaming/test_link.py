"""A pulled cable: the sender can't say goodbye, and all streams recover by themselves."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from clients.subscriber import CursorSubscriber
from tests.link import ROLES, cuttable, running_in
from tests.rig import frames_until, wait_for
from tests.streaming.test_live import assert_safe, is_decoding, stream_of

CLI = "clients"
one_family = pytest.mark.parametrize("tiny", ["poyo"], indirect=True)  # only the link matters


class Lines:
    """Reads the new JSON lines of a process's log."""

    def __init__(self, log: Path) -> None:
        self._log, self._at = log, 0

    def read(self) -> list[dict]:
        new = self._log.read_text()[self._at :]
        new = new[: new.rfind("\n") + 1]
        self._at += len(new)
        return [json.loads(line) for line in new.splitlines() if line.startswith("{")]

    def until_all_come(self, units: list[str]) -> None:
        seen = dict.fromkeys(ROLES, 0)

        def all_came() -> bool:
            for line in self.read():
                if line["units"] == units:
                    for role in ROLES:
                        seen[role] += line["came"][role]
            return all(seen.values())

        wait_for("spikes, kinematics and markers", all_came)

    def until_nothing_comes(self) -> None:
        def silent() -> bool:
            lines = self.read()
            return bool(lines) and not any(any(line["came"].values()) for line in lines)

        wait_for("silence", silent)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("Spikes", ["a", "b"], ["b", "c", "d"]),
        ("SpikeCounts", ["a", "b"], ["b", "c", "d"]),
        ("SpikeEvents", ["0/0", "1/0"], ["0/0", "1/0", "2/0"]),
    ],
)
def test_all_streams_are_read_again_after_a_power_cut_even_with_other_units(
    tmp_path: Path, kind: str, first: list[str], second: list[str]
) -> None:
    """The restarted sender has the same source ids, but new streams."""
    name = f"cut-{uuid.uuid4().hex[:8]}"
    log = tmp_path / "receive.log"
    with cuttable() as link, running_in(link.near, log, "tests.link", "receive", name, kind):
        lines = Lines(log)
        arguments = ("tests.link", "send", name, kind)
        with running_in(link.far, tmp_path / "first.log", *arguments, *first):
            lines.until_all_come(first)
            link.cut()
            lines.until_nothing_comes()
        link.power_cut()
        link.power_up()
        with running_in(link.far, tmp_path / "second.log", *arguments, *second):
            lines.until_all_come(second)


def test_all_streams_are_read_again_when_the_same_sender_returns(tmp_path: Path) -> None:
    name = f"cut-{uuid.uuid4().hex[:8]}"
    log = tmp_path / "receive.log"
    with (
        cuttable() as link,
        running_in(link.near, log, "tests.link", "receive", name, "Spikes"),
        running_in(link.far, tmp_path / "send.log", "tests.link", "send", name, "Spikes", "a"),
    ):
        lines = Lines(log)
        lines.until_all_come(["a"])
        link.cut()
        lines.until_nothing_comes()
        link.forget_connections()
        link.mend()
        lines.until_all_come(["a"])


@one_family
def test_the_daemon_decodes_again_after_a_power_cut_of_the_rig(tiny, tmp_path: Path) -> None:
    address = f"ipc://{tmp_path}/frames"
    decode = (CLI, "decode", str(tiny.bundle.path), "--stream-name", stream_of(tiny))
    replay = (CLI, "replay", str(tiny.session_path), "--wait")
    with (
        cuttable() as link,
        running_in(link.near, tmp_path / "daemon.log", *decode, "--address", address),
        CursorSubscriber(address) as cursor,
    ):
        with running_in(link.far, tmp_path / "first.log", *replay):
            frames = frames_until(cursor, is_decoding)
            link.cut()
            frames += frames_until(cursor, lambda f: f.state == "stale")
        link.power_cut()
        link.power_up()
        with running_in(link.far, tmp_path / "second.log", *replay):
            frames += frames_until(cursor, is_decoding)
    assert_safe(frames)
