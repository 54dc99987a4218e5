"""Session files: compatible with torch_brain in both directions, and damage is reported."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch_brain.datasets import Dataset, DatasetIndex, SpikingDatasetMixin

from decoder.errors import SessionError
from streaming.sessions import format as sessions
from streaming.sessions.kinematics import velocity_of
from streaming.sessions.session import Session
from tests.rig import wait_for
from tests.streaming.perich import perich_file
from tests.streaming.test_domains import lie_inside, with_gaps
from training.data.simulate import simulate
from training.data.windows import window_ends

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=12, minutes=2.0, subject=1, seed=5)


@pytest.fixture
def path(session: Session, tmp_path: Path) -> Path:
    return sessions.save(session, tmp_path)


def test_a_saved_session_loads_unchanged(session: Session, path: Path) -> None:
    loaded = sessions.load(path)
    for field in fields(Session):
        if field.name not in ("trials", "notes"):
            np.testing.assert_array_equal(getattr(loaded, field.name), getattr(session, field.name))
    np.testing.assert_array_equal(loaded.trials.intervals, session.trials.intervals)
    np.testing.assert_array_equal(loaded.trials.target_pos, session.trials.target_pos)


def test_a_session_with_gaps_loads_unchanged(session: Session, tmp_path: Path) -> None:
    gappy = with_gaps(session, (20.0, 22.0), (61.0, 61.5))
    loaded = sessions.load(sessions.save(gappy, tmp_path))
    for split in ("all", "train", "valid", "test"):
        np.testing.assert_array_equal(loaded.intervals(split), gappy.intervals(split))
    assert not loaded.notes


def test_torch_brain_opens_and_slices_our_files(session: Session, path: Path) -> None:
    dataset = Dataset(path.parent)
    sample = dataset[DatasetIndex(session.session_id, 30.0, 31.0)]
    inside = session.spikes_between(30.0, 31.0)
    np.testing.assert_allclose(sample.spikes.timestamps, session.spike_times[inside] - 30.0)
    np.testing.assert_array_equal(sample.spikes.unit_index, session.spike_units[inside])
    assert sample.cursor.vel.shape == (100, 2)


def test_torch_brain_reads_our_unit_ids_and_domains(session: Session, path: Path) -> None:
    class Spiking(SpikingDatasetMixin, Dataset):
        spiking_dataset_mixin_uniquify_unit_ids = True

    dataset = Spiking(path.parent)
    ids = [f"{session.session_id}/{unit_id}" for unit_id in session.unit_ids]
    assert dataset.get_unit_ids() == sorted(ids)
    recording = dataset.get_recording(session.session_id)
    for split in ("train", "valid", "test"):
        domain = getattr(recording, f"{split}_domain")
        edges = np.stack([domain.start, domain.end], axis=1)
        np.testing.assert_array_equal(edges, session.intervals(split))


def test_torch_brain_slices_a_session_with_gaps(session: Session, tmp_path: Path) -> None:
    gappy = with_gaps(session, (20.0, 22.0))
    sessions.save(gappy, tmp_path)
    sample = Dataset(tmp_path)[DatasetIndex(gappy.session_id, 19.5, 22.5)]
    assert len(sample.domain) == 2
    n_spikes = gappy.spikes_between(19.5, 22.5)
    assert len(sample.spikes) == n_spikes.stop - n_spikes.start


def test_a_file_of_the_perich_miller_brainset_opens(tmp_path: Path) -> None:
    loaded = sessions.load(perich_file(tmp_path))
    assert loaded.session_id == "c_20131003_center_out_reaching"
    assert loaded.subject_id == "c"
    assert loaded.unit_ids[3] == "group_M1/elec3/unit_3"
    assert loaded.cursor_vel.shape == (12000, 2)
    assert len(loaded.trials.intervals) == 39
    assert len(loaded.notes) == 1
    assert "too fast for m/s" in loaded.notes[0]


def test_stored_domains_of_many_small_intervals_are_kept(tmp_path: Path) -> None:
    path = perich_file(tmp_path)
    loaded = sessions.load(path)
    with h5py.File(path) as file:
        for split in ("train", "valid", "test"):
            stored = np.stack([file[f"{split}_domain/{edge}"][:] for edge in ("start", "end")], 1)
            np.testing.assert_array_equal(loaded.intervals(split), stored)
    assert len(loaded.test_domain) > 5
    ends = window_ends(loaded, "test", 1.0, 0.1)
    assert lie_inside(ends, 1.0, loaded.test_domain)


def test_overlapping_intervals_of_a_stored_domain_are_merged(session: Session, path: Path) -> None:
    start, end = session.test_domain[0]
    rewrite(path, "test_domain/start", np.array([start, start + 2.0]))
    rewrite(path, "test_domain/end", np.array([start + 3.0, end]))
    np.testing.assert_array_equal(sessions.load(path).test_domain, session.test_domain)


def test_gaps_in_stored_domains_are_cut_out_and_noted(session: Session, tmp_path: Path) -> None:
    gappy = with_gaps(session, (20.0, 22.0))
    path = sessions.save(
        replace(gappy, domain=session.domain, train_domain=session.train_domain), tmp_path
    )
    loaded = sessions.load(path)
    np.testing.assert_allclose(loaded.train_domain[:, 0], [0.0, 21.995])
    np.testing.assert_allclose(loaded.train_domain[:, 1], [20.005, session.train_domain[0, 1]])
    assert "1 gaps in the kinematics cut out of the domains" in loaded.notes


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no such file; expected a session"):
        sessions.load(tmp_path / "none.h5")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("spikes, please\n" * 100)
    with pytest.raises(SessionError, match="not a readable HDF5 file"):
        sessions.load(tmp_path / "text.h5")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused_with_a_clear_error(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SessionError, match="may be truncated"):
        sessions.load(path)


@pytest.mark.parametrize("group", ["spikes", "units", "cursor"])
def test_a_missing_group_is_named(path: Path, group: str) -> None:
    with h5py.File(path, "r+") as file:
        del file[group]
    with pytest.raises(SessionError, match=f"{group}.*expected spikes, units and cursor"):
        sessions.load(path)


def rewrite(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = values


def read(path: Path, name: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file[name][:]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cursor/timestamps", "kinematics timestamps have NaN"),
        ("spikes/timestamps", "spike times have NaN"),
        ("train_domain/start", "train_domain has NaN"),
    ],
)
def test_nan_is_refused_and_located(path: Path, name: str, message: str) -> None:
    values = read(path, name)
    values[len(values) // 2] = np.nan
    rewrite(path, name, values)
    with pytest.raises(SessionError, match=message):
        sessions.load(path)


@pytest.mark.parametrize("index", [-1, 12])
def test_a_unit_index_out_of_range_is_refused(path: Path, index: int) -> None:
    units = read(path, "spikes/unit_index")
    units[5] = index
    rewrite(path, "spikes/unit_index", units)
    with pytest.raises(SessionError, match="there are 12 units"):
        sessions.load(path)


@pytest.mark.parametrize("also_without", [(), ("cursor/vel",)])
def test_kinematics_of_another_length_are_refused(
    path: Path, also_without: tuple[str, ...]
) -> None:
    rewrite(path, "cursor/pos", read(path, "cursor/pos")[:-10])
    with h5py.File(path, "r+") as file:
        for name in also_without:
            del file[name]
    with pytest.raises(SessionError, match=r"cursor pos has shape .* timestamps; expected"):
        sessions.load(path)


def test_more_spike_times_than_unit_indices_are_refused(path: Path) -> None:
    rewrite(path, "spikes/timestamps", np.flip(read(path, "spikes/timestamps")))
    rewrite(path, "spikes/unit_index", read(path, "spikes/unit_index")[:-1])
    with pytest.raises(SessionError, match="expected one of each per spike"):
        sessions.load(path)


def test_unsorted_spikes_are_sorted_with_their_units_and_noted(
    session: Session, path: Path
) -> None:
    shuffled = np.random.default_rng(0).permutation(len(session.spike_times))
    for name in ("spikes/timestamps", "spikes/unit_index"):
        rewrite(path, name, read(path, name)[shuffled])
    loaded = sessions.load(path)
    np.testing.assert_array_equal(loaded.spike_times, session.spike_times)
    np.testing.assert_array_equal(loaded.spike_units, session.spike_units)
    assert "spikes were out of order and have been sorted" in loaded.notes


def test_repeated_kinematics_times_are_refused(path: Path) -> None:
    times = read(path, "cursor/timestamps")
    times[7] = times[6]
    rewrite(path, "cursor/timestamps", times)
    with h5py.File(path, "r+") as file:
        del file["cursor/vel"]
    with pytest.raises(SessionError, match="timestamps don't ascend"):
        sessions.load(path)


def test_a_missing_velocity_is_the_gradient_of_position(session: Session, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["cursor/vel"]
    loaded = sessions.load(path)
    assert "velocity is the gradient of position" in loaded.notes
    assert np.abs(loaded.cursor_vel - session.cursor_vel).mean() < 1e-3


def test_the_gradient_does_not_span_a_gap() -> None:
    times = np.concatenate([np.arange(0, 1, 0.01), np.arange(2, 3, 0.01)])
    pos = np.repeat([[0.0, 0.0], [5.0, -5.0]], 100, axis=0)
    assert (velocity_of(pos, times) == 0.0).all()


def test_missing_domains_are_cut_from_the_kinematics(session: Session, path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["valid_domain"]
    loaded = sessions.load(path)
    np.testing.assert_array_equal(loaded.valid_domain, session.valid_domain)
    assert "no domains stored; cut 70/10/20 in time order" in loaded.notes


def test_trials_without_a_finite_start_are_left_out(session: Session, path: Path) -> None:
    starts = read(path, "trials/start")
    starts[2] = np.nan
    rewrite(path, "trials/start", starts)
    loaded = sessions.load(path)
    assert len(loaded.trials.intervals) == len(session.trials.intervals) - 1
    np.testing.assert_array_equal(loaded.trials.target_pos[2], session.trials.target_pos[3])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("spikes", np.arange(3)),
        ("cursor", np.arange(3)),
        ("cursor/timestamps", 1.0),
        ("cursor/timestamps", np.empty(0)),
        ("cursor/pos", np.array([b"text"])),
        ("units/id", 4),
        ("trials/end", np.arange(2.0)),
    ],
)
def test_a_foreign_layout_raises_session_error(path: Path, name: str, values: object) -> None:
    rewrite(path, name, values)
    with pytest.raises(SessionError):
        sessions.load(path)


def test_non_ascii_unit_ids_load_unchanged_and_open_in_torch_brain(
    session: Session, tmp_path: Path
) -> None:
    odd = ("µ0", "é\\x41", "\\", "电极", "🧠", r"a\xb5", *session.unit_ids[6:])
    path = sessions.save(replace(session, unit_ids=odd), tmp_path)
    assert sessions.load(path).unit_ids == odd
    stored = Dataset(tmp_path).get_recording(session.session_id).units.id
    assert stored[0] == r"\xb50"
    assert list(stored[6:]) == list(odd[6:])


@pytest.mark.parametrize(
    "odd", ["../elsewhere", "", "a/b", "a\0b", "x" * 201, "电" * 70, "\ud800", "."]
)
def test_a_session_id_that_is_not_a_file_name_is_refused(
    session: Session, tmp_path: Path, odd: str
) -> None:
    with pytest.raises(SessionError, match="can't be a file name"):
        sessions.save(replace(session, session_id=odd), tmp_path / "inside")
    assert not (tmp_path / "inside").exists()


def test_the_longest_session_id_is_written_and_read(session: Session, tmp_path: Path) -> None:
    for name in ("x" * 200, "电" * 66):
        assert (
            sessions.load(sessions.save(replace(session, session_id=name), tmp_path)).session_id
            == name
        )


@pytest.mark.parametrize("shape", [(3, 2), (5000, 5000), (200_000,)])
def test_unit_ids_of_a_wrong_shape_are_refused(path: Path, shape: tuple[int, ...]) -> None:
    rewrite(path, "units/id", np.zeros(shape))
    with pytest.raises(SessionError, match="expected one per unit"):
        sessions.load(path)


def test_a_folder_without_sessions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="no sessions"):
        sessions.find(tmp_path)


def test_a_full_disk_leaves_the_earlier_file_and_no_partial(path: Path) -> None:
    before = path.read_bytes()
    code = (
        "import resource, sys; from dataclasses import replace; "
        "from streaming.sessions import format as sessions\n"
        "from decoder.errors import SessionError\n"
        f"session = sessions.load({str(path)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n    sessions.save(session, sys.argv[1])\n"
        "except SessionError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(path.parent)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "can't be written" in done.stdout
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_save_killed_midway_leaves_the_earlier_file_and_the_next_save_clears_up(
    session: Session, path: Path
) -> None:
    code = (
        "import sys; from streaming.sessions import format as sessions\n"
        f"session = sessions.load({str(path)!r})\n"
        "while True:\n    sessions.save(session, sys.argv[1])\n"
    )
    command = [sys.executable, "-c", code, str(path.parent)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_for("a save in progress", lambda: list(path.parent.glob(".*.partial")))
        finally:
            process.kill()
    assert sessions.find(path.parent) == [path]
    np.testing.assert_array_equal(sessions.load(path).spike_times, session.spike_times)
    sessions.save(session, path.parent)
    assert list(path.parent.iterdir()) == [path]


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is mapped from a file."""
    base = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return isinstance(base, mmap.mmap)


def test_a_mapped_session_equals_the_one_in_memory(tmp_path: Path) -> None:
    session = simulate(n_units=8, minutes=1.0, subject=1, seed=4)
    path = sessions.save(session, tmp_path)
    mapped = sessions.load(path, lazy=True)
    read = sessions.load(path)
    assert is_mapped(mapped.spike_times)
    assert is_mapped(mapped.cursor_vel)
    assert not is_mapped(read.spike_times)
    for name in ("spike_times", "spike_units", "cursor_times", "cursor_pos", "cursor_vel"):
        np.testing.assert_array_equal(getattr(mapped, name), getattr(read, name))
    at = np.array([3.0, 3.004, 20.0, 41.7])
    np.testing.assert_array_equal(mapped.velocity_at(at), read.velocity_at(at))


def test_compressed_sessions_are_read_instead_of_mapped(tmp_path: Path) -> None:
    path = sessions.save(simulate(n_units=8, minutes=1.0, subject=1, seed=4), tmp_path)
    with h5py.File(path, "r+") as file:
        times = file["spikes/timestamps"][:]
        del file["spikes/timestamps"]
        file["spikes"].create_dataset("timestamps", data=times, compression="gzip")
    np.testing.assert_array_equal(sessions.load(path, lazy=True).spike_times, times)


def test_velocity_is_linear_between_samples_and_constant_outside() -> None:
    session = simulate(n_units=8, minutes=1.0, subject=1, seed=4)
    at = np.array([-1.0, 0.0, 12.345, 59.99, 99.0])
    for axis in (0, 1):
        np.testing.assert_allclose(
            session.velocity_at(at)[:, axis],
            np.interp(at, session.cursor_times, session.cursor_vel[:, axis]),
        )
    assert session.velocity_at(np.empty(0)).shape == (0, 2)
