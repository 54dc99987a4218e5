"""XDF files from the field: restarted senders, several arrays, unusual channels."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from decoder.errors import ImportFailedError
from streaming.sessions.intervals import within
from streaming.sessions.session import Session
from tests import xdf_writer
from tests.xdf_writer import Stream
from training.importers import import_recording

TIMES = 1000.0 + np.arange(0.0, 60.0, 0.01)
POS = 0.05 * np.stack([np.sin(TIMES), np.cos(0.7 * TIMES)], axis=1)
VEL = 0.05 * np.stack([np.cos(TIMES), -0.7 * np.sin(0.7 * TIMES)], axis=1)
RNG = np.random.default_rng(0)
SPIKE_TIMES = np.sort(RNG.uniform(1000.0, 1060.0, 3000))
SPIKE_UNITS = RNG.integers(6, size=3000)


def info(name: str, kind: str, n: int, rate: float, form: str, desc: str) -> str:
    return (
        f"<?xml version='1.0'?><info><name>{name}</name><type>{kind}</type>"
        f"<channel_count>{n}</channel_count><nominal_srate>{rate}</nominal_srate>"
        f"<channel_format>{form}</channel_format><source_id>{name}</source_id>"
        f"<desc>{desc}</desc></info>"
    )


def units(ids: list[str]) -> str:
    each = "".join(
        f"<unit><id>{u}</id><channel>{i}</channel><unit>0</unit></unit>" for i, u in enumerate(ids)
    )
    return f"<units>{each}</units>"


def channels(labels: list[str], words: list[str]) -> str:
    each = "".join(
        f"<channel><label>{label}</label><unit>{word}</unit></channel>"
        for label, word in zip(labels, words, strict=True)
    )
    return f"<channels>{each}</channels>"


def spikes(
    part: np.ndarray | slice = slice(None), ids: list[str] | None = None, name: str = "rig",
    kind: str = "Spikes", desc: str | None = None, **more,
) -> Stream:  # fmt: skip
    rows = SPIKE_UNITS[part]
    events = np.stack([rows, np.zeros_like(rows)], axis=1).astype("<i4")
    desc = units(ids or [f"e{i}" for i in range(6)]) if desc is None else desc
    return Stream(info(name, kind, 2, 0, "int32", desc), SPIKE_TIMES[part], events, **more)


def kinematics(
    part: np.ndarray | slice = slice(None), scale: float = 1.0, word: str = "m", name: str = "kin",
    targets: np.ndarray | None = None, **more,
) -> Stream:  # fmt: skip
    values = [POS[part] * scale, VEL[part] * scale]
    labels = ["pos_x", "pos_y", "vel_x", "vel_y"]
    words = [word, word, *([f"{word}/s"] * 2 if word else ["", ""])]
    if targets is not None:
        values, labels = [*values, targets], [*labels, "target_x", "target_y"]
        words += [word, word]
    xml = info(name, "Kinematics", len(labels), 100, "double64", channels(labels, words))
    return Stream(xml, TIMES[part], np.concatenate(values, axis=1), **more)


def markers(texts: list[tuple[float, str]], name: str = "marks") -> Stream:
    xml = info(name, "Markers", 1, 0, "string", "")
    return Stream(xml, np.array([t for t, _ in texts]), [text for _, text in texts])


def imported(tmp_path: Path, *streams: Stream, **options) -> Session:
    return import_recording(xdf_writer.write(tmp_path / "day.xdf", streams), **options)


def said(session: Session, what: str) -> bool:
    return any(what in note for note in session.notes)


def test_the_streams_of_a_restarted_sender_are_joined(tmp_path: Path) -> None:
    before, after = SPIKE_TIMES < 1025, SPIKE_TIMES >= 1030
    middle = before[:] & (SPIKE_TIMES < 1010)
    late = before & (SPIKE_TIMES >= 1012)
    session = imported(tmp_path, spikes(middle), spikes(late), spikes(after), kinematics())
    assert len(session.spike_times) == middle.sum() + late.sum() + after.sum()
    assert session.n_units == 6
    assert said(session, "stream 'rig' has 3 parts")
    assert len(session.domain) == 3
    assert within(session.spike_times, session.domain).mean() > 0.99


def test_restarted_kinematics_are_joined(tmp_path: Path) -> None:
    before, after = TIMES < 1025, TIMES >= 1028
    session = imported(tmp_path, spikes(), kinematics(before), kinematics(after))
    assert len(session.cursor_times) == before.sum() + after.sum()
    assert len(session.domain) == 2


def test_units_of_two_arrays_are_combined(tmp_path: Path) -> None:
    first = SPIKE_UNITS < 3
    a = spikes(first, [f"A{i}" for i in range(6)], name="array-A")
    b = spikes(~first, [f"B{i}" for i in range(6)], name="array-B")
    session = imported(tmp_path, a, b, kinematics())
    assert len(session.spike_times) == len(SPIKE_TIMES)
    assert session.unit_ids == ("A0", "A1", "A2", "B3", "B4", "B5")
    assert said(session, "units of 2 streams combined: 'array-A' (6), 'array-B' (6)")


def test_arrays_with_the_same_unit_ids_stay_apart(tmp_path: Path) -> None:
    a, b = (spikes(name=f"array-{x}") for x in "AB")
    session = imported(tmp_path, a, b, kinematics())
    assert session.n_units == 12
    assert session.unit_ids[0] == "array-A/e0"
    assert len(session.spike_times) == 2 * len(SPIKE_TIMES)


def test_repeated_unit_ids_within_a_stream_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match="3 unit ids name more than one unit"):
        imported(tmp_path, spikes(ids=[f"u{i % 3}" for i in range(6)]), kinematics())


@pytest.mark.parametrize(
    ("word", "scale"), [("cm", 100), ("centimeters", 100), ("mm", 1000), ("meters", 1)]
)
def test_the_unit_of_the_channels_is_used(tmp_path: Path, word: str, scale: float) -> None:
    targets = np.tile([5.0, 0.0], (len(TIMES), 1)) * scale / 100
    trial = markers([(1002.0, "trial_start 0"), (1006.0, "trial_end 0")])
    session = imported(
        tmp_path, spikes(), kinematics(scale=scale, word=word, targets=targets), trial
    )
    np.testing.assert_allclose(session.cursor_pos, POS, atol=1e-12)
    np.testing.assert_allclose(session.cursor_vel, VEL, atol=1e-12)
    np.testing.assert_allclose(session.trials.target_pos, [[0.05, 0.0]])


@pytest.mark.parametrize(
    ("word", "asked"),
    [
        ("", "too much for a hand"),
        ("pixels", "pos_x is in 'pixels'"),
        ("unknown", "pos_x has no unit"),
    ],
)
def test_channels_without_a_unit_of_length_need_the_option(
    tmp_path: Path, word: str, asked: str
) -> None:
    streams = spikes(), kinematics(scale=4000, word=word)
    with pytest.raises(ImportFailedError, match=rf"{asked}.*--unit"):
        imported(tmp_path, *streams)
    session = imported(tmp_path, *streams, unit="0.00025")
    np.testing.assert_allclose(session.cursor_vel, VEL, atol=1e-12)


def test_targets_come_from_the_tasks_markers(tmp_path: Path) -> None:
    task = markers(
        [
            (1002.0, "trial_start 0"), (1002.0, "target 0 0.050000 -0.020000"),
            (1005.9, "success 0"), (1006.0, "trial_end 0"), (1007.0, "trial_start 1"),
            (1007.0, "target 1 0.0 0.03"), (1009.0, "trial_end 1"), (1010.0, "trial_start 2"),
        ]
    )  # fmt: skip
    device = markers([(t, "sync") for t in np.arange(1001.0, 1059.0)], name="device")
    session = imported(tmp_path, spikes(), kinematics(), device, task)
    np.testing.assert_allclose(session.trials.intervals, [[1002.0, 1006.0], [1007.0, 1009.0]])
    np.testing.assert_allclose(session.trials.target_pos, [[0.05, -0.02], [0.0, 0.03]])
    assert said(session, "marker streams without trials, not imported: device (Markers)")


def test_channels_with_other_labels_and_no_unit_need_the_option(tmp_path: Path) -> None:
    hand = kinematics(word="")
    hand = replace(hand, xml=hand.xml.replace("pos_", "hand_"))
    with pytest.raises(ImportFailedError, match=r"hand_x has no unit.*--unit"):
        imported(tmp_path, spikes(), hand, position="hand")


@pytest.mark.parametrize("date", ["2026-03-05T14:30:00+0100", "2026-03-05T14:30:00+01:00"])
def test_the_date_is_the_recorders(tmp_path: Path, date: str) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", [spikes(), kinematics()], date=date)
    hour = datetime.timezone(datetime.timedelta(hours=1))
    assert import_recording(path).recorded_at == datetime.datetime(2026, 3, 5, 14, 30, tzinfo=hour)


def test_spike_events_without_a_description_get_units_by_channel(tmp_path: Path) -> None:
    session = imported(tmp_path, spikes(kind="SpikeEvents", desc=""), kinematics())
    assert session.unit_ids == tuple(f"{i}/0" for i in range(6))
    assert len(session.spike_times) == len(SPIKE_TIMES)


def test_counts_become_spikes_in_their_bins(tmp_path: Path) -> None:
    ends = 1000.0 + 0.05 * np.arange(1, 1200)
    counts = RNG.integers(0, 3, size=(len(ends), 2))
    xml = info("bins", "SpikeCounts", 2, 20, "int32", channels(["a", "b"], ["", ""]))
    session = imported(tmp_path, Stream(xml, ends, counts.astype("<i4")), kinematics())
    assert session.unit_ids == ("a", "b")
    bins = np.append(1000.0, ends) - 1e-9
    for unit in (0, 1):
        found, _ = np.histogram(session.spike_times[session.spike_units == unit], bins)
        np.testing.assert_array_equal(found, counts[:, unit])


def test_counts_are_not_imported_next_to_spikes(tmp_path: Path) -> None:
    ends = 1000.0 + 0.05 * np.arange(1, 1200)
    xml = info("bins", "SpikeCounts", 1, 20, "int32", channels(["e0"], [""]))
    binned = Stream(xml, ends, np.ones((len(ends), 1), dtype="<i4"))
    session = imported(tmp_path, spikes(), binned, kinematics())
    assert len(session.spike_times) == len(SPIKE_TIMES)
    assert said(session, "not imported: bins (SpikeCounts)")


def test_names_that_are_not_ascii_are_kept(tmp_path: Path) -> None:
    ids = ["µ0", "é1", "电极2", "u3", "u4", "u5"]
    assert imported(tmp_path, spikes(ids=ids), kinematics()).unit_ids == tuple(ids)


def test_a_stream_without_clock_offsets_is_noted_with_its_shift(tmp_path: Path) -> None:
    late = spikes(clock_offset_s=None)
    assert said(imported(tmp_path, late, kinematics()), "'rig' has no clock offsets")
    behind = replace(late, times=late.times - 20.0)
    session = imported(tmp_path, behind, kinematics())
    assert said(session, "its clock seems to be -20.0 s off")
    assert said(session, "no unit fires for 20")
    far = replace(late, times=late.times - 5000.0)
    with pytest.raises(ImportFailedError, match=r"shifted by -5000\.0 s.*no clock offsets"):
        imported(tmp_path, far, kinematics())


def with_a_clock_that_steps(stream: Stream, by_s: float, at_s: float = 1030.0) -> Stream:
    """The sender's clock steps, and the recorder measures it with the next chunk."""
    after = stream.times >= at_s
    return replace(
        stream,
        times=stream.times + by_s * after,
        clock_offset_s=0.0002 * np.cos(stream.times) - by_s * after,
    )


@pytest.mark.parametrize("by_s", [3.0, -3.0, 0.5, -0.5, 40.0, -40.0])
@pytest.mark.parametrize("which", ["spikes", "kinematics"])
def test_a_clock_step_shifts_no_timestamp(tmp_path: Path, which: str, by_s: float) -> None:
    made = {"spikes": spikes(), "kinematics": kinematics()}
    made[which] = with_a_clock_that_steps(made[which], by_s)
    session = imported(tmp_path, *made.values())
    times = session.spike_times if which == "spikes" else session.cursor_times
    true = SPIKE_TIMES if which == "spikes" else TIMES
    near = np.abs(times[:, None] - true[None, :: len(true) // 200]).min(axis=0)
    assert np.quantile(near, 0.95) < 0.01
    if abs(by_s) < 5:
        name = {"spikes": "rig", "kinematics": "kin"}[which]
        assert said(session, f"the clock of {name!r} stepped 1 time")


@pytest.mark.parametrize("chunk", [0, 3, len(TIMES) // 512])
def test_a_single_wrong_clock_offset_is_not_a_step(tmp_path: Path, chunk: int) -> None:
    offsets = np.zeros(len(TIMES))
    offsets[512 * chunk] = 2.0
    session = imported(tmp_path, spikes(), replace(kinematics(), clock_offset_s=offsets))
    assert said(session, "clock offsets of 'kin' that disagree")
    np.testing.assert_allclose(session.cursor_times, TIMES, atol=0.01)


def test_a_step_of_the_recorders_clock_moves_only_timestamps_near_it(tmp_path: Path) -> None:
    offsets = 2.0 * (TIMES >= 1030.0)
    session = imported(tmp_path, spikes(), replace(kinematics(), clock_offset_s=offsets))
    assert said(session, "only to within a few seconds")
    early = session.cursor_times < 1020.0
    np.testing.assert_allclose(session.cursor_times[early], TIMES[: early.sum()], atol=0.01)
    assert session.cursor_times[-1] == pytest.approx(TIMES[-1] + 2.0, abs=0.01)


def test_unix_timestamps_are_recognised_and_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportFailedError, match=r"Unix time \(2023-11-14\)"):
        imported(tmp_path, replace(spikes(), times=SPIKE_TIMES + 1.7e9), kinematics())


def test_one_wild_timestamp_costs_one_spike_and_one_sample(tmp_path: Path) -> None:
    late, kin = spikes(), kinematics()
    late.times[1500:1501], kin.times[3000:3001] = 1e8, 1e8
    try:
        session = imported(tmp_path, late, kin)
    finally:
        late.times[1500], kin.times[3000] = SPIKE_TIMES[1499], TIMES[2999] + 0.01
    assert len(session.spike_times) == len(SPIKE_TIMES) - 1
    assert len(session.cursor_times) == len(TIMES) - 1
    assert said(session, "1 spikes of 'rig' with outlying time stamps were left out")


def test_kinematics_stamped_once_per_chunk_are_spread(tmp_path: Path) -> None:
    stamps = np.repeat(TIMES[9::10], 10)
    session = imported(tmp_path, spikes(), replace(kinematics(), times=stamps))
    np.testing.assert_allclose(session.cursor_times, TIMES, atol=1e-6)
    assert said(session, "came in bursts")


def test_kinematics_of_two_effectors_are_not_mixed_and_a_note_lists_the_other(
    tmp_path: Path,
) -> None:
    hand = replace(kinematics(name="hand"), values=-kinematics().values)
    session = imported(tmp_path, hand, spikes(), kinematics(name="cursor"))
    np.testing.assert_allclose(session.cursor_pos, POS)
    assert said(session, "kinematics of 'cursor' imported; not imported: 'hand'")


def test_a_chunk_that_claims_a_billion_samples_is_skipped(tmp_path: Path) -> None:
    path = xdf_writer.write(tmp_path / "day.xdf", [spikes(), kinematics()])
    content = path.read_bytes()
    at = content.index(b"\x04\x00\x02\x00\x00")  # 512 samples
    path.write_bytes(content[: at + 1] + b"\xff\xff\xff\x7f" + content[at + 5 :])
    with pytest.raises(ImportFailedError):
        import_recording(path)


def test_warnings_of_the_reader_are_noted(tmp_path: Path) -> None:
    odd = spikes()
    odd = replace(odd, xml=odd.xml.replace("<desc>", "<stream_id>9</stream_id><desc>"))
    session = imported(tmp_path, odd, kinematics())
    assert said(session, "pyxdf warns: Found existing 'stream_id' key")


def test_streams_of_other_types_are_noted(tmp_path: Path) -> None:
    eeg = info("BrainAmp", "EEG", 2, 100, "double64", channels(["C3", "C4"], ["uV", "uV"]))
    session = imported(tmp_path, spikes(), kinematics(), Stream(eeg, TIMES, POS))
    assert said(session, "streams of other types, not imported: BrainAmp (EEG)")


def test_repeated_channel_labels_are_refused_as_in_live_decoding(tmp_path: Path) -> None:
    twice = kinematics()
    twice = replace(twice, xml=twice.xml.replace("vel_", "pos_"))
    with pytest.raises(ImportFailedError, match="several channels pos_x; expected one"):
        imported(tmp_path, spikes(), twice)


def test_trials_and_targets_that_are_left_out_are_noted(tmp_path: Path) -> None:
    early = [(2.0 + i, f"trial_{edge} {i}") for i, edge in ((0, "start"), (0, "end"))]
    never_ended = [(1010.0 + i, f"trial_start {i}") for i in range(3)]
    unread = [(1020.0, "trial_start 9"), (1020.1, "target 9 0,05 0,01"), (1022.0, "trial_end 9")]
    session = imported(
        tmp_path, spikes(), kinematics(), markers([*early[:1], (4.0, "trial_end 0")]),
        markers([*never_ended, *unread], "task"),
    )  # fmt: skip
    assert session.trials is not None
    np.testing.assert_array_equal(session.trials.intervals, [[1020.0, 1022.0]])
    assert said(session, "1 trials begin before the kinematics (at 2.0 s, before 1000.0 s)")
    assert said(session, "2 trials without a start and an end were left out")
    assert said(session, "1 target markers can't be read")


def test_a_trial_cut_off_by_the_end_of_the_recording_is_not_noted(tmp_path: Path) -> None:
    cut = [(1001.0, "trial_end 3"), (1002.0, "trial_start 4"), (1004.0, "trial_end 4")]
    session = imported(tmp_path, spikes(), kinematics(), markers([*cut, (1059.0, "trial_start 5")]))
    assert not said(session, "without a start and an end")


def test_an_unreadable_date_is_noted(tmp_path: Path) -> None:
    path = xdf_writer.write(
        tmp_path / "day.xdf", [spikes(), kinematics()], date="Wed May 13 10:39:26 2020"
    )
    session = import_recording(path)
    assert session.recorded_at is None
    assert said(session, "date 'Wed May 13 10:39:26 2020' was not understood")


def test_markers_without_clock_offsets_are_noted(tmp_path: Path) -> None:
    bare = replace(
        markers([(1002.0, "trial_start 0"), (1004.0, "trial_end 0")]), clock_offset_s=None
    )
    session = imported(tmp_path, spikes(), kinematics(), bare)
    assert said(session, "markers without clock offsets, on their sender's clock: marks (Markers)")


def test_the_error_for_spikes_in_milliseconds_names_no_option_that_xdf_refuses(
    tmp_path: Path,
) -> None:
    late = spikes()
    late = replace(late, times=late.times * 1000)
    with pytest.raises(ImportFailedError, match="look like milliseconds: expected seconds"):
        imported(tmp_path, late, kinematics())


def test_counts_at_another_rate_than_the_nominal_one_are_noted(tmp_path: Path) -> None:
    ends = 1000.0 + 0.02 * np.arange(1, 3000)
    counts = np.ones((len(ends), 1), dtype="<i4")
    xml = info("bins", "SpikeCounts", 1, 20, "int32", channels(["a"], [""]))
    session = imported(tmp_path, Stream(xml, ends, counts), kinematics())
    np.testing.assert_allclose(session.spike_times, ends - 0.01, atol=1e-6)
    assert said(session, "'bins' has a nominal rate of 20 Hz, but its stamps are 0.02 s apart")


@pytest.mark.parametrize("labels", ["Right_X Right_Y", "right.x right.y", "RightX RightY"])
def test_channels_are_found_by_the_given_prefix(tmp_path: Path, labels: str) -> None:
    xml = info("mocap", "Kinematics", 2, 100, "double64", channels(labels.split(), ["cm", "cm"]))
    session = imported(tmp_path, spikes(), Stream(xml, TIMES, POS * 100), position="Right")
    np.testing.assert_allclose(session.cursor_pos, POS, atol=1e-12)


def test_notes_that_people_wrote_are_kept_and_are_no_markers(tmp_path: Path) -> None:
    xml = info("volition-notes", "Notes", 1, 0, "string", "")
    texts = ["électrode 12", "trial_start 1", "from another time"]
    written = Stream(xml, np.array([1003.0, 1010.0, 9000.0]), texts)
    session = imported(tmp_path, spikes(), kinematics(), written)
    assert [(note.time_s, note.text) for note in session.block_notes] == [
        (1003.0, texts[0]), (1010.0, texts[1]),
    ]  # fmt: skip
    assert session.trials is None
    assert said(session, "1 written notes are from another time and were left out")
    assert not said(session, "not imported")
