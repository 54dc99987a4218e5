"""Labels and pins of decoders, what may be deleted, and how many are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import httpx
import pytest

from clients.control import ControlClient
from clients.harness.server import Server
from clients.rest import ProblemError
from decoder.bundles.bundle import open_bundle
from decoder.errors import BundleError
from server.schemas import CalibrationRequest
from server.settings import ServerSettings
from server.store.journal import Journal, JournalError
from server.store.registry import Registry
from streaming.wire import control
from tests.rig import wait_for
from tests.server.conftest import POSSM
from tests.server.orders_rig import tiny_bundle

SHIPPED = open_bundle(POSSM).manifest.decoder_id
CHAIN = {"child": SHIPPED, "grandchild": "child"}
LOOSE = ("a", "b", "c", "d")  # nothing is based on them


@contextmanager
def serving(home: Path, **more: str) -> Iterator[tuple[Server, ControlClient]]:
    """A server whose spikes never come, in a home that may already have decoders."""
    with (
        Server(POSSM, home, "nobody-streams-this", **more) as server,
        ControlClient(server.url, operator="Ada") as client,
    ):
        yield server, client


def fill(home: Path, *decoders: str) -> None:
    """Register decoders before the server starts, oldest first."""
    (home / "decoders").mkdir(parents=True, exist_ok=True)
    for decoder in decoders:
        tiny_bundle(home / "decoders" / f"{decoder}.bundle", decoder, base=CHAIN.get(decoder))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, ControlClient]]:
    home = tmp_path_factory.mktemp("home")
    fill(home, *CHAIN, *LOOSE)
    with serving(home) as running:
        yield running


def remaining(client: ControlClient) -> set[str]:
    return {decoder.id for decoder in client.decoders()}


def refused(client: ControlClient, decoder: str) -> str:
    """Why a decoder can't be deleted; it is still there."""
    with pytest.raises(ProblemError) as caught:
        client.delete_decoder(decoder)
    assert caught.value.problem.status == 409
    assert caught.value.problem.type == "/problems/conflict"
    assert client.decoder(decoder).problem is None, "its files are intact"
    return caught.value.problem.detail


def test_a_label_and_a_pin_outlive_the_server(shared: tuple[Server, ControlClient]) -> None:
    server, client = shared
    plain = client.decoder("a")
    assert (plain.label, plain.pinned, plain.base) == ("", False, None)
    label = 'Müller\'s "best" \\ 手'
    assert client.mark_decoder("a", label=label).label == label
    marked = client.mark_decoder("a", pinned=True)
    assert (marked.label, marked.pinned) == (label, True)
    server.stop()
    server.start()
    kept = client.decoder("a")
    assert (kept.label, kept.pinned, kept.problem) == (label, True, None)
    assert client.mark_decoder("a", label="", pinned=False).label == ""
    assert client.decoder("a") == plain
    noted = [c.detail for c in client.journal() if (c.who, c.what) == ("Ada", "mark")]
    assert noted[:3] == [
        {"decoder": "a", "label": "", "pinned": False},
        {"decoder": "a", "pinned": True},
        {"decoder": "a", "label": label},
    ]


@pytest.mark.parametrize(
    "body",
    [
        b'{"label": "a\\u0000b"}', b'{"label": "a\\nb"}', b'{"label": "\\u0085"}',
        b'{"label": null}', b'{"label": 5}', b'{"label": "\\ud800"}', b'{"pinned": null}',
        b'{"pinned": 1}', b'{"name": "x"}', b"[]", json.dumps({"label": "x" * 101}).encode(),
    ],
)  # fmt: skip
def test_other_labels_and_pins_are_refused_and_change_nothing(
    shared: tuple[Server, ControlClient], body: bytes
) -> None:
    server, client = shared
    before = client.decoders()
    answer = httpx.patch(
        f"{server.url}/v1/decoders/a", content=body, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422, answer.text
    assert client.decoders() == before
    with pytest.raises(ProblemError, match="no decoder 'never' is registered"):
        client.mark_decoder("never", pinned=True)


def test_a_request_that_changes_nothing_is_not_in_the_journal(
    shared: tuple[Server, ControlClient],
) -> None:
    _, client = shared
    number = client.journal(1)[0].number
    assert client.mark_decoder("a").id == "a"
    assert client.journal(1)[0].number == number


def test_a_decoder_is_deleted_with_its_label(shared: tuple[Server, ControlClient]) -> None:
    server, client = shared
    folder = server.home / "decoders"
    shutil.copytree(folder / "d.bundle", server.home / "d.bundle")
    client.mark_decoder("d", label="old")
    answer = httpx.delete(f"{server.url}/v1/decoders/d", headers={"X-Operator": "Ada"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert not [path.name for path in folder.iterdir() if path.name.split(".")[0] in ("d", "")]
    change = client.journal(1)[0]
    assert (change.who, change.what, change.detail) == (
        "Ada", "delete", {"decoder": "d", "label": "old"},
    )  # fmt: skip
    with pytest.raises(ProblemError, match="no decoder 'd' is registered"):
        client.delete_decoder("d")
    assert client.add_decoder(str(server.home / "d.bundle")).label == ""


def test_what_the_daemon_uses_has_aliases_and_is_kept(
    shared: tuple[Server, ControlClient],
) -> None:
    server, client = shared
    client.activate("a")
    client.activate("b")
    path = str((server.home / "decoders" / "c.bundle").absolute())
    address = server.variables["VOLITION_CONTROL"]
    with closing(control.ControlClient(address, timeout_s=10.0)) as daemon:
        daemon.ask(control.Load(path=path))
    wait_for("the candidate", lambda: client.status().daemon.candidate == "c")
    aliases = {decoder.id: decoder.aliases for decoder in client.decoders() if decoder.aliases}
    assert aliases == {"b": ["active"], "a": ["previous"], "c": ["candidate"]}
    assert [decoder.id for decoder in client.decoders() if decoder.active] == ["b"]
    assert "is in use; activate another decoder first" in refused(client, "b")
    assert "previous decoder, for a rollback" in refused(client, "a")
    assert "candidate, ready to be activated" in refused(client, "c")
    client.activate("c")
    client.activate("d")
    client.delete_decoder("b")
    assert {"a", "c", "d"} < remaining(client)


def test_a_base_is_kept_as_long_as_a_decoder_is_based_on_it(
    shared: tuple[Server, ControlClient],
) -> None:
    _, client = shared
    bases = {decoder.id: decoder.base for decoder in client.decoders()}
    assert (bases["grandchild"], bases["child"], bases["a"]) == ("child", SHIPPED, None)
    assert "is the base of grandchild" in refused(client, "child")
    client.delete_decoder("grandchild")
    client.mark_decoder("child", pinned=True)
    assert "is pinned; unpin it first" in refused(client, "child")
    client.mark_decoder("child", pinned=False)
    client.delete_decoder("child")
    assert not {"child", "grandchild"} & remaining(client)


def ended(client: ControlClient, *, base: str) -> str:
    """The id of a calibration that began and ended."""
    begun = client.start_calibration(CalibrationRequest(seconds=5.0, base=base))
    return client.cancel_calibration(begun.id).id


def test_what_no_daemon_uses_now_is_kept_for_a_rollback_a_crash_and_a_calibration(
    tmp_path: Path,
) -> None:
    fill(tmp_path, *LOOSE)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.remember(active="a", previous="b", good="c", given=SHIPPED)
    journal.close()
    with serving(tmp_path) as (_, client):
        assert client.status().daemon.previous is None, "this daemon has not swapped"
        (previous,) = [one for one in client.decoders() if one.id == "b"]
        assert previous.aliases == ["previous"], "what a rollback goes back to"
        assert "for a rollback" in refused(client, "b")
        assert "last good decoder" in refused(client, "c")
        begun = client.start_calibration(CalibrationRequest(seconds=5.0, base=SHIPPED))
        assert f"is used by {begun.id}, which is collecting" in refused(client, SHIPPED)
        client.cancel_calibration(begun.id)
        assert remaining(client) == {SHIPPED, *LOOSE}, "all are kept by default"
        client.delete_decoder(SHIPPED)
        client.delete_decoder("d")
        assert remaining(client) == {"a", "b", "c"}


def test_only_so_many_decoders_are_kept_after_a_calibration(tmp_path: Path) -> None:
    fill(tmp_path, "first", *CHAIN, *LOOSE)
    with serving(tmp_path, VOLITION_KEEP_DECODERS="3") as (_, client):
        assert client.decoders()[0].id == SHIPPED, "the newest"
        client.activate("child")
        client.mark_decoder("a", label="the good day")
        client.mark_decoder("b", pinned=True)
        before = remaining(client)
        ended(client, base=SHIPPED)  # it has waited for the end of the retention
        # Kept are the shipped one, d and c as the newest, and `child`, as it decodes.
        gone = before - remaining(client)
        assert gone == {"grandchild", "first"}
        deleted = [c for c in client.journal() if c.what == "delete"]
        assert {c.detail["decoder"] for c in deleted} == gone
        assert {c.who for c in deleted} == {"retention"}
        client.mark_decoder("a", label="")
        ended(client, base=SHIPPED)
        assert remaining(client) == {SHIPPED, "c", "d", "b", "child"}
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ServerSettings(keep_decoders=0)


def damage(path: Path, how: str) -> None:
    match how:
        case "cut":
            path.write_text('{"label": "x", "pin')
        case "of another kind":
            path.write_text('{"label": 5, "pinned": "yes"}')
        case "huge":
            path.write_text(json.dumps({"label": "x" * 1_000_000, "pinned": False}))
        case "a folder":
            path.mkdir()


@pytest.mark.parametrize("how", ["cut", "of another kind", "huge", "a folder"])
def test_a_damaged_file_counts_as_a_pin_until_it_is_written_again(tmp_path: Path, how: str) -> None:
    registry = Registry(tmp_path / "decoders")
    tiny_bundle(tmp_path / "decoders" / "a.bundle", "a", base=None)
    damage(tmp_path / "decoders" / "a.json", how)
    marks = registry.get("a").marks
    assert (marks.label, marks.pinned) == ("", True)
    assert "a.json: label and pin can't be read" in str(marks.problem)
    if how == "a folder":
        (tmp_path / "decoders" / "a.json").rmdir()
    again = registry.mark("a", label="new", pinned=False).marks
    assert (again.label, again.pinned, again.problem) == ("new", False, None)


def fail_in(removing: AbstractContextManager[None], registry: Registry) -> None:
    with removing:
        assert registry.all() == []
        raise JournalError("on purpose")


def test_a_deletion_that_cannot_be_noted_is_undone(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "decoders")
    tiny_bundle(tmp_path / "decoders" / "a.bundle", "a", base=None)
    entry = registry.mark("a", label="kept")
    with pytest.raises(JournalError):
        fail_in(registry.removing(entry), registry)
    assert registry.get("a").marks.label == "kept"
    assert open_bundle(registry.get("a").path)
    with registry.removing(entry):
        pass
    with pytest.raises(BundleError, match="can't be deleted"), registry.removing(entry):
        pass
    assert list(registry.folder.iterdir()) == []


def test_a_deletion_that_was_cut_short_is_finished_by_the_next_server(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "decoders")
    tiny_bundle(tmp_path / "elsewhere" / "b.bundle", "b", base=None)
    for name in ("a", "b"):
        tiny_bundle(tmp_path / "decoders" / f"{name}.bundle", name, base=None)
    (tmp_path / "decoders" / "a.bundle").rename(tmp_path / "decoders" / ".a.bundle.1234.gone")
    (tmp_path / "decoders" / ".link.gone").symlink_to(tmp_path / "elsewhere" / "b.bundle")
    registry = Registry(tmp_path / "decoders")
    assert [path.name for path in registry.folder.iterdir()] == ["b.bundle"]
    assert open_bundle(tmp_path / "elsewhere" / "b.bundle"), "only the link is deleted"
