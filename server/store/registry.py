"""The registered decoders: a folder of bundles, each named after its decoder id, with marks."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from decoder.bundles.bundle import open_bundle
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, WEIGHTS, Manifest, read_manifest
from decoder.errors import BundleError, VolitionError
from decoder.files import NAME_KEPT, replacing, sync_names
from server.problems import NotFoundError
from server.store.marks import Marks, file_of, read_marks, write_marks

SUFFIX, GONE = ".bundle", ".gone"
FILES = (GRAPH, TABLES, WEIGHTS, MANIFEST)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered bundle with its manifest."""

    path: Path
    manifest: Manifest
    added: datetime
    marks: Marks

    @property
    def id(self) -> str:
        return self.manifest.decoder_id

    @property
    def base(self) -> str | None:
        """The decoder that this one was trained from, if it is known."""
        base = self.manifest.provenance.get("base")
        return None if base is None else str(base)


class Registry:
    """The bundles in `folder`, one subfolder each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._marking = folder, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f".*{GONE}"):  # the server died while it deleted them
            _delete(left)

    def all(self) -> list[Entry]:
        """Every bundle with a readable manifest, newest first. Checksums are not verified."""
        found = [_entry(path) for path in self.folder.glob(f"*{SUFFIX}")]
        return sorted(
            (entry for entry in found if entry is not None),
            key=lambda entry: entry.added,
            reverse=True,
        )

    def get(self, decoder: str) -> Entry:
        """One bundle. Raises NotFoundError."""
        if _is_name(decoder):
            entry = _entry(self.path_for(decoder))
            if entry is not None and entry.manifest.decoder_id == decoder:
                return entry
        for entry in self.all():  # a folder that a person has named
            if entry.manifest.decoder_id == decoder:
                return entry
        raise NotFoundError(f"no decoder {decoder!r} is registered; see GET /v1/decoders")

    def is_usable(self, decoder: str | None) -> bool:
        """Whether a decoder is registered and its files match their checksums."""
        try:
            return decoder is not None and bool(open_bundle(self.get(decoder).path))
        except VolitionError:
            return False

    def path_for(self, decoder: str) -> Path:
        """The folder for a bundle with this id."""
        return self.folder / f"{decoder}{SUFFIX}"

    def add(self, path: Path) -> Entry:
        """Verify a bundle and copy its files into the registry, atomically.

        An intact bundle with the same id stays. Raises BundleError if the bundle is bad or can't be
        written.
        """
        decoder = open_bundle(path).manifest.decoder_id
        if not _is_name(decoder):
            raise BundleError(
                f"{path}: decoder id {decoder!r} can't name a folder; export it with another "
                "session id"
            )
        target = self.path_for(decoder)
        if not _is_whole(target):
            self._copy(path, target)
        return self.get(decoder)

    def mark(self, decoder: str, *, label: str | None = None, pinned: bool | None = None) -> Entry:
        """Change a decoder's label or pin. Raises NotFoundError, or MarksError if it can't."""
        changes = {"label": label, "pinned": pinned}
        with self._marking:
            entry = self.get(decoder)
            marks = msgspec.structs.replace(
                entry.marks, problem=None, **{n: v for n, v in changes.items() if v is not None}
            )
            write_marks(entry.path, marks)
        return self.get(decoder)

    @contextmanager
    def removing(self, entry: Entry) -> Iterator[None]:
        """Take a bundle out of the registry; delete it after the block, unless that raises.

        Raises BundleError if it can't be taken out.
        """
        name = f".{entry.path.name[:NAME_KEPT]}.{uuid.uuid4().hex[:8]}{GONE}"
        gone = entry.path.with_name(name)
        try:
            os.rename(entry.path, gone)
            sync_names(self.folder)
        except OSError as error:
            raise BundleError(f"{entry.path} can't be deleted ({error})") from error
        try:
            yield
        except BaseException:
            os.rename(gone, entry.path)
            raise
        with contextlib.suppress(OSError):
            file_of(entry.path).unlink()
        _delete(gone)

    def _copy(self, path: Path, target: Path) -> None:
        """Copy the files of a bundle to `target`, replacing a damaged copy, and sync them first.

        Other files in the folder are not copied; links are followed.
        """
        try:
            with replacing(target, BundleError) as partial:
                partial.mkdir()
                for name in FILES:
                    shutil.copyfile(path / name, partial / name)
                open_bundle(partial)
        except BundleError:
            if not _is_whole(target):  # otherwise another thread has copied it first
                raise


def _entry(path: Path) -> Entry | None:
    """The bundle in a folder; None if there is none, or while it is being replaced."""
    try:
        manifest, _ = read_manifest(path)
        added = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, UTC)
    except (OSError, BundleError):
        return None
    return Entry(path=path, manifest=manifest, added=added, marks=read_marks(path))


def _delete(path: Path) -> None:
    """Delete a folder, or a link to one. What can't be deleted is left for the next start."""
    if path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _is_name(decoder: str) -> bool:
    """Whether an id is a valid folder name."""
    return Path(decoder).name == decoder and not decoder.startswith(".") and "\0" not in decoder


def _is_whole(target: Path) -> bool:
    try:
        return bool(open_bundle(target))
    except BundleError:
        return False
