"""Checks, without the onnx package, that an ONNX graph needs no other file.

ONNX Runtime loads external weights from any path that a graph names, and no checksum covers those
files. Only the parts of the format that can hold a tensor are walked (protobuf messages of
onnx.proto3). A file that can't be walked is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from decoder.errors import BundleError

MAX_DEPTH = 40  # of nested graphs
DATA_LOCATION, EXTERNAL_DATA = 14, 13  # fields of a tensor

# message type -> field number -> message type of that field
PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def check_whole(file: Path) -> None:
    """Raise BundleError if a graph refers to data in other files, or can't be read."""
    content = memoryview(file.read_bytes())
    try:
        external = _is_external("model", content, 0)
    except (ValueError, IndexError) as error:
        raise BundleError(f"{file}: not an ONNX graph ({error}); export the run again") from error
    if external:
        raise BundleError(
            f"{file}: it refers to weights in another file, which no checksum covers; save it as "
            "one file (onnx.save with save_as_external_data=False) and export again"
        )


def _is_external(kind: str, message: memoryview, depth: int) -> bool:
    if depth > MAX_DEPTH:
        raise ValueError(f"graphs nested more than {MAX_DEPTH} deep")
    for field, value in _fields(message):
        if kind == "tensor":
            if field == EXTERNAL_DATA or (field == DATA_LOCATION and value):
                return True
        elif (part := PARTS[kind].get(field)) is not None:
            if not isinstance(value, memoryview):
                raise ValueError(f"field {field} of a {kind} is not a message")
            if _is_external(part, value, depth + 1):
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The field numbers and values of a protobuf message."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        match key & 7:  # protobuf's wire types
            case 0:
                value, at = _varint(message, at)
                yield key >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case wire_type:
                raise ValueError(f"wire type {wire_type}")
        if at + length > len(message):
            raise ValueError("it is truncated")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number has more than 64 bits")
