"""Formulas as MathML, which browsers draw themselves: no script, no fonts."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace the formulas that `pymdownx.arithmatex` marks."""
    html = INLINE.sub(lambda found: _mathml(found[1], "inline"), html)
    return BLOCK.sub(lambda found: f"<p>{_mathml(found[1], 'block')}</p>", html)


def _mathml(latex: str, display: str) -> str:
    return convert(unescape(latex).strip(), display=display)
