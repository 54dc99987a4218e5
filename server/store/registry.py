"""The registered decoders: a folder of bundles, each named after its decoder id."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from decoder.bundles.bundle import open_bundle
from decoder.bundles.manifest import GRAPH, MANIFEST, TABLES, WEIGHTS, Manifest, read_manifest
from decoder.errors import BundleError, VolitionError
from decoder.files import replacing
from server.problems import NotFoundError

SUFFIX = ".bundle"
FILES = (GRAPH, TABLES, WEIGHTS, MANIFEST)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A registered bundle with its manifest."""

    path: Path
    manifest: Manifest
    added: datetime


class Registry:
    """The bundles in `folder`, one subfolder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

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
    return Entry(path=path, manifest=manifest, added=added)


def _is_name(decoder: str) -> bool:
    """Whether an id is a valid folder name."""
    return Path(decoder).name == decoder and not decoder.startswith(".") and "\0" not in decoder


def _is_whole(target: Path) -> bool:
    try:
        return bool(open_bundle(target))
    except BundleError:
        return False
