"""Scripts that Material would load from a content network, from npm packages instead.

    mermaid         draws diagrams; 3.6 MB, only on pages that have some
    iframe-worker   lets the search work on pages that are opened from disk

A script is checked against its checksum and kept in build/. Nothing is installed or run. Without
npm, diagrams are shown as their source, and pages on disk can't be searched.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

KEPT = Path(__file__).parent.parent.parent / "build" / "scripts"
DIAGRAM = '<pre class="mermaid">'
SHIM = re.compile(r'<script src="https://[^"]*iframe-worker[^"]*"></script>')  # of `offline`

log = logging.getLogger("mkdocs.hooks.scripts")


@dataclass(frozen=True, kw_only=True)
class Script:
    """A file of an npm package."""

    package: str
    version: str
    file: str
    sha256: str

    @property
    def kept(self) -> Path:
        return KEPT / f"{self.package}-{self.version}.js"

    @property
    def uri(self) -> str:
        return f"assets/javascripts/{self.kept.name}"

    def is_kept(self) -> bool:
        return self.kept.is_file() and _sha256(self.kept.read_bytes()) == self.sha256

    def tag(self, page: Page) -> str:
        return f'<script src="{get_relative_url(self.uri, page.url)}"></script>'

    def fetch(self) -> None:
        """Unpack the file, if npm and its registry are there."""
        KEPT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=KEPT) as folder:
            name = f"{self.package}@{self.version}"
            pack = ["npm", "pack", "--silent", "--pack-destination", folder, name]
            packed = subprocess.run(pack, capture_output=True, text=True, check=False, timeout=120)
            if packed.returncode:
                log.info("npm pack %s failed: %s", name, packed.stderr.strip())
                return
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
                found = package.extractfile(f"package/{self.file}")
                assert found is not None
                content = found.read()
            if _sha256(content) != self.sha256:
                raise RuntimeError(
                    f"{self.file} of {name} has the checksum {_sha256(content)}, expected "
                    f"{self.sha256}; don't use it"
                )
            unpacked = Path(folder) / "script"
            unpacked.write_bytes(content)
            unpacked.replace(self.kept)


MERMAID = Script(
    package="mermaid",
    version="11.17.2",
    file="dist/mermaid.min.js",
    sha256="581ed7d74bd9048d0e3a91363927d72ef22942d7722546b27f7cc29e35390eb8",
)
WORKER = Script(
    package="iframe-worker",
    version="1.0.4",
    file="shim/index.js",
    sha256="e8e412dbcfea9b7e31b5ffa288d7b6035915e714c542f4176a0cdbe262fc9609",
)


def on_config(config: MkDocsConfig) -> None:
    """Fetch the scripts that aren't there yet."""
    wanted = [script for script in (MERMAID, WORKER) if not script.is_kept()]
    if wanted and shutil.which("npm") is None:
        log.info("no npm: diagrams are shown as their source, pages on disk can't be searched")
        return
    for script in wanted:
        script.fetch()


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Load the scripts from the site. Mermaid must be there before Material looks for it."""
    output = SHIM.sub(WORKER.tag(page) if WORKER.is_kept() else "", output)
    if DIAGRAM not in output:
        return output
    if not MERMAID.is_kept():
        return output.replace(DIAGRAM, "<pre>")
    return output.replace("</head>", f"{MERMAID.tag(page)}</head>", 1)


def on_post_template(output_content: str, template_name: str, config: MkDocsConfig) -> str:
    """Load nothing on the page of missing pages, which doesn't know where it is."""
    return SHIM.sub("", output_content)


def on_post_build(config: MkDocsConfig) -> None:
    """Copy the scripts to the site."""
    for script in (MERMAID, WORKER):
        if script.is_kept():
            served = Path(config.site_dir) / script.uri
            served.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(script.kept, served)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
