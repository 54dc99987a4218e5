"""Export a trained model as a bundle: a streaming graph, and tables for one session's units.

    volition export RUN --session ID -o NAME.bundle

The graph is an exact rewrite of the model's inference; `training.exports.modules` explains how.
"""

from __future__ import annotations

import math
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from decoder.bundles import bundle
from decoder.bundles.families import AttentionTables
from decoder.errors import TrainingError
from training.data.identity import is_subject, subject_word
from training.exports.graph import OPSET, export_graph
from training.exports.tables import fold_tables
from training.models.families import Model, sizes
from training.pretraining import runs

OUTSIDE_GRAPH = ("unit_emb", "session_emb", "identifier", "readout")


def export_run(
    run: Path | str, session_id: str | None, path: Path | str, *, subject: str | None = None
) -> bundle.Bundle:
    """Write the best weights of a run as a bundle for one of its sessions.

    session_id: may be None if the run has only one session.
    subject: id of a subject; the bundle then has the units that its days share, and decodes other
        days of the subject as they are.
    """
    model, record = runs.load_model(run)
    if subject is not None:
        session_id = subject_word(subject)
        if session_id not in record.session_words:
            known = [word[1:] for word in record.session_words if is_subject(word)]
            raise TrainingError(
                f"{run} has no units that the days of subject {subject!r} share; it has those of "
                f"{', '.join(known) or 'no subject'}"
            )
    elif session_id is None:
        if len(record.sessions) != 1:
            raise TrainingError(
                f"{run} has {len(record.sessions)} sessions; choose one with --session"
            )
        session_id = record.sessions[0]
    return export_model(model, record, session_id, path, metrics={"validation_r2": record.best_r2})


def export_model(
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """Write a model as a bundle for one session of its record."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / bundle.GRAPH
        export_graph(model, record.config(), graph)
        return write_bundle(model, record, session_id, path, graph, metrics)


def refold(
    base: bundle.Bundle,
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    metrics: dict[str, float] | None = None,
) -> bundle.Bundle:
    """Write a model whose graph is that of `base`: only embeddings and output layer may differ.

    Raises TrainingError if any other weight does, or if `base` is of version 1.
    """
    if not takes_readout(base):
        raise TrainingError(f"{base.path} is a bundle of version 1; export the model in full")
    if changed := changed_weights(base, model):
        raise TrainingError(f"{changed[0]} differs from {base.path}; export the model in full")
    return write_bundle(model, record, session_id, path, base.graph_path, metrics)


def folded(
    base: bundle.Bundle, model: Model, record: runs.RunRecord, session_id: str
) -> bundle.Bundle:
    """A model whose graph is that of `base`, in memory: new tables, `base`'s files.

    It can be decoded with at once. It is not on disk, and its weights file is `base`'s.
    """
    manifest, tables = _described(model, record, session_id, {})
    checksums = base.manifest.checksums
    return bundle.Bundle(
        path=base.path, manifest=manifest.model_copy(update={"checksums": checksums}),
        tables=tables, usual=None, is_sealed=True,
    )  # fmt: skip


def takes_readout(base: bundle.Bundle) -> bool:
    """Whether a bundle's graph takes its output layer from the tables: one of version 1 does not,
    so it can't be shared with an adapted model."""
    assert isinstance(base.tables, AttentionTables)
    return base.tables.readout is not None


def changed_weights(base: bundle.Bundle, model: Model) -> list[str]:
    """Names of the weights in a bundle's graph that differ from a model's."""
    before = runs.load_tensors(base.weights_path)
    return [
        name
        for name, tensor in runs.weights(model).items()
        if not name.startswith(OUTSIDE_GRAPH)
        and not (name in before and torch.equal(tensor, before[name]))
    ]


def _point(point: dict[str, float]) -> bundle.HistoryPoint:
    """A validation for the manifest, without a loss if that is NaN: a resumed run took no step."""
    loss = point["loss"]
    return bundle.HistoryPoint.model_validate(
        point | {"loss": loss if math.isfinite(loss) else None}
    )


def write_bundle(
    model: Model,
    record: runs.RunRecord,
    session_id: str,
    path: Path | str,
    graph: Path,
    metrics: dict[str, float] | None,
) -> bundle.Bundle:
    """Write a model as a bundle with an existing streaming graph of the model."""
    manifest, tables = _described(model, record, session_id, metrics or {})
    return bundle.write(
        path,
        manifest=manifest,
        graph=graph,
        tables=tables,
        usual=record.states.usual() if record.states else None,
        weights={k: np.ascontiguousarray(v.numpy()) for k, v in runs.weights(model).items()},
        run=runs.portable(record),
    )


def _described(
    model: Model, record: runs.RunRecord, session_id: str, metrics: dict[str, float]
) -> tuple[bundle.Manifest, AttentionTables]:
    """The manifest, without checksums, and the tables of a model for one session."""
    config = record.config()
    prefix = f"{session_id}/"
    words = [word for word in record.unit_words if word.startswith(prefix)]
    scale = record.scale(session_id)
    manifest = bundle.Manifest(
        decoder_id=bundle.new_decoder_id(session_id.removeprefix("/")),
        family=record.family,
        preset=record.preset,
        sizes=sizes(config),
        outputs=tuple(
            bundle.Output(name=name, unit="m/s", scale=scale.std[i], offset=scale.mean[i])
            for i, name in enumerate(("vel_x", "vel_y"))
        ),
        session_id=session_id.removeprefix("/"),
        unit_ids=tuple(word.removeprefix(prefix) for word in words),
        provenance=_provenance(record),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        history=tuple(_point(point) for point in record.history),
        checksums={},
    )
    return manifest, fold_tables(model, config, words, session_id)


def _provenance(record: runs.RunRecord) -> dict[str, str | float | int]:
    base = record.settings.get("base")  # the decoder it was recalibrated from
    return {
        **({"base": base} if base else {}),
        "seed": record.seed,
        "steps": record.step,
        "training_seconds": round(record.seconds, 1),
        "torch": torch.__version__,
        "torch_brain": version("torch-brain"),
        "opset": OPSET,
    }
