"""Session files: compatible with torch_brain in both directions, and damage is reported."""

from __future__ import annotations

import datetime
import mmap
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from torch_brain.data import (
    ArrayDict,
    BrainsetDescription,
    Data,
    DeviceDescription,
    Interval,
    IrregularTimeSeries,
    SessionDescription,
    SubjectDescription,
)
from torch_brain.datasets import Dataset, DatasetIndex, SpikingDatasetMixin

from decoder.errors import SessionError
from streaming.sessions import format as sessions
from streaming.sessions.intervals import continuous_domain, duration_s, with_domains
from streaming.sessions.kinematics import velocity_of
from streaming.sessions.session import Session, Trials
from tests.rig import wait_for
from training.data.simulate import simulate
from training.data.windows import window_ends

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def session() -> Session:
    return simulate(n_units=12, minutes=2.0, subject=1, seed=5)


@pytest.fixture
def path(session: Session, tmp_path: Path) -> Path:
    return sessions.save(session, tmp_path)


def with_gaps(session: Session, *gaps: tuple[float, float]) -> Session:
    """`session` without samples during `gaps`, with new domains."""
    times = session.cursor_times
    kept = ~np.any([(times > start) & (times < end) for start, end in gaps], axis=0)
    return with_domains(
        replace(
            session,
            cursor_times=times[kept],
            cursor_pos=session.cursor_pos[kept],
            cursor_vel=session.cursor_vel[kept],
            domain=continuous_domain(times[kept]),
        )
    )


def lie_inside(ends: np.ndarray, window_s: float, intervals: np.ndarray) -> bool:
    """Whether each window with an end in `ends` is inside one of `intervals`."""
    starts_in = ends[:, None] - window_s >= intervals[:, 0] - 1e-9
    ends_in = ends[:, None] <= intervals[:, 1] + 1e-9
    return bool((starts_in & ends_in).any(axis=1).all())


def perich_file(folder: Path) -> Path:
    """A file in the layout of brainsets' perich_miller_population_2018 pipeline."""
    rng = np.random.default_rng(3)
    n_units, end = 7, 120.0
    spike_times = np.sort(rng.uniform(0.0, end, 4000))
    cursor_times = np.arange(0.0, end, 0.01)
    phase = 2 * np.pi * cursor_times[:, None] / np.array([3.0, 4.1])
    trials = Interval(
        start=np.arange(0.5, 117.0, 3.0),
        end=np.arange(0.5, 117.0, 3.0) + 2.7,
        target_id=np.append(np.nan, np.arange(38.0) % 8),
        result=np.array(["R", "F", "R"] * 13),
        go_cue_time_array=rng.uniform(0.0, 1.0, (39, 4)),
        is_valid=np.arange(39) % 3 != 1,
    )
    valid = trials.select_by_mask(np.arange(39) % 10 == 4)
    test = trials.select_by_mask(np.arange(39) % 5 == 2)
    cursor = IrregularTimeSeries(
        timestamps=cursor_times,
        pos=5.0 * np.sin(phase),
        vel=10.0 * np.cos(phase),
        acc=-20.0 * np.sin(phase),
        domain="auto",
    )
    data = Data(
        brainset=BrainsetDescription(
            id="perich_miller_population_2018",
            origin_version="dandi/000688/draft",
            derived_version="1.0.0",
            source="https://dandiarchive.org/dandiset/000688",
            description="monkeys reach",
        ),
        subject=SubjectDescription(id="c", species="NCBITaxon_9544", sex="M"),
        session=SessionDescription(
            id="c_20131003_center_out_reaching",
            recording_date=datetime.datetime(2013, 10, 3),
            task="REACHING",
        ),
        device=DeviceDescription(id="c_20131003", recording_tech="UTAH_ARRAY_SPIKES"),
        spikes=IrregularTimeSeries(
            timestamps=spike_times, unit_index=rng.integers(0, n_units, 4000), domain="auto"
        ),
        units=ArrayDict(
            id=np.array([f"group_M1/elec{i}/unit_{i}" for i in range(n_units)]),
            unit_number=np.arange(n_units),
            count=np.full(n_units, 4000 // n_units),
        ),
        trials=trials,
        movement_phases=Data(
            hold_period=Interval(start=trials.start, end=trials.start + 0.5),
            reach_period=Interval(start=trials.start + 0.5, end=trials.end),
            domain="auto",
        ),
        cursor=cursor,
        cursor_outlier_segments=Interval(start=np.array([7.0]), end=np.array([7.2])),
        domain=cursor.domain,
    )
    data.train_domain = data.domain.difference((valid | test).dilate(0.2))
    data.valid_domain, data.test_domain = valid, test
    path = folder / "c_20131003_center_out_reaching.h5"
    with h5py.File(path, "w") as file:
        data.to_hdf5(file)
    return path


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


def test_domains_are_70_10_20_in_time_order(session: Session) -> None:
    total = duration_s(session.domain)
    shares = [duration_s(session.intervals(split)) / total for split in ("train", "valid", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert session.train_domain[-1, 1] <= session.valid_domain[0, 0]
    assert session.valid_domain[-1, 1] <= session.test_domain[0, 0]


def test_cuts_do_not_split_a_trial(session: Session) -> None:
    for cut in (session.valid_domain[0, 0], session.test_domain[0, 0]):
        start, end = session.trials.intervals.T
        assert not ((start < cut) & (cut < end)).any()


def test_cuts_do_not_split_overlapping_trials(session: Session) -> None:
    starts = np.arange(0.0, 110.0, 1.0)
    overlapping = np.stack([starts, starts + np.where(starts % 10 < 9, 1.5, 0.5)], axis=1)
    cut = with_domains(replace(session, trials=Trials(intervals=overlapping)))
    for time in (cut.valid_domain[0, 0], cut.test_domain[0, 0]):
        assert not ((overlapping[:, 0] < time) & (time < overlapping[:, 1])).any()


def test_a_cut_between_trials_does_not_move(session: Session) -> None:
    few = Trials(intervals=np.array([[1.0, 4.0], [9.0, 12.0]]))
    cut = with_domains(replace(session, trials=few))
    assert duration_s(cut.valid_domain) == pytest.approx(0.1 * duration_s(session.domain))


def test_a_trial_as_long_as_the_session_does_not_prevent_domains(session: Session) -> None:
    cut = with_domains(replace(session, trials=Trials(intervals=session.domain)))
    assert duration_s(cut.train_domain) == pytest.approx(0.7 * duration_s(session.domain))


def test_windows_never_span_a_gap_or_an_edge(session: Session) -> None:
    gaps = ((20.0, 22.0), (61.0, 61.5), (100.0, 104.0))
    gappy = with_gaps(session, *gaps)
    for split in ("train", "valid", "test"):
        ends = window_ends(gappy, split, 1.0, 0.037)
        assert len(ends)
        assert lie_inside(ends, 1.0, gappy.intervals(split))
        for start, end in gaps:
            assert not ((ends > start + 0.01) & (ends - 1.0 < end - 0.01)).any()


def test_gaps_in_stored_domains_are_cut_out_and_noted(session: Session, tmp_path: Path) -> None:
    gappy = with_gaps(session, (20.0, 22.0))
    path = sessions.save(
        replace(gappy, domain=session.domain, train_domain=session.train_domain), tmp_path
    )
    loaded = sessions.load(path)
    np.testing.assert_allclose(loaded.train_domain[:, 0], [0.0, 21.995])
    np.testing.assert_allclose(loaded.train_domain[:, 1], [20.005, session.train_domain[0, 1]])
    assert "1 gaps in the kinematics cut out of the domains" in loaded.notes


@pytest.mark.parametrize("n_blocks", [2, 3])
def test_trials_that_are_blocks_do_not_move_the_cuts_and_are_noted(
    session: Session, n_blocks: int
) -> None:
    edges = np.linspace(session.domain[0, 0], session.domain[0, 1], n_blocks + 1)
    blocks = Trials(intervals=np.stack([edges[:-1], edges[1:]], axis=1))
    cut = with_domains(replace(session, trials=blocks))
    shares = [duration_s(cut.intervals(part)) for part in ("train", "valid", "test")]
    assert np.array(shares) / sum(shares) == pytest.approx([0.7, 0.1, 0.2])
    assert "trials are too long to cut between them; domains are cut by time" in cut.notes


def test_a_tiny_domain_is_refused(session: Session) -> None:
    with pytest.raises(SessionError, match="can't be cut into 70/10/20"):
        with_domains(replace(session, domain=np.array([[1.0, 1.000001]])))


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
