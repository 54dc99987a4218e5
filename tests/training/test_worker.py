"""The server's training process prepares before the data arrive."""

from __future__ import annotations

from pathlib import Path

from clients.harness.daemon import BUNDLES
from training.calibration.candidate import WARM_UP, prepare
from training.data.simulate import simulate
from training.exports.export import export_model
from training.pretraining import runs
from training.pretraining.newcomer import with_session


def test_a_base_that_knows_the_warm_up_session_can_be_prepared(tmp_path: Path) -> None:
    known = simulate(**WARM_UP)  # type: ignore[arg-type]
    model, record = with_session(*runs.load_model(BUNDLES / "possm.bundle"), known)
    bundle = export_model(model, record, known.session_id, tmp_path / "base.bundle")
    ready = prepare(bundle.path)
    assert known.session_id in ready.record.session_words
