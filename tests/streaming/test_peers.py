"""Streams are found on networks without multicast."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from clients.subscriber import CursorSubscriber
from streaming.sessions import format as sessions
from tests.rig import DEADLINE_S, daemon, frames_until, running
from tests.streaming.test_live import is_decoding, stream_of
from tests.streaming.test_record import record_arguments

MACHINE = "[multicast]\nResolveScope = machine\n"
PEERS = "[multicast]\nAddressesOverride = {192.0.2.1}\n"  # an unused address
one_family = pytest.mark.parametrize("tiny", ["poyo"], indirect=True)


def configured(folder: Path, scope: str) -> str:
    """Write an `lsl_api.cfg` with a session and ports of its own. Returns its path."""
    first = int(np.random.default_rng().integers(20000, 30000))
    path = folder / "lsl_api.cfg"
    path.write_text(
        f"{scope}[ports]\nMulticastPort = {first}\nBasePort = {first + 1}\nPortRange = 24\n"
        f"[lab]\nKnownPeers = {{127.0.0.1}}\nSessionID = {uuid.uuid4().hex}\n"
    )
    return str(path)


@one_family
@pytest.mark.parametrize(
    "scope",
    [pytest.param(MACHINE, marks=pytest.mark.slow), PEERS],
    ids=["machine", "peers"],
)
def test_streams_are_found_without_multicast(tiny, tmp_path: Path, monkeypatch, scope: str) -> None:
    monkeypatch.setenv("LSLAPICFG", configured(tmp_path, scope))  # for the processes below
    played = ("replay", str(tiny.session_path), "--lead", "6")
    with (
        running(tmp_path / "replay.log", *played),
        running(tmp_path / "record.log", *record_arguments(tiny, tmp_path, "--seconds", "5")) as r,
        daemon(tmp_path, tiny.bundle.path, stream_of(tiny)) as (_, address),
        CursorSubscriber(address) as cursor,
    ):
        frames_until(cursor, is_decoding)
        assert r.popen.wait(DEADLINE_S) == 0, r.output()
    recorded = sessions.load(tmp_path / "today.h5")
    assert recorded.unit_ids == tiny.session.unit_ids
    assert recorded.trials is not None, "markers are recorded too"


@pytest.mark.parametrize("scope", [MACHINE, PEERS], ids=["machine", "peers"])
def test_a_stream_by_its_type_alone_is_found_without_multicast(
    tmp_path: Path, monkeypatch, scope: str
) -> None:
    """Like the search of a calibration, the NDS example and a simulated participant."""
    monkeypatch.setenv("LSLAPICFG", configured(tmp_path, scope))
    name = f"alone-{uuid.uuid4().hex[:8]}"
    script = tmp_path / "look.py"
    script.write_text(_LOOK)
    done = subprocess.run(
        [sys.executable, str(script), name],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == [f"{name}-s", f"{name}-k", f"{name}-m"]


_LOOK = """
import json, sys
import pylsl
from streaming.inlets.kinematics import find_kinematics, find_markers
from streaming.inlets.spikes import StreamQuery, find_spikes
from streaming.recording.outlets import kinematics_info, markers_info, spikes_info

name = sys.argv[1]
outlets = [
    pylsl.StreamOutlet(info)
    for info in (
        spikes_info(f"{name}-s", name, ["a"]),
        kinematics_info(f"{name}-k", name, ["pos_x", "pos_y"], 50.0),
        markers_info(f"{name}-m", name),
    )
]
found = [
    find_spikes(StreamQuery(), 0.3).name,
    find_kinematics(None, 0.3).name,
    find_markers(None, 0.3).name,
]
print(json.dumps(found))
"""
