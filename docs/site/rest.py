"""The page of REST requests and bodies, from the OpenAPI document of the server's own app."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
URI = "site/rest.md"
INTRODUCTION = """# REST requests and bodies

Made from the server's OpenAPI document, which a running server has at `/openapi.json`, also for
generators of clients. [The server](../REST.md) explains what the requests do.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, URI, content="\n".join(page(openapi()))))
    return files


def openapi() -> dict[str, Any]:
    """The document of a server with default settings, which is never started."""
    sys.path.insert(0, str(ROOT))
    from server.api.app import assemble, build_app
    from server.settings import ServerSettings

    with TemporaryDirectory() as home:
        parts = assemble(ServerSettings(home=Path(home)))
        try:
            return build_app(parts).openapi()
        finally:
            parts.supervisor.stop()
            parts.journal.close()


def page(document: dict[str, Any]) -> Iterator[str]:
    """The lines of the page: requests by tag, then bodies and answers by name."""
    yield INTRODUCTION
    operations = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    for tag in dict.fromkeys(operation["tags"][0] for *_, operation in operations):
        yield f"## {tag.capitalize()}\n"
        for method, path, operation in operations:
            if operation["tags"][0] == tag:
                yield from _operation(method, path, operation)
    yield "## Bodies and answers\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield from _schema(name, schema)


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield operation.get("description", operation["summary"]) + "\n"
    if found := operation.get("parameters", []):
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for one in found:
            needed = "required. " if one.get("required") else ""
            yield f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {needed}{_cell(one.get('description', ''))} |"  # noqa: E501
        yield ""
    if body := operation.get("requestBody"):
        yield f"Body: {_content(body)}\n"
    yield "| answer | body | |\n|---|---|---|"
    for code, answer in operation["responses"].items():
        yield f"| {code} | {_content(answer)} | {_cell(answer.get('description', ''))} |"
    yield ""


def _schema(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in schema:
        yield schema["description"] + "\n"
    if values := schema.get("enum"):
        yield "One of " + ", ".join(f"`{value}`" for value in values) + ".\n"
    if fields := schema.get("properties"):
        required = schema.get("required", [])
        yield "| field | type | default | |\n|---|---|---|---|"
        for field, of_field in fields.items():
            default = "required" if field in required else _default(of_field)
            yield f"| `{field}` | {_type(of_field)} | {default} | {_meaning(of_field)} |"
        yield ""
    for example in schema.get("examples", []):
        yield f"```json\n{json.dumps(example)}\n```\n"


def _default(schema: dict[str, Any]) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _meaning(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = {}
    for one in (schema, *schema.get("anyOf", [])):
        bounds |= {key: f"{sign} {one[key]:g}" for key, sign in signs.items() if key in one}
    limits = f" ({', '.join(bounds.values())})" if bounds else ""
    return _cell(schema.get("description", "")) + limits


def _content(of: dict[str, Any]) -> str:
    kinds = [_type(media.get("schema", {})) for media in of.get("content", {}).values()]
    return " or ".join(dict.fromkeys(kinds))


def _type(schema: dict[str, Any]) -> str:
    """A schema as a short text with links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[several])))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        if "prefixItems" in schema:
            return "[" + ", ".join(map(_type, schema["prefixItems"])) + "]"
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object" and isinstance(inside := schema.get("additionalProperties"), dict):
        return f"map to {_type(inside)}"
    return str(schema.get("format", kind))


def _anchor(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name.lower()).strip("-")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
