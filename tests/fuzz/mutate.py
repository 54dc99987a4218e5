"""Mutations of bytes and JSON, reproducible from the random generator."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

Rng = np.random.Generator

WORDS = [
    struct.pack("<q", 0), struct.pack("<q", -1), struct.pack("<q", 2**63 - 1),
    struct.pack("<q", 2**31), struct.pack("<q", 2**40), struct.pack("<d", float("nan")),
    struct.pack("<d", float("inf")), struct.pack("<d", 1e308), b"\xff" * 8, b"\x80" * 8,
    b"{" * 8, b"../../..", "\u202e\u0000é".encode(),
]  # fmt: skip
TEXTS = ["", "x" * 100_000, "../../etc/passwd", "nul\0", "\ud800", "\u202e", "'\"]}<", " ", "\n"]
NUMBERS = [
    0, 1, -1, 3, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.0, 1e-300, 1e-9, 1e308, -1e308,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
# inserted into the text, because no encoder writes them
RAW = [
    "[" * 100_000,
    "[" * 100_000 + "]" * 100_000,
    "9" * 5_000,
    "1e9999",
    "-" + "9" * 5_000,
    "tru",
]


def mutate_bytes(data: bytes, rng: Rng, at_most: int = 8) -> bytes:
    """Flip, delete, insert, duplicate or overwrite bytes in one to `at_most` places."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, at_most + 1))):
        if not content:
            break
        at = int(rng.integers(len(content)))
        length = int(min(len(content) - at, 2 ** rng.integers(0, 12)))
        match int(rng.integers(7)):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.integers(256))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = rng.bytes(min(length, 64))
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                word = WORDS[int(rng.integers(len(WORDS)))]
                content[at : at + len(word)] = word
            case _:
                if rng.random() < 0.3:  # truncate
                    del content[at:]
    return bytes(content)


def mutate_json(document: Any, rng: Rng, at_most: int = 3) -> str:
    """A document as JSON text, with one to `at_most` values, keys or items changed.

    The text may be invalid JSON: nested too deeply, with a number of 5,000 digits, or truncated.
    """
    document = copy.deepcopy(document)
    raw: list[str] = []
    for _ in range(int(rng.integers(1, at_most + 1))):
        parent, key = _anywhere(document, rng)
        if parent is None:
            document = _strange(document, rng, raw)
        elif rng.random() < 0.15:
            del parent[key]
        elif isinstance(parent, dict) and rng.random() < 0.15:
            parent[_choose(TEXTS, rng)] = parent.pop(key)
        else:
            parent[key] = _strange(parent[key], rng, raw)
    text = json.dumps(document)
    for number, piece in enumerate(raw):
        text = text.replace(f'"@{number}@"', piece)
    return text


def _anywhere(document: Any, rng: Rng) -> tuple[Any, Any]:
    """A container and a key in it, at any depth; (None, None) for the whole document."""
    parent, key, value = None, None, document
    while isinstance(value, dict | list) and value and (parent is None or rng.random() < 0.7):
        parent = value
        key = (
            _choose(list(value), rng) if isinstance(value, dict) else int(rng.integers(len(value)))
        )
        value = parent[key]
    return (None, None) if rng.random() < 0.02 else (parent, key)


def _strange(value: Any, rng: Rng, raw: list[str]) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.3:
        factor = _choose([-1, 0, 0.5, 2, 10, 1e3, 1e-3, 1e9], rng)
        return type(value)(value * factor)
    kinds: list[Callable[[], Any]] = [
        lambda: _choose(NUMBERS, rng),
        lambda: _choose(TEXTS, rng),
        lambda: _choose([None, True, False, [], {}, [[]], {"": None}], rng),
        lambda: [value] * int(_choose([2, 3, 1000], rng)),
        lambda: {"nested": value},
    ]
    if rng.random() < 0.1:
        raw.append(_choose(RAW, rng))
        return f"@{len(raw) - 1}@"
    return _choose(kinds, rng)()


def _choose(options: list[Any], rng: Rng) -> Any:
    return options[int(rng.integers(len(options)))]
