"""The map of rooms in docs/ARCHITECTURE.md, drawn from the imports.

    python -m tests.rooms            # rewrite the map
    python -m tests.rooms --check    # exit 1 if the page is out of date

A room is a folder with Python files: a package or a sub-package. An arrow means that a file in one
room imports a file in another; arrows that follow from others are left out of the drawing.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("decoder", "streaming", "training", "server", "clients")
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- map -->", "<!-- /map -->"
ENTRY = "clients.__main__"  # starts everything, and nothing imports it
MAX_FILES, MAX_LINES = 9, 400

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the five packages by its dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_names(path: Path) -> Iterable[str]:
    """The dotted names that a file imports, at its top level and inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_graph() -> Graph:
    """Which module imports which."""
    known = modules()
    graph: Graph = {}
    for name, path in known.items():
        graph[name] = set()
        for imported in imported_names(path):
            while imported and imported not in known:
                imported = imported.rpartition(".")[0]
            if imported and imported != name:
                graph[name].add(imported)
    return graph


def room_of(module: str) -> str:
    """The room that a module is in."""
    if modules()[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0]


def room_graph() -> Graph:
    """Which room imports from which; the entry point is left out."""
    rooms = {module: room_of(module) for module in modules()}
    graph: Graph = {room: set() for room in rooms.values()}
    for module, imports in module_graph().items():
        if module != ENTRY:
            graph[rooms[module]] |= {rooms[other] for other in imports} - {rooms[module]}
    return graph


def circle(graph: Graph) -> list[str]:
    """The modules or rooms of one circle; empty if there is none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def reduced(graph: Graph) -> Graph:
    """The transitive reduction of a graph without circles."""
    reach: Graph = {}
    for room in TopologicalSorter(graph).static_order():
        reach[room] = set().union(graph[room], *(reach[other] for other in graph[room]))
    return {
        room: {
            other for other in others if not any(other in reach[via] for via in others - {other})
        }
        for room, others in graph.items()
    }


def files_of(room: str) -> list[Path]:
    """The Python files of a room, without `__init__.py` and the entry point."""
    folder = ROOT / room.replace(".", "/")
    return [p for p in sorted(folder.glob("*.py")) if not p.name.startswith("__")]


def sentence_of(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = ROOT / room.replace(".", "/") / "__init__.py"
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _node(room: str) -> str:
    """A room's name in the diagram; a package and its own files need different ones."""
    return room.replace(".", "_") if "." in room else f"{room}_files"


def drawing() -> str:
    """The map as Markdown: a Mermaid diagram, and a table of rooms."""
    graph = {room: others for room, others in room_graph().items() if files_of(room)}
    lines = ["```mermaid", "flowchart TB"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        for room in (room for room in sorted(graph) if room.split(".")[0] == package):
            label = room.partition(".")[2] or f"{package}/*.py"
            lines.append(f'    {_node(room)}["{label}"]')
        lines.append("  end")
    for room, others in sorted(reduced(graph).items()):
        lines += [f"  {_node(room)} --> {_node(other)}" for other in sorted(others)]
    lines += ["```", "", "| room | what it is for | files |", "|---|---|---|"]
    for package in PACKAGES:
        for room in (room for room in sorted(graph) if room.split(".")[0] == package):
            names = ", ".join(path.stem for path in files_of(room))
            lines.append(f"| `{room.replace('.', '/')}` | {sentence_of(room)} | {names} |")
    return "\n".join(lines)


def _with_lines(row: re.Match[str]) -> str:
    """A table row about a file, with its length and the lines of the names in it."""
    text = (ROOT / row[2]).read_text()
    ranges = {
        node.name: f"{node.lineno}–{node.end_lineno}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    what = re.sub(r"`(\w+)` [\d–]+", lambda named: f"`{named[1]}` {ranges[named[1]]}", row[3])
    return f"{row[1]} {len(text.splitlines())} |{what}"


def page_with_map(text: str) -> str:
    """A page's text with the map between its two markers, and the lines of the files it lists."""
    text = re.sub(r"^(\| `([\w/]+\.py)` \|)[ \d]*\|(.*)", _with_lines, text, flags=re.MULTILINE)
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{drawing()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.rooms", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    check = parser.parse_args().check
    text = PAGE.read_text()
    drawn = page_with_map(text)
    if check:
        return int(drawn != text)
    PAGE.write_text(drawn)
    return 0


if __name__ == "__main__":
    sys.exit(main())
