"""The thread that ticks, and no other, has real-time priority if the system allows it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from streaming.priority import NICE, PRIORITY, before_others, real_time
from streaming.wire.publish import Publisher
from tests.rig import daemon, wait_for

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setscheduler"), reason="this system has no real-time scheduling"
)


def policy(thread: int = 0) -> int:
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK


def is_allowed() -> bool:
    with real_time() as granted:
        return granted


def test_a_block_runs_in_real_time_and_its_new_threads_do_not() -> None:
    if not is_allowed():
        pytest.skip("real-time priority is forbidden here")
    interval = sys.getswitchinterval()
    policies: list[int] = []
    with real_time():
        assert policy() == os.SCHED_FIFO
        assert os.sched_getparam(0).sched_priority == PRIORITY
        assert sys.getswitchinterval() < interval
        thread = threading.Thread(target=lambda: policies.append(policy()))
        thread.start()
        thread.join()
    assert policies == [os.SCHED_OTHER]
    assert policy() == os.SCHED_OTHER
    assert sys.getswitchinterval() == interval


def test_without_permission_the_thread_is_unchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with real_time(wanted=False) as granted:
        assert (granted, policy()) == (False, os.SCHED_OTHER)
    monkeypatch.setattr("streaming.priority.PRIORITY", 1000)  # too high, so that it is refused
    with real_time() as granted:
        assert (granted, policy()) == (False, os.SCHED_OTHER)


def test_sending_threads_run_at_the_best_niceness() -> None:
    if not is_allowed():
        pytest.skip("other priorities are forbidden here")
    before = set(os.listdir("/proc/self/task"))
    with before_others():
        publisher = Publisher("tcp://127.0.0.1:*")
    sending = {int(tid) for tid in set(os.listdir("/proc/self/task")) - before}
    assert sending
    assert {os.getpriority(os.PRIO_PROCESS, tid) for tid in sending} == {NICE}
    assert {policy(tid) for tid in sending} == {os.SCHED_OTHER}
    assert os.getpriority(os.PRIO_PROCESS, 0) != NICE
    publisher.close()


@pytest.mark.parametrize("wanted", ["true", "false"])
def test_the_daemon_ticks_in_real_time_unless_disabled(
    wanted: str, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOLITION_REALTIME", wanted)
    expected = "real-time" if wanted == "true" and is_allowed() else "ordinary"
    with daemon(tmp_path, tiny.bundle.path, "nobody-streams-this") as (process, _):
        wait_for("ticks", lambda: f"ticking at {expected} priority" in process.output())
        others = [int(tid) for tid in os.listdir(f"/proc/{process.popen.pid}/task")]
        others.remove(process.popen.pid)
        fifo = policy(process.popen.pid) == os.SCHED_FIFO
        assert fifo == (expected == "real-time")
        assert {policy(tid) for tid in others} == {os.SCHED_OTHER}
