"""The decoders that this server knows: a folder of bundles, whose own ids name them."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from decoder.bundle import MANIFEST, Bundle, Manifest, open_bundle, read_manifest
from decoder.errors import BundleError
from server.problems import NotFoundError

SUFFIX = ".bundle"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A bundle of the registry, by its manifest."""

    path: Path
    manifest: Manifest
    added: datetime


class Registry:
    """Bundles in `folder`, a subfolder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Entry]:
        """Every bundle with a readable manifest, newest first. Checksums are not verified."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            try:
                manifest, _ = read_manifest(path)
                added = datetime.fromtimestamp((path / MANIFEST).stat().st_mtime, UTC)
            except (OSError, BundleError):
                continue  # being replaced, or not ours
            found.append(Entry(path=path, manifest=manifest, added=added))
        return sorted(found, key=lambda entry: entry.added, reverse=True)

    def get(self, decoder: str) -> Entry:
        """One bundle. Raises NotFoundError."""
        for entry in self.all():
            if entry.manifest.decoder_id == decoder:
                return entry
        raise NotFoundError(f"no decoder {decoder!r} is registered; see GET /v1/decoders")

    def path_for(self, decoder: str) -> Path:
        """Where a bundle of this id belongs."""
        return self.folder / f"{decoder}{SUFFIX}"

    def add(self, path: Path) -> Entry:
        """Verify a bundle and copy it here, whole or not at all.

        What is here already stays. Raises BundleError where it can't be used or written.
        """
        bundle = self._verified(path)
        decoder = bundle.manifest.decoder_id
        if Path(decoder).name != decoder or decoder.startswith("."):
            raise BundleError(f"{path}: decoder id {decoder!r} can't be a folder's name")
        target = self.path_for(decoder)
        if not self._is_whole(target):
            self._copy(path, target)
        return self.get(decoder)

    def _is_whole(self, target: Path) -> bool:
        try:
            open_bundle(target)
        except BundleError:
            return False
        return True

    def _copy(self, path: Path, target: Path) -> None:
        """Put a copy in place, over one that is damaged."""
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=self.folder))
        try:
            copied = partial / "bundle"
            shutil.copytree(path, copied)
            (copied / MANIFEST).touch()
            if target.exists():
                os.rename(target, partial / "damaged")
            os.rename(copied, target)
        except OSError as error:
            if not self._is_whole(target):  # else somebody else was first
                raise BundleError(f"{path} can't be copied to {target} ({error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _verified(self, path: Path) -> Bundle:
        try:
            return open_bundle(path)
        except (OSError, ValueError) as error:  # a path that no file can have
            raise BundleError(f"{str(path)!r} can't be read ({error})") from error
