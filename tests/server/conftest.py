"""A server with its daemon, and a simulated subject that the shipped decoder has never seen."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pylsl
import pytest

from clients.benches.recalibration import UNSEEN
from clients.harness.daemon import BUNDLES
from clients.harness.server import Server
from streaming.sessions import format as sessions
from streaming.sessions.session import Session
from tests.rig import DEADLINE_S, Process, running
from tests.server.orders_rig import Rig, World, a_world
from training.data.simulate import simulate

POSSM = BUNDLES / "possm.bundle"
Play = Callable[[Session], AbstractContextManager[Process]]


@pytest.fixture(scope="session")
def unseen() -> Session:
    """Three minutes of an unseen subject, under a name unique to this run."""
    session = simulate(n_units=96, minutes=3.0, subject=UNSEEN, seed=4242)
    from dataclasses import replace

    return replace(session, session_id=f"unseen-{os.getpid()}-{uuid.uuid4().hex[:6]}")


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Replays a session in a loop during the `with` block."""

    @contextmanager
    def playing(session: Session) -> Iterator[Process]:
        path = sessions.save(session, tmp_path / "sessions")
        with running(tmp_path / "replay.log", "replay", str(path), "--loop") as process:
            for kind in ("spikes", "kinematics"):
                name = f"{session.session_id}-{kind}"
                assert pylsl.resolve_byprop("name", name, timeout=DEADLINE_S), process.output()
            yield process

    return playing


@pytest.fixture
def server(tmp_path: Path, unseen: Session) -> Iterator[Server]:
    """A server that waits for the unseen subject's spikes."""
    with Server(POSSM, tmp_path / "home", f"{unseen.session_id}-spikes") as running_server:
        yield running_server


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with a_world() as made:
        yield made


@pytest.fixture
def rig(world: World) -> Iterator[Rig]:
    """A server with a daemon that has nothing to decode, for orders."""
    made = Rig(world)
    made.start_server()
    made.become_quiet()
    yield made
    made.end()
