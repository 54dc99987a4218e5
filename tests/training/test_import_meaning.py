"""Imports never guess silently: units, effectors, axes, targets, names, clocks."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from pynwb import NWBFile
from torch_brain.data import RegularTimeSeries
from typer.testing import CliRunner

from clients.cli.main import app
from decoder.errors import ImportFailedError, SessionError, VolitionError
from streaming.sessions import format as sessions
from streaming.sessions.intervals import duration_s, within
from streaming.sessions.session import Session
from tests.training.nwb_files import END_S, POS, SPIKES, TIMES, VEL, position, velocity, write
from training.data.simulate import simulate
from training.importers import import_recording


def said(session: Session, what: str) -> bool:
    return any(what in note for note in session.notes)


@pytest.mark.parametrize(
    ("word", "scale"),
    [
        ("m", 1), ("meters", 1), ("Metres", 1), ("cm", 100), ("centimeters", 100),
        ("centimetre", 100), ("mm", 1000), ("millimeters", 1000), ("um", 1e6), ("inch", 1 / 0.0254),
    ],
)  # fmt: skip
@pytest.mark.parametrize("per", ["/s", " per second", "/sec"])
def test_the_unit_of_a_series_is_used(tmp_path: Path, word: str, scale: float, per: str) -> None:
    path = write(
        tmp_path / "s.nwb",
        position(POS * scale, unit=word),
        velocity(VEL * scale, unit=word + per),
    )
    session = import_recording(path)
    np.testing.assert_allclose(session.cursor_pos, POS, atol=1e-12)
    np.testing.assert_allclose(session.cursor_vel, VEL, atol=1e-12)
    assert said(session, f"converted from {word}") == (scale != 1)


@pytest.mark.parametrize("word", ["pixels", "unknown", "", "n/a", "deg", "counts", "V"])
@pytest.mark.parametrize("which", ["position", "velocity"])
def test_a_series_without_a_unit_of_length_needs_the_option(
    tmp_path: Path, word: str, which: str
) -> None:
    series = {
        "position": position(POS * 400, unit=word),
        "velocity": velocity(VEL * 400, unit=f"{word}/s" if word else ""),
    }[which]
    path = write(tmp_path / "s.nwb", series)
    with pytest.raises(ImportFailedError, match=r"expected a unit of .*--unit"):
        import_recording(path)
    session = import_recording(path, unit="0.0025")
    np.testing.assert_allclose(session.cursor_vel[2:-2], VEL[2:-2], atol=1e-4)
    assert said(session, "unit 0.0025 from --unit")


def test_a_position_in_arbitrary_units_is_imported_unchanged_and_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(POS * 1000, unit="a.u."))
    session = import_recording(path)
    np.testing.assert_array_equal(session.cursor_pos, POS * 1000)
    assert said(session, "arbitrary units ('a.u.')")


def test_conversion_and_offset_are_applied_before_the_unit(tmp_path: Path) -> None:
    stored = (POS * 100 - 3.0) / 0.5
    path = write(tmp_path / "s.nwb", position(stored, unit="cm", conversion=0.5, offset=3.0))
    np.testing.assert_allclose(import_recording(path).cursor_pos, POS, atol=1e-12)


def test_a_conversion_to_metres_with_a_unit_of_centimetres_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(POS * 100, unit="cm", conversion=0.01))
    with pytest.raises(ImportFailedError, match="are the converted values in SI units or in cm"):
        import_recording(path)
    np.testing.assert_allclose(import_recording(path, unit="m").cursor_pos, POS, atol=1e-12)


@pytest.mark.parametrize("scale", [100, 1000])
def test_implausible_speeds_and_workspaces_need_a_unit(tmp_path: Path, scale: int) -> None:
    path = write(tmp_path / "s.nwb", position(POS * scale), velocity(VEL * scale))
    with pytest.raises(ImportFailedError, match=r"too much for a hand .*--unit"):
        import_recording(path)
    unit = {100: "cm", 1000: "mm"}[scale]
    np.testing.assert_allclose(import_recording(path, unit=unit).cursor_pos, POS, atol=1e-12)
    assert said(import_recording(path, unit="m"), "too much for a hand")


def test_velocity_in_another_unit_than_the_positions_gradient_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), velocity(VEL / 100))
    with pytest.raises(ImportFailedError, match=r"0\.01 times the gradient.*--velocity none"):
        import_recording(path)
    session = import_recording(path, velocity="none")
    np.testing.assert_allclose(session.cursor_vel[2:-2], VEL[2:-2], atol=1e-4)


TURNED = np.stack([-POS[:, 1], POS[:, 0]], axis=1)
TURNED_VEL = np.stack([-VEL[:, 1], VEL[:, 0]], axis=1)


@pytest.mark.parametrize("other", ["hand", "finger", "eye", "joystick", "Hand"])
def test_position_and_velocity_belong_to_one_effector(tmp_path: Path, other: str) -> None:
    path = write(
        tmp_path / "s.nwb",
        position(), position(TURNED, f"{other}_pos"), velocity(TURNED_VEL, f"{other}_vel"),
    )  # fmt: skip
    session = import_recording(path)
    np.testing.assert_array_equal(session.cursor_pos, POS)
    np.testing.assert_allclose(session.cursor_vel[2:-2], VEL[2:-2], atol=1e-4)
    assert said(session, "series of other effectors not imported")
    assert said(session, f"{other}_vel")
    session = import_recording(path, velocity=f"{other}_vel")
    np.testing.assert_array_equal(session.cursor_pos, TURNED)


def test_an_eye_is_never_combined_with_a_hand(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(TURNED, "eye_pos"), velocity(name="hand_vel"))
    session = import_recording(path)
    np.testing.assert_array_equal(session.cursor_vel, VEL)
    assert (session.cursor_pos == 0).all()
    assert said(session, "series of other effectors not imported: eye_pos")


def test_two_effectors_chosen_by_option_are_imported_and_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), velocity(TURNED_VEL, "hand_vel"))
    session = import_recording(path, position="cursor_pos", velocity="hand_vel")
    np.testing.assert_array_equal(session.cursor_vel, TURNED_VEL)
    assert said(session, "position from cursor_pos and velocity from hand_vel, of different")
    assert said(session, "doesn't follow cursor_pos")


def test_a_raw_copy_in_acquisition_does_not_replace_the_series(tmp_path: Path) -> None:
    raw = position(POS * 3, "cursor_pos")
    session = import_recording(write(tmp_path / "s.nwb", position(), acquisition=[raw]))
    np.testing.assert_array_equal(session.cursor_pos, POS)
    assert said(session, "acquisition/cursor_pos")


COLUMNS_OF = {
    "z, -x, -y": np.column_stack([0 * TIMES + 0.3, -POS]),
    "time, x, y": np.column_stack([TIMES, POS]),
    "time [s], x [m], y [m], x of the other LED [m], y of the other LED [m]": np.column_stack(
        [TIMES, POS, POS + 0.01]
    ),
    "y, x": POS[:, ::-1],
    "Cursor position (x, y, z)": np.column_stack([POS, 0 * TIMES]),
    "minus y, minus x": -POS[:, ::-1],
}


five_columns = pytest.mark.filterwarnings("ignore:.*[Ss]hape")


@five_columns
@pytest.mark.parametrize("names", COLUMNS_OF)
@pytest.mark.parametrize("where", ["description", "comments"])
def test_columns_are_found_by_the_names_in_the_file(tmp_path: Path, names: str, where: str) -> None:
    path = write(tmp_path / "s.nwb", position(COLUMNS_OF[names], **{where: names}))
    session = import_recording(path)
    np.testing.assert_array_equal(session.cursor_pos, POS)
    assert said(session, "x and y were taken")


@five_columns
@pytest.mark.parametrize(
    ("data", "columns"),
    [
        (COLUMNS_OF["z, -x, -y"], (-2, -3)),
        (np.column_stack([TIMES, POS, POS + 0.01]), (2, 3)),
        (np.column_stack([1000 * TIMES, POS, POS + 0.01]), (2, 3)),
    ],
)
def test_columns_without_names_need_the_option(
    tmp_path: Path, data: np.ndarray, columns: tuple[int, int]
) -> None:
    path = write(tmp_path / "s.nwb", position(data))
    with pytest.raises(ImportFailedError, match=r"names which are x and y.*--columns"):
        import_recording(path)
    np.testing.assert_array_equal(import_recording(path, columns=columns).cursor_pos, POS)


@pytest.mark.parametrize("times", [TIMES, 1000 * TIMES, TIMES + 7.5])
def test_a_time_column_next_to_x_and_y_is_left_out(tmp_path: Path, times: np.ndarray) -> None:
    session = import_recording(write(tmp_path / "s.nwb", position(np.column_stack([times, POS]))))
    np.testing.assert_array_equal(session.cursor_pos, POS)
    assert said(session, "column 1 is time")


def test_time_and_one_axis_are_not_x_and_y(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(np.column_stack([TIMES, POS[:, 0]])))
    with pytest.raises(ImportFailedError, match="1 of them time"):
        import_recording(path)


@pytest.mark.parametrize("names", [("cursor_pos_x", "cursor_pos_y"), ("Cursor X", "Cursor Y")])
def test_two_series_with_one_axis_each_are_combined(tmp_path: Path, names: tuple[str, str]) -> None:
    axes = [velocity(POS[:, i], name, unit="m") for i, name in enumerate(names)]
    session = import_recording(write(tmp_path / "s.nwb", *axes))
    np.testing.assert_array_equal(session.cursor_pos, POS)
    assert said(session, f"was combined from {names[0]} and {names[1]}")


def trials_with(column: list[object]) -> list[dict[str, object]]:
    return [
        {"start_time": 4.0 * i, "stop_time": 4.0 * i + 3, "target_pos": target}
        for i, target in enumerate(column)
    ]


def target_column(description: str, **more: object):
    def add(nwb: NWBFile) -> None:
        nwb.add_trial_column("target_pos", description, **more)

    return add


TARGETS = [[0.05, 0.0], [0.0, -0.05], [-0.05, 0.0]]


@pytest.mark.parametrize(
    ("series", "scale", "description"),
    [
        (position(POS * 100, unit="cm"), 100, "where"),
        (position(POS * 100, unit="cm"), 1, "where"),
        (position(POS * 100, unit="m", conversion=0.01), 100, "where"),
        (position(POS * 100, unit="m", conversion=0.01), 1, "where"),
        (position(), 1000, "where (mm)"),
    ],
)
def test_targets_are_converted_with_the_position(
    tmp_path: Path, series, scale: float, description: str
) -> None:
    trials = trials_with([[scale * x for x in target] for target in TARGETS])
    path = write(tmp_path / "s.nwb", series, trials=trials, more=target_column(description))
    session = import_recording(path)
    np.testing.assert_allclose(session.trials.target_pos, TARGETS, atol=1e-12)
    assert said(session, "targets kept in metres") or said(session, "targets converted")


def test_trials_with_several_targets_do_not_stop_the_import(tmp_path: Path) -> None:
    ragged = [[[0.05, 0.0]], [[0.0, -0.05], [0.03, 0.03]], []]
    trials = trials_with(ragged)
    path = write(tmp_path / "s.nwb", position(), trials=trials[:2],
                 more=target_column("all of them", index=True))  # fmt: skip
    session = import_recording(path)
    np.testing.assert_array_equal(session.trials.target_pos[0], [0.05, 0.0])
    assert np.isnan(session.trials.target_pos[1]).all()
    assert said(session, "1 of 2 trials have no single target")


def test_repeated_unit_names_are_replaced_by_ids(tmp_path: Path) -> None:
    session = import_recording(write(tmp_path / "s.nwb", position(), names=["a", "b", "a"]))
    assert session.unit_ids == ("0", "1", "2")
    assert said(session, "unit names repeat")


@pytest.mark.parametrize("unit", ["ms", "30000"])
def test_spike_times_in_another_unit_are_refused_with_the_option_to_use(
    tmp_path: Path, unit: str
) -> None:
    per_second = {"ms": 1e3, "30000": 3e4}[unit]
    spikes = [np.round(times * per_second) for times in SPIKES]
    path = write(tmp_path / "s.nwb", position(), spikes=spikes)
    with pytest.raises(ImportFailedError, match=f"`--spike-unit {unit}`"):
        import_recording(path)
    session = import_recording(path, spike_unit=unit)
    assert within(session.spike_times, session.domain).all()


def test_spike_times_in_unix_time_are_recognised_and_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), spikes=[t + 1.7e9 for t in SPIKES])
    with pytest.raises(ImportFailedError, match=r"Unix time \(2023-11-14\)"):
        import_recording(path)


def test_fewer_than_half_of_the_spikes_inside_are_refused_without_the_option(
    tmp_path: Path,
) -> None:
    long = [np.arange(0.1, 4 * END_S, 0.25)] * 3
    path = write(tmp_path / "s.nwb", position(), spikes=long)
    with pytest.raises(ImportFailedError, match=r"\(25\.0%\).*--spikes-outside"):
        import_recording(path)
    assert said(import_recording(path, spikes_outside=True), "720 of 2,880 spikes (25.0%)")


def test_long_intervals_without_spikes_are_noted_or_refused(tmp_path: Path) -> None:
    short = [times[times < 40.0] for times in SPIKES]
    session = import_recording(write(tmp_path / "s.nwb", position(), spikes=short))
    assert said(session, "no unit fires for 20.1 s from 39.9 s on")
    shorter = [times[times < 20.0] for times in SPIKES]
    with pytest.raises(ImportFailedError, match="no unit fires for 40"):
        import_recording(write(tmp_path / "t.nwb", position(), spikes=shorter))


def test_one_wild_timestamp_costs_one_sample(tmp_path: Path) -> None:
    for index, stamp in ((700, 1e8), (700, -1e8), (700, 1.7e9), (len(TIMES) - 1, 1e8)):
        series = position()
        path = write(tmp_path / "s.nwb", series)
        with h5py.File(path, "r+") as file:
            file["processing/behavior/Position/cursor_pos/timestamps"][index] = stamp
        session = import_recording(path)
        assert len(session.cursor_times) == len(TIMES) - 1
        assert said(session, "1 kinematics samples with time stamps that repeat, step back")
        assert duration_s(session.domain) < 61
        path.unlink()


def test_a_clock_that_steps_back_costs_one_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position())
    with h5py.File(path, "r+") as file:
        file["processing/behavior/Position/cursor_pos/timestamps"][2000:] -= 5.0
    session = import_recording(path)
    assert len(session.cursor_times) == len(TIMES) - 250
    assert said(session, "250 kinematics samples with time stamps that repeat, step back")


@pytest.mark.parametrize("within_burst_s", [0.0, 1e-5])
def test_bursts_with_one_timestamp_are_spread_and_noted(
    tmp_path: Path, within_burst_s: float
) -> None:
    path = write(tmp_path / "s.nwb", position(), velocity())
    bursts = np.repeat(TIMES[4::5], 5) + within_burst_s * np.tile(np.arange(5) - 4, len(TIMES) // 5)
    with h5py.File(path, "r+") as file:
        for name in ("Position/cursor_pos", "cursor_vel"):
            file[f"processing/behavior/{name}/timestamps"][:] = bursts
    session = import_recording(path)
    np.testing.assert_allclose(session.cursor_times, TIMES, atol=1e-3)
    assert np.linalg.norm(session.cursor_vel, axis=1).max() < 0.1
    assert said(session, "came in bursts")


def test_bursts_too_far_apart_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position())
    with h5py.File(path, "r+") as file:
        file["processing/behavior/Position/cursor_pos/timestamps"][:] = np.repeat(TIMES[::25], 25)
    with pytest.raises(ImportFailedError, match="bursts that share a time stamp, too far apart"):
        import_recording(path)


def test_dropped_samples_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position())
    kept = np.delete(np.arange(len(TIMES)), np.arange(10, len(TIMES), 10))
    with h5py.File(path, "r+") as file:
        group = file["processing/behavior/Position/cursor_pos"]
        for name in ("data", "timestamps"):
            values, attributes = group[name][:][kept], dict(group[name].attrs)
            del group[name]
            group.create_dataset(name, data=values).attrs.update(attributes)
    assert said(import_recording(path), "about 299 of 2999 kinematics samples are missing")


def test_kinematics_in_milliseconds_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), spikes=[1000 * t for t in SPIKES])
    with h5py.File(path, "r+") as file:
        times = file["processing/behavior/Position/cursor_pos/timestamps"]
        times[:] = 1000 * times[:]
    with pytest.raises(ImportFailedError, match=r"sampled every 20 s.*milliseconds"):
        import_recording(path)


@pytest.mark.filterwarnings("ignore:.*[Ll]ength of data.*:UserWarning")
def test_warnings_of_the_reader_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), velocity())
    with h5py.File(path, "r+") as file:
        del file["processing/behavior/Position/cursor_pos/timestamps"].attrs["interval"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        import_recording(path)
    unused = velocity(VEL[:-5], "other", "V")
    path = write(tmp_path / "t.nwb", position(), acquisition=[unused])
    with h5py.File(path, "r+") as file:
        stamps = file["acquisition/other/timestamps"]
        longer = np.append(stamps[:], stamps[-1] + 1 + np.arange(3))
        attributes = dict(stamps.attrs)
        del file["acquisition/other/timestamps"]
        file["acquisition/other"].create_dataset("timestamps", data=longer).attrs.update(attributes)
    assert said(import_recording(path), "pynwb warns: TimeSeries 'other': Length of data")


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    error = result.exception
    if isinstance(error, VolitionError):
        return 1, str(error)
    assert error is None or isinstance(error, SystemExit), error
    return result.exit_code, result.output


def test_sessions_with_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    out = tmp_path / "sessions"
    for who in ("monkeyA", "monkeyB"):
        path = write(tmp_path / f"{who}.nwb", position(), session_id="1", subject=who)
        assert run("import", path, "-o", out)[0] == 0
    assert sorted(p.stem for p in out.iterdir()) == [
        "monkeyA_2026-01-02_1", "monkeyB_2026-01-02_1",
    ]  # fmt: skip


def test_a_session_is_replaced_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "sessions"
    first = write(tmp_path / "a.nwb", position(), session_id="day_one", subject="a")
    second = write(tmp_path / "b.nwb", position(-POS), session_id="day_one", subject="b")
    assert run("import", first, "-o", out)[0] == 0
    before = (out / "day_one.h5").read_bytes()
    code, message = run("import", second, "-o", out)
    assert code == 1
    assert "--force" in message
    assert "--name" in message
    assert (out / "day_one.h5").read_bytes() == before
    assert run("import", second, "-o", out, "--name", "day_one_b")[0] == 0
    assert run("import", second, "-o", out, "--force")[0] == 0
    assert sessions.load(out / "day_one.h5").subject_id == "b"


def test_a_zarr_folder_is_recognised_and_refused(tmp_path: Path) -> None:
    for name, mark in (("a.nwb.zarr", ".zgroup"), ("b.nwb", "zarr.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text("{}")
        with pytest.raises(ImportFailedError, match="a Zarr folder; expected one HDF5 file"):
            import_recording(tmp_path / name)


def test_trials_as_long_as_blocks_do_not_stop_the_import(tmp_path: Path) -> None:
    blocks = [{"start_time": 0.0, "stop_time": 30.0}, {"start_time": 30.0, "stop_time": 59.9}]
    session = import_recording(write(tmp_path / "s.nwb", position(), trials=blocks))
    assert said(session, "trials are too long to cut between them")
    assert duration_s(session.test_domain) == pytest.approx(0.2 * END_S, abs=0.1)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    return sessions.save(simulate(n_units=6, minutes=1.0, subject=1, seed=5), tmp_path)


def as_regular(path: Path, name: str, scale: float = 1.0, gap: bool = False) -> np.ndarray:
    """Rewrite the cursor as a regular series with another name, as in other brainsets."""
    session = sessions.load(path)
    pos, vel = session.cursor_pos * scale, session.cursor_vel * scale
    if gap:
        pos[2000:2200], vel[2000:2200] = np.nan, np.nan
    with h5py.File(path, "r+") as file:
        del file["cursor"]
        series = RegularTimeSeries(
            sampling_rate=100.0, domain_start=float(session.cursor_times[0]), pos=pos, vel=vel
        )  # fmt: skip
        series.to_hdf5(file.create_group(name))
    return session.cursor_vel


@pytest.mark.parametrize("name", ["cursor", "hand", "finger"])
def test_nan_in_foreign_session_files_becomes_gaps(stored: Path, name: str) -> None:
    vel = as_regular(stored, name, gap=True)
    session = sessions.load(stored)
    assert len(session.cursor_times) == len(vel) - 200
    assert len(session.domain) == 2
    gap = session.domain[1, 0] - session.domain[0, 1]
    assert gap == pytest.approx(2.0, abs=0.02)
    assert said(session, "200 kinematics samples with NaN or infinity were left out")
    assert said(session, f"{name} was used instead") == (name != "cursor")


def test_foreign_session_files_in_millimetres_need_the_unit(stored: Path) -> None:
    vel = as_regular(stored, "cursor", scale=1000.0)
    with pytest.raises(SessionError, match=r"too much for a hand .*--unit"):
        import_recording(stored)
    np.testing.assert_allclose(import_recording(stored, unit="mm").cursor_vel, vel, atol=1e-9)


def test_foreign_session_files_with_three_columns_need_the_option(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        pos = file["cursor/pos"][:]
        del file["cursor/pos"], file["cursor/vel"]
        file["cursor/pos"] = np.column_stack([0 * pos[:, 0], -pos])
    with pytest.raises(SessionError, match=r"cursor pos has 3 columns.*--columns"):
        sessions.load(stored)
    np.testing.assert_array_equal(import_recording(stored, columns=(-2, -3)).cursor_pos, pos)


def test_a_session_of_years_is_refused_before_memory_is_allocated(stored: Path) -> None:
    session = sessions.load(stored)
    times = np.append(session.cursor_times[:-1], 1e8)
    with pytest.raises(SessionError, match="expected at most 604800 s"):
        sessions.save(replace(session, cursor_times=times), stored.parent)
    domain = np.array([[0.0, 1.7e9]])
    with pytest.raises(SessionError, match="expected at most 604800 s"):
        sessions.save(replace(session, domain=domain), stored.parent)


def test_the_date_of_a_recording_is_kept(tmp_path: Path) -> None:
    imported = import_recording(write(tmp_path / "s.nwb", position()))
    loaded = sessions.load(sessions.save(imported, tmp_path))
    assert loaded.recorded_at == imported.recorded_at
    assert loaded.recorded_at is not None


def test_printed_rates_count_only_spikes_inside_the_kinematics(tmp_path: Path) -> None:
    from clients.reports.tables import session_summary

    long = [np.arange(0.1, 1.8 * END_S, 0.25)] * 3
    session = import_recording(write(tmp_path / "s.nwb", position(), spikes=long))
    assert session_summary(session)["rate_hz"]["median"] == pytest.approx(4.0, abs=0.02)


def described(targets: list[object], description: str = "where") -> dict[str, object]:
    return {"trials": trials_with(targets), "more": target_column(description)}


@pytest.mark.parametrize(("scale", "unit"), [(100, "cm"), (1000, "mm")])
def test_targets_far_from_a_position_in_metres_are_converted_and_noted(
    tmp_path: Path, scale: float, unit: str
) -> None:
    far = [[scale * x for x in target] for target in TARGETS]
    session = import_recording(write(tmp_path / "s.nwb", position(), **described(far)))
    np.testing.assert_allclose(session.trials.target_pos, TARGETS, atol=1e-12)
    assert said(session, f"targets converted from {unit}, which places them in")


def test_targets_in_pixels_are_left_out_and_noted(tmp_path: Path) -> None:
    pixels = described([[512.0, 384.0]] * 3, "target on the screen [px]")
    session = import_recording(write(tmp_path / "s.nwb", position(), **pixels))
    assert session.trials is not None
    assert session.trials.target_pos is None
    assert said(session, "in no unit are they near the position")


def test_targets_that_were_never_set_are_left_out_and_noted(tmp_path: Path) -> None:
    unset = [
        [-2.7e34, 1e-30],
        [np.nan, 0.0],
        *[list(map(float, TARGETS[i % 3])) for i in range(18)],
    ]
    session = import_recording(write(tmp_path / "s.nwb", position(), **described(unset)))
    assert np.isnan(session.trials.target_pos[:2]).any(axis=1).all()
    np.testing.assert_allclose(session.trials.target_pos[2:5], TARGETS)
    assert said(session, "1 of 20 targets were left out: more than 10 times as far")


def test_targets_with_three_values_use_the_positions_axes(tmp_path: Path) -> None:
    turned = position(COLUMNS_OF["z, -x, -y"], description="z, -x, -y")
    targets = described([[0.3, -x, -y] for x, y in TARGETS])
    session = import_recording(write(tmp_path / "s.nwb", turned, **targets))
    np.testing.assert_array_equal(session.trials.target_pos, TARGETS)
    assert said(session, "targets: x and y are in the same columns as in the position")
    targets = described([[x, y, 0.0] for x, y in TARGETS])
    session = import_recording(write(tmp_path / "t.nwb", position(), **targets))
    np.testing.assert_array_equal(session.trials.target_pos, TARGETS)
    assert said(session, "the first two were taken as x and y")


def test_targets_with_a_column_per_axis_are_read(tmp_path: Path) -> None:
    trials = [
        {"start_time": 4.0 * i, "stop_time": 4.0 * i + 3, "target_x": 100 * x, "target_y": 100 * y}
        for i, (x, y) in enumerate(TARGETS)
    ]

    def more(nwb: NWBFile) -> None:
        for axis in "xy":
            nwb.add_trial_column(f"target_{axis}", "in cm")

    session = import_recording(write(tmp_path / "s.nwb", position(), trials=trials, more=more))
    np.testing.assert_allclose(session.trials.target_pos, TARGETS, atol=1e-12)
    assert said(session, "targets converted to metres by their description ('in cm')")


def test_active_targets_that_are_not_indices_from_0_are_left_out(tmp_path: Path) -> None:
    trials = trials_with([[TARGETS[0], TARGETS[1]]] * 3)
    for trial, active in zip(trials, (1, 2, 1), strict=True):
        trial["active_target"] = active

    def more(nwb: NWBFile) -> None:
        nwb.add_trial_column("target_pos", "all")
        nwb.add_trial_column("active_target", "which")

    session = import_recording(write(tmp_path / "s.nwb", position(), trials=trials, more=more))
    assert session.trials.target_pos is None
    assert said(session, "active_target isn't always an index from 0")


@pytest.mark.parametrize("description", ["cursor position in cm", "cursor (x, y), (centimeters)"])
def test_a_description_in_another_unit_than_the_series_is_refused(
    tmp_path: Path, description: str
) -> None:
    path = write(tmp_path / "s.nwb", position(POS * 10, description=description))
    with pytest.raises(ImportFailedError, match=r"but its description says .*--unit"):
        import_recording(path)
    session = import_recording(path, unit="cm")
    np.testing.assert_allclose(session.cursor_pos, POS / 10, atol=1e-12)
    stored = position(POS * 100, description=description, conversion=0.01)
    import_recording(write(tmp_path / "t.nwb", stored))


def test_a_second_series_of_the_same_kind_is_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "s.nwb", position(), position(POS / 2, "cursor_position"))
    assert said(import_recording(path), "also found: cursor_pos")


def test_series_with_the_axis_before_the_name_are_combined(tmp_path: Path) -> None:
    axes = [velocity(VEL[:, i], f"{axis}_velocity") for i, axis in enumerate("xy")]
    session = import_recording(write(tmp_path / "s.nwb", *axes), velocity="velocity")
    np.testing.assert_array_equal(session.cursor_vel, VEL)


def observed(*intervals: list[list[float]], spikes: list[np.ndarray]):
    def more(nwb: NWBFile) -> None:
        for times, given in zip(spikes, intervals, strict=True):
            nwb.add_unit(spike_times=times, obs_intervals=given)

    return more


def test_unobserved_time_does_not_count_as_silence(tmp_path: Path) -> None:
    short = [times[(times < 20.0) | ((times > 25.0) & (times < 50.0))] for times in SPIKES]
    both = [[0.0, 20.0], [25.0, 50.0]]
    more = observed(both, both[:1], both, spikes=[short[0], short[1][short[1] < 20.0], short[2]])
    session = import_recording(write(tmp_path / "s.nwb", position(), spikes=(), more=more))
    np.testing.assert_allclose(session.domain, both, atol=0.02)
    assert said(session, "units were observed from 0.0 to 50.0 s, with 1 breaks (obs_intervals)")
    assert said(session, "1 of 3 units were observed only part of the time")
    assert not said(session, "no unit fires")


def test_observed_intervals_that_the_spikes_contradict_are_ignored(tmp_path: Path) -> None:
    minutes = [[[0.0, 1.0]]] * 3
    more = observed(*minutes, spikes=list(SPIKES))
    session = import_recording(write(tmp_path / "s.nwb", position(), spikes=(), more=more))
    assert duration_s(session.domain) == pytest.approx(END_S, abs=0.1)
    assert said(session, "obs_intervals were ignored")


def test_invalid_times_are_cut_out_and_other_tables_are_noted(tmp_path: Path) -> None:
    def more(nwb: NWBFile) -> None:
        nwb.add_invalid_time_interval(start_time=10.0, stop_time=20.0)
        nwb.add_epoch(start_time=0.0, stop_time=5.0, tags="rest")

    session = import_recording(write(tmp_path / "s.nwb", position(), more=more))
    np.testing.assert_allclose(session.domain, [[0.0, 10.0], [20.0, 60.0]], atol=0.02)
    assert said(session, "1 invalid_times (10.0 s) were cut out of the domains")
    assert said(session, "interval tables not imported: epochs")


def test_invalid_times_that_cover_the_whole_recording_are_refused(tmp_path: Path) -> None:
    def more(nwb: NWBFile) -> None:
        nwb.add_invalid_time_interval(start_time=-1.0, stop_time=70.0)

    with pytest.raises(ImportFailedError, match="never recorded at the same time"):
        import_recording(write(tmp_path / "s.nwb", position(), more=more))


def test_a_session_id_that_is_not_a_valid_file_name_is_renamed(tmp_path: Path) -> None:
    session = import_recording(write(tmp_path / "s.nwb", position(), session_id="lab/day one"))
    assert session.session_id == "lab_day_one"
    assert said(session, "session 'lab/day one' was renamed to lab_day_one")


def test_spikes_stamped_once_per_chunk_or_stored_twice_are_noted(tmp_path: Path) -> None:
    fast = [np.sort(np.random.default_rng(i).uniform(0, END_S, 1200)) for i in range(3)]
    session = import_recording(write(tmp_path / "s.nwb", position(), spikes=fast))
    assert not said(session, "the same time as another")
    for name, odd in (
        ("chunks", [np.ceil(times / 0.05) * 0.05 for times in fast]),
        ("twice", [np.repeat(times, 2) for times in fast]),
    ):
        session = import_recording(write(tmp_path / f"{name}.nwb", position(), spikes=odd))
        assert said(session, "spikes have the same time as another spike of their unit")


def test_single_implausible_samples_are_noted(tmp_path: Path) -> None:
    lost = POS.copy()
    lost[::700] = -9999.0
    session = import_recording(write(tmp_path / "s.nwb", position(lost)))
    assert said(session, "kinematics samples are implausible for a hand (up to ")


def test_wild_timestamps_in_foreign_session_files_cost_one_sample_and_one_spike(
    stored: Path,
) -> None:
    n_samples, n_spikes = (len(a) for a in (sessions.load(stored).cursor_times,
                                            sessions.load(stored).spike_times))  # fmt: skip
    with h5py.File(stored, "r+") as file:
        file["cursor/timestamps"][700] = 1e8
        file["spikes/timestamps"][5] = np.nan
    with pytest.raises(SessionError, match="don't ascend"):
        sessions.load(stored)
    session = import_recording(stored)
    assert len(session.cursor_times) == n_samples - 1
    assert len(session.spike_times) == n_spikes - 1
    assert said(
        session, "1 kinematics samples with time stamps that repeat, step back or are far off"
    )
    assert said(session, "1 spikes without a finite time were left out")


def test_a_second_effector_in_a_foreign_session_file_is_noted(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file.copy("cursor", "hand")
    assert said(import_recording(stored), "kinematics not used besides cursor: hand")


def test_targets_or_velocity_in_another_unit_are_noted_for_foreign_session_files(
    stored: Path,
) -> None:
    with h5py.File(stored, "r+") as file:
        file["trials/target_pos"][:] *= 100
        file["cursor/vel"][:] *= 10
    session = import_recording(stored)
    assert said(session, "targets are up to")
    assert said(session, "velocity is 10 times the gradient of position")


def test_targets_with_three_values_in_foreign_session_files_are_noted(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        target = file["trials/target_pos"][:]
        del file["trials/target_pos"]
        file["trials/target_pos"] = np.column_stack([target, 0 * target[:, 0]])
    session = import_recording(stored)
    np.testing.assert_array_equal(session.trials.target_pos, target)
    assert said(session, "targets have 3 values; the first two were taken as x and y")


def test_repeated_unit_ids_are_refused_with_the_same_message_everywhere(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        ids = file["units/id"][:]
        ids[1] = ids[0]
        file["units/id"][:] = ids
    with pytest.raises(SessionError, match=r"1 unit ids name more than one unit .*probe1/7"):
        import_recording(stored)


def test_errors_name_no_option_that_the_file_type_refuses(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file["spikes/timestamps"][:] *= 1000
    with pytest.raises(SessionError, match="look like milliseconds: expected seconds"):
        import_recording(stored)


def test_domains_of_foreign_session_files_end_with_the_kinematics(stored: Path) -> None:
    with h5py.File(stored, "r+") as file:
        file["cursor/timestamps"][2000:] -= 5.0
    session = import_recording(stored)
    end = session.cursor_times[-1]
    assert session.domain[-1, 1] == session.test_domain[-1, 1] == end
    assert said(session, "domains extended beyond the kinematics")
