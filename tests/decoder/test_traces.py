"""Velocities of held-out data on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decoder.traces import Traces, TracesError

RNG = np.random.default_rng(0)
TRACES = Traces(
    times=np.arange(100) * 0.05,
    true=RNG.normal(size=(100, 2)),
    candidate=RNG.normal(size=(100, 2)),
    active=RNG.normal(size=(2, 100)).T,  # not contiguous
    tick_s=0.05,
)


@pytest.mark.parametrize("missing", [(), ("true",), ("active",), ("true", "active")])
def test_traces_are_read_as_they_were_written(tmp_path: Path, missing: tuple[str, ...]) -> None:
    written = replace(TRACES, **dict.fromkeys(missing))
    written.save(tmp_path / "traces")
    read = Traces.load(tmp_path / "traces")
    assert read.tick_s == 0.05
    for name in ("times", "true", "candidate", "active"):
        if name in missing:
            assert getattr(read, name) is None
        else:
            assert np.allclose(getattr(read, name), getattr(TRACES, name), atol=1e-6), name
    assert [path.name for path in tmp_path.iterdir()] == ["traces"]


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "traces"
    with pytest.raises(TracesError, match="not readable"):
        Traces.load(path)
    TRACES.save(path)
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:200],
        whole[:-1],
        b"\xff" * 100,
        whole.replace(b"tick_s", b"tock_s"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(TracesError, match=str(path)):
            Traces.load(path)


def test_velocities_must_be_as_many_as_the_times(tmp_path: Path) -> None:
    replace(TRACES, candidate=np.zeros((99, 2))).save(tmp_path / "traces")
    with pytest.raises(TracesError, match=r"at 100 times, expected \(100, 2\)"):
        Traces.load(tmp_path / "traces")


def test_a_full_disk_is_an_error_that_leaves_nothing(full_disk: Path) -> None:
    (full_disk / "ballast").write_bytes(bytes(1_040_000))
    with pytest.raises(TracesError, match="free some space"):
        replace(TRACES, times=np.arange(10_000.0), candidate=np.zeros((10_000, 2))).save(
            full_disk / "traces"
        )
    assert [path.name for path in full_disk.iterdir()] == ["ballast"]
