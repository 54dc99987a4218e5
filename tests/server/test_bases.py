"""The decoder that a calibration starts from, if none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from decoder.bundles.bundle import Bundle
from server.calibration.bases import base_of
from server.problems import ConflictError
from server.store.registry import Registry
from tests.conftest import TinyDecoder
from training.exports.export import export_model
from training.pretraining import runs
from training.pretraining.scoring import usual_states


class Decoders:
    """A registry of decoders that are based on each other."""

    def __init__(self, tiny: TinyDecoder, folder: Path) -> None:
        self._tiny, self._n = tiny, 0
        self.registry = Registry(folder)

    def add(self, base: Bundle | None = None, *, knows_states: bool = False) -> Bundle:
        """Register a decoder; returns it."""
        model, record = runs.load_model(self._tiny.bundle.path)
        session = self._tiny.session
        record.states = usual_states(model, record, [session]) if knows_states else None
        if base is not None:
            record.settings["base"] = base.manifest.decoder_id
        self._n += 1
        path = self.registry.folder / f"{self._n}.bundle"
        return export_model(model, record, session.session_id, path)

    def base(self, method: str, active: Bundle, asked: str | None = None) -> str:
        """The id of the decoder that a calibration by a method starts from."""
        entry = base_of(self.registry, method, asked, active.manifest.decoder_id)  # type: ignore[arg-type]
        return entry.manifest.decoder_id


def id_of(bundle: Bundle) -> str:
    return bundle.manifest.decoder_id


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_labels_start_from_the_pretrained_decoder_and_align_from_one_that_knows_its_states(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    decoders = Decoders(tiny, tmp_path / "decoders")
    shipped = decoders.add()
    day_one = decoders.add(shipped, knows_states=True)
    aligned = decoders.add(day_one, knows_states=True)
    again = decoders.add(aligned, knows_states=True)
    for active in (day_one, aligned, again):
        assert decoders.base("units", active) == id_of(shipped)
        assert decoders.base("align", active) == id_of(day_one)
    assert decoders.base("align", again, asked=id_of(aligned)) == id_of(aligned)
    assert decoders.base("align", shipped) == id_of(shipped)  # to be refused: it knows no states


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_align_starts_from_a_pretrained_decoder_that_knows_its_states(
    tiny: TinyDecoder, tmp_path: Path
) -> None:
    decoders = Decoders(tiny, tmp_path / "decoders")
    pretrained = decoders.add(knows_states=True)
    active = decoders.add(decoders.add(pretrained, knows_states=True), knows_states=True)
    assert decoders.base("align", active) == id_of(pretrained)


@pytest.mark.parametrize("tiny", ["possm"], indirect=True)
def test_a_base_that_is_not_registered_ends_the_lineage(tiny: TinyDecoder, tmp_path: Path) -> None:
    decoders = Decoders(tiny, tmp_path / "decoders")
    gone = decoders.add()
    for entry in decoders.registry.all():
        entry.path.rename(tmp_path / "elsewhere")
    active = decoders.add(gone)
    assert decoders.base("units", active) == id_of(active)
    with pytest.raises(ConflictError, match="no decoder to start training from"):
        base_of(decoders.registry, "units", None, None)
