"""Pages and files outside docs/ on the site, with links that also work on a code host.

The front page is README.md. Other files of the repository that a page links to are copied.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
PAGES = {  # path in the repository: path on the site
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "docker/README.md": "CONTAINERS.md",
}
SOURCES = {uri: path for path, uri in PAGES.items()}
# Inline links: not images of other sites, not anchors of the same page.
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the files that pages link to."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    linked = {path for file in files.documentation_pages() for path in _linked(file)}
    for path in sorted(linked):
        if _site_uri(path) not in files.src_uris and (ROOT / path).is_file():
            uri = _site_uri(path)
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their targets are on the site."""
    here = _repository_path(page.file.src_uri)
    if not (ROOT / here).is_file():  # a page that is made at the build
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = _site_uri(_joined(here, link[1]))
        return posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(moved, markdown)


def _linked(file: File) -> Iterator[str]:
    """Paths in the repository that a page links to."""
    here = _repository_path(file.src_uri)
    if (ROOT / here).is_file():
        text = CODE.sub("", (ROOT / here).read_text(encoding="utf-8"))
        for link in LINK.findall(text):
            yield _joined(here, link)


def _joined(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _repository_path(uri: str) -> str:
    return SOURCES.get(uri, f"docs/{uri}")


def _site_uri(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}"
