"""The REST routes of decoders: the registry, labels and pins, activation, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Response

from decoder.bundles.bundle import open_bundle
from decoder.errors import BundleError
from server.access.gate import Operator
from server.api.bodies import Alias, Decoder, DecoderDetail, DecoderPatch, NewDecoder
from server.api.routes import Id, On, Parts, status
from server.problems import documented
from server.schemas import ServerStatus
from server.store.registry import Entry

decoders = APIRouter(prefix="/v1/decoders", tags=["decoders"])


@decoders.get("")
def list_decoders(on: On) -> list[Decoder]:
    """List the decoders in the registry, newest first."""
    used = _used(on)
    return [Decoder(**_summary(entry, used)) for entry in on.registry.all()]


@decoders.post("", status_code=201, responses=documented(409))
def add_decoder(body: NewDecoder, on: On, who: Operator, response: Response) -> Decoder:
    """Verify a bundle on the server's host and copy it into the registry."""
    entry = on.registry.add(Path(body.path))
    on.journal.note(who, "register", decoder=entry.id, path=body.path)
    response.headers["Location"] = f"/v1/decoders/{quote(entry.id, safe='')}"
    return Decoder(**_summary(entry, _used(on)))


@decoders.post("/rollback", responses=documented(404, 409, 503))
def rollback(on: On, who: Operator) -> ServerStatus:
    """Go back to the previous decoder from the next tick on."""
    on.supervisor.rollback(who=who)
    return status(on)


@decoders.get("/{id}", responses=documented(404))
def get_decoder(id: Id, on: On) -> DecoderDetail:
    """One decoder with its unit ids; the checksums of its files are verified."""
    entry = on.registry.get(id)
    problem = entry.marks.problem
    try:
        open_bundle(entry.path)
    except BundleError as error:
        problem = str(error)
    return DecoderDetail(
        **_summary(entry, _used(on)),
        unit_ids=list(entry.manifest.unit_ids),
        path=str(entry.path.absolute()),
        problem=problem,
    )


@decoders.patch("/{id}", responses=documented(404, 409))
def patch_decoder(id: Id, body: DecoderPatch, on: On, who: Operator) -> Decoder:
    """Change the label or the pin of a decoder. A pinned one can't be deleted."""
    changes = body.model_dump(exclude_unset=True)
    entry = on.registry.get(id)
    if changes:
        entry = on.registry.mark(id, **changes)
        on.journal.note(who, "mark", decoder=id, **changes)
    return Decoder(**_summary(entry, _used(on)))


@decoders.delete("/{id}", status_code=204, responses=documented(404, 409))
def delete_decoder(id: Id, on: On, who: Operator) -> None:
    """Delete a decoder that is not pinned and that nothing needs, with its files."""
    on.calibrations.removal.remove(id, who=who)


@decoders.post("/{id}/activate", responses=documented(404, 409, 503))
def activate(id: Id, on: On, who: Operator) -> ServerStatus:
    """Warm up a decoder while the active one decodes, then swap between two ticks."""
    on.supervisor.activate(id, who=who)
    return status(on)


def _used(on: Parts) -> list[tuple[Alias, str | None]]:
    """The decoders that the daemon uses, if it answers."""
    now = on.supervisor.status
    if now is None:
        return []
    previous = on.supervisor.wanted.previous or now.previous  # as `SupervisedDaemon.rollback`
    return [("active", now.decoder), ("candidate", now.candidate), ("previous", previous)]


def _summary(entry: Entry, used: list[tuple[Alias, str | None]]) -> dict[str, Any]:
    manifest = entry.manifest
    aliases = [alias for alias, decoder in used if decoder == entry.id]
    return {
        "id": entry.id,
        "family": manifest.family,
        "preset": manifest.preset,
        "session": manifest.session_id,
        "units": len(manifest.unit_ids),
        "added": entry.added,
        "active": "active" in aliases,
        "metrics": manifest.metrics,
        "provenance": manifest.provenance,
        "label": entry.marks.label,
        "pinned": entry.marks.pinned,
        "aliases": aliases,
        "base": entry.base,
    }
