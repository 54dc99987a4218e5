"""Random and mutated msgpack, as a broken or foreign client may send over ZeroMQ."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.fuzz.mutate import NUMBERS, Rng, mutate_bytes

WORDS = [
    "command", "load", "activate", "rollback", "setinput", "pause", "resume", "arm", "setfilters",
    "getstatus", "path", "decoder", "kind", "name", "why", "filters", "gain", "Spikes", "schema",
    "velocity", "valid", "state",
]  # fmt: skip
RAW = [
    b"\x91" * 100_000,  # nested arrays
    b"\x81\xa1a" * 50_000,  # nested maps
    b"\xdd\xff\xff\xff\xff",  # an array of 2^32 - 1 items
    b"\xdf\xff\xff\xff\xff\xa1a",
    b"\xdb\xff\xff\xff\xffabc",  # a string of 4 GB
    b"\xc6\xff\xff\xff\xff",
    b"\x81\xa7command\xa4\xff\xfe\xfd\xfc",  # not UTF-8
    b"\x82\xa7command\xa5pause\xa3why\xa4\xff\xfe\xfd\xfc",
    b"\x81\xc0\xc0",
    b"\xc1",
    b"\xd4\x05\x00",  # an extension
    b"",
]


def message(originals: Sequence[bytes], rng: Rng) -> bytes:
    """A mutation of one of `originals`, a random document, or a hostile one."""
    kind = rng.random()
    if kind < 0.6:
        original = originals[int(rng.integers(len(originals)))]
        return mutate_bytes(original, rng, at_most=3)
    if kind < 0.9:
        return _encode(_document(rng, 0))
    raw = RAW[int(rng.integers(len(RAW)))]
    return raw if rng.random() < 0.5 else mutate_bytes(raw, rng, at_most=3)


def _document(rng: Rng, depth: int) -> Any:
    kind = int(rng.integers(0, 8 if depth < 4 else 5))
    size = int(rng.integers(0, 5))
    if kind == 0:
        return [None, True, False, b"\xff\x00", ""][size]
    if kind == 1:
        number = NUMBERS[int(rng.integers(len(NUMBERS)))]
        return number if not isinstance(number, int) or -(2**63) <= number < 2**64 else 2**64 - 1
    if kind == 2:
        return rng.bytes(size * 10)
    if kind in (3, 4):
        return WORDS[int(rng.integers(len(WORDS)))]
    if kind == 5:
        return [_document(rng, depth + 1) for _ in range(size)]
    pairs = {WORDS[int(rng.integers(len(WORDS)))]: _document(rng, depth + 1) for _ in range(size)}
    return {"command": WORDS[int(rng.integers(1, 10))], **pairs} if kind == 6 else pairs


def _encode(document: Any) -> bytes:
    content = msgspec.msgpack.encode(document)
    return (
        content.replace(b"name", struct.pack(">I", 0xFFFEFDFC), 1)
        if b"name" in content
        else (content)
    )
