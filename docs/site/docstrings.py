"""Docstrings on the site: a line `name: what it is` of a docstring becomes an item of a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

ENTRY = re.compile(r"^((?:\*{0,2}[a-z]\w*)(?:, \*{0,2}[a-z]\w*)*): (?=\S)")
RAISES = re.compile(r"^(Raises|Returns) ")


class Entries(griffe.Extension):
    """Lists of arguments and attributes, in the form of this project's docstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The text with entries as items of Markdown lists. Code, which is indented, stays as it is."""
    lines: list[str] = []
    in_list = False
    for line in text.splitlines():
        entry = ENTRY.match(line)
        if entry or (in_list and RAISES.match(line)):
            if bool(entry) != in_list:
                lines.append("")  # a list and a paragraph need a blank line between them
            in_list = bool(entry)
        elif not line.strip():
            in_list = False
        lines.append(ENTRY.sub(r"- `\1`: ", line))
    return "\n".join(lines)
