"""Self-contained HTML pages: the page template, figures as inline SVG, atomic writes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING

from decoder.errors import TrainingError
from decoder.files import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
p.sub {{ color: #666; margin-top: .2rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .35rem .9rem; text-align: right; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
tr.best td {{ font-weight: 600; background: #eef7f3; }}
svg {{ width: 100%; height: auto; }} .half {{ display: inline-block; width: 49%; }}
</style></head><body>
<h1>{title}</h1><p class="sub">{subtitle}</p>
{body}
</body></html>
"""


def write_page(text: str, path: Path) -> None:
    """Write a page atomically. Raises TrainingError if it can't be written."""
    write_text(path, text, TrainingError)


def svg(figure: Figure) -> str:
    """A figure as an SVG element, without the XML header and metadata."""
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
