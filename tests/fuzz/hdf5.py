"""Mutations of an HDF5 file: values, shapes, types, attributes, objects."""

from __future__ import annotations

import contextlib
from pathlib import Path

import h5py
import numpy as np

from tests.fuzz.mutate import Rng, mutate_bytes

NUMBERS = (0.0, -1.0, 1e-300, 1e9, 1.7e9, 1e300, np.nan, np.inf, -np.inf, 2.0**63)
TEXTS = ("", "cm", "px", "é", "x" * 100_000, "../../etc", "[/bold]", "nan", "z, -x, -y")
MOST_VALUES = 10**8  # of a dataset with data
MOST_BYTES = 2**34  # of a dataset that claims a size but has no data


def damage(path: Path, rng: Rng) -> None:
    """Damage a file's bytes or its content, with equal probability."""
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        return
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 4))):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RuntimeError):
                _change(file, rng)


def _change(file: h5py.File, rng: Rng) -> None:
    names: list[str] = []
    file.visit(names.append)
    if not names:
        return
    name = names[int(rng.integers(len(names)))]
    thing = file[name]
    kind = int(rng.integers(6))
    if kind == 0:
        del file[name]
    elif kind == 1 and (attributes := list(thing.attrs)):
        thing.attrs[attributes[int(rng.integers(len(attributes)))]] = _odd(rng)
    elif kind == 2:
        other = names[int(rng.integers(len(names)))]
        del file[name]
        file[name] = h5py.SoftLink("/nowhere" if rng.random() < 0.3 else f"/{other}")
    elif isinstance(thing, h5py.Dataset):
        _change_values(file, name, thing, kind, rng)
    else:
        del file[name]
        file[name] = _odd(rng)


def _change_values(file: h5py.File, name: str, old: h5py.Dataset, kind: int, rng: Rng) -> None:
    attributes = dict(old.attrs)
    if kind == 3 and old.dtype.kind in "fiu" and old.size:
        values = old[()]
        flat = np.atleast_1d(values).ravel()
        at = rng.integers(len(flat), size=int(rng.integers(1, 1 + min(len(flat), 50))))
        with np.errstate(all="ignore"):
            flat[at] = np.asarray(NUMBERS[int(rng.integers(len(NUMBERS)))]).astype(old.dtype)
        new: object = flat.reshape(np.shape(values))
    elif kind == 4:
        shape = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 7, 5000], size=rng.integers(0, 4)))
        if np.prod(shape, dtype=float) > MOST_VALUES:
            shape = shape[:1]
        new = np.zeros(shape, dtype=rng.choice(["f8", "i8", "i1", "f4", "S3"]))
    else:
        new = _odd(rng)
    del file[name]
    if kind == 5 and rng.random() < 0.3:  # claims a large size but has no data
        rows = int(rng.integers(1, MOST_BYTES // 16))
        file.create_dataset(name, shape=(rows, 2), dtype="f8", chunks=(1024, 2))
    else:
        file[name] = new
    file[name].attrs.update(attributes)


def _odd(rng: Rng) -> object:
    match int(rng.integers(4)):
        case 0:
            return NUMBERS[int(rng.integers(len(NUMBERS)))]
        case 1:
            return TEXTS[int(rng.integers(len(TEXTS)))]
        case 2:
            return rng.normal(size=int(rng.integers(0, 9)))
        case _:
            return np.array([TEXTS[int(i)].encode()[:50] for i in rng.integers(len(TEXTS), size=3)])
