"""Which columns of a series are x and y, by the axis names in the file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from decoder.arrays import Floats
from decoder.errors import ImportFailedError
from streaming.lengths import metres_in

_ITEM = (
    r"(?<![\w.])[+-]?(?:[a-z]+[_ ])??(?:x|y|z|t|time|timestamps?|horizontal|vertical|depth)\d?"
    r"(?:[-_ ](?:pos(?:ition)?|vel(?:ocity)?|coordinates?|axis))?(?![\w-])"
)
_SEPARATOR = r"\s*(?:,|;|/|\||\band\b|\bthen\b|\s)\s*(?:and\s+|then\s+)?"
_RUN = re.compile(rf"{_ITEM}(?:{_SEPARATOR}{_ITEM})*")
_PACKED = re.compile(r"(?<![\w.-])(?:[+-]?[xyzt]){2,}(?![\w-])")
_AXIS = re.compile(
    r"([+-]?)(?:[a-z]+[_ ])??(x|y|z|t(?:ime(?:stamps?)?)?|horizontal|vertical|depth)"
)
_NEGATIVE = re.compile(r"−|\b(?:minus|negative)\s+")
_MEANS = {"horizontal": "x", "vertical": "y", "depth": "z"}
_SAME_TIME = 1e-6  # share of the span by which a time column may differ from the timestamps
Columns = tuple[tuple[int, float], ...]  # for x and y: (column counted from 0, sign)
XY: Columns = ((0, 1.0), (1, 1.0))


@dataclass(frozen=True)
class Axis:
    """The axis of one column: `x`, `y`, `z` or `t`, and its sign."""

    name: str
    sign: float


def xy(
    data: Floats,
    times: Floats,
    texts: Sequence[str],
    *,
    columns: tuple[int, int] | None,
    what: str,
    notes: list[str],
) -> Columns:
    """Find the columns x and y of data (n, k).

    texts: fields of the file that may name the columns. columns: `--columns`, counted from 1.
    Raises ImportFailedError if the columns can't be told apart.
    """
    n_columns = data.shape[1] if data.ndim == 2 else 0
    if n_columns < 2:
        raise ImportFailedError(f"{what} has shape {data.shape}; expected (n_samples, 2), x and y")
    if columns is not None and max(map(abs, columns)) <= n_columns:
        return tuple((abs(c) - 1, float(np.sign(c))) for c in columns)
    if columns is not None and n_columns > 2:
        raise ImportFailedError(
            f"{what} has {n_columns} columns; --columns {columns} names another. Choose from 1 to "
            f"{n_columns}"
        )
    named = named_axes(texts, n_columns)
    if named is not None:
        return _by_name(named, what, notes)
    time_columns = [i for i in range(n_columns) if _is_time(data[:, i], times)]
    others = [i for i in range(n_columns) if i not in time_columns]
    if len(others) != 2:
        seen = f", {len(time_columns)} of them time" if time_columns else ""
        raise ImportFailedError(
            f"{what} has {n_columns} columns{seen}; expected two, or a description that names "
            "which are x and y. Choose with --columns, counted from 1 (such as --columns "
            f"{_example(others)}; -2 flips the sign of column 2)"
        )
    if time_columns:
        notes.append(f"{what}: column {time_columns[0] + 1} is time; the other two are x and y")
    return (others[0], 1.0), (others[1], 1.0)


def named_axes(texts: Sequence[str], n_columns: int) -> list[Axis] | None:
    """The axes listed in one of the texts (`z, -x, -y`; `time, x, y`; `xyz`), one per column.

    None if no text lists exactly `n_columns` axes.
    """
    for text in texts:
        plain = _without_units(_NEGATIVE.sub("-", text.lower()))
        listed = [match for run in _RUN.findall(plain) for match in re.findall(_ITEM, run)]
        packed = [re.findall(r"[+-]?[xyzt]", run) for run in _PACKED.findall(plain)]
        for items in (listed, *packed):
            axes = [_axis(item) for item in items]
            if len(axes) == n_columns and len({axis.name for axis in axes}) > 1:
                return axes
    return None


def _axis(item: str) -> Axis:
    match = _AXIS.match(item)
    assert match is not None
    name = match[2]
    return Axis(_MEANS.get(name, name[0]), -1.0 if match[1] == "-" else 1.0)


def _without_units(text: str) -> str:
    """Remove units in parentheses, as in `x (cm), y (cm)`."""

    def judge(match: re.Match[str]) -> str:
        return "" if metres_in(match[1]) is not None or match[1] in ("px", "s") else match[0]

    return re.sub(r"\s*[(\[]([^()\[\]]*)[)\]]", judge, text)


def _by_name(named: list[Axis], what: str, notes: list[str]) -> Columns:
    found = {name: [i for i, axis in enumerate(named) if axis.name == name] for name in "xy"}
    seen = ", ".join(f"{'-' if axis.sign < 0 else ''}{axis.name}" for axis in named)
    if not all(found.values()):
        raise ImportFailedError(
            f"{what} has the columns {seen}; expected x and y among them. Choose two with "
            "--columns, counted from 1"
        )
    chosen = tuple((found[name][0], named[found[name][0]].sign) for name in "xy")
    if chosen != XY or len(named) > 2:
        first = " (the first of each)" if max(map(len, found.values())) > 1 else ""
        notes.append(f"{what}: columns are {seen}; x and y were taken{first}")
    return chosen


def signed(data: Floats, columns: Columns) -> Floats:
    """The columns x and y (n, 2) of data (n, k)."""
    return np.stack([data[:, i] if sign > 0 else -data[:, i] for i, sign in columns], axis=1)


def _is_time(column: Floats, times: Floats) -> bool:
    """Whether a column holds the timestamps, from any origin, in any unit."""
    good = np.isfinite(column) & np.isfinite(times)
    if good.sum() < 3 or len(times) != len(column):
        return False
    values, at = column[good], times[good]
    span, at_span = float(np.ptp(values)), float(np.ptp(at))
    if not (span > 0 and at_span > 0 and (np.diff(values) > 0).all()):
        return False
    return bool(
        np.abs((values - values[0]) / span - (at - at[0]) / at_span).max() < _SAME_TIME * 100
    )


def _example(others: list[int]) -> str:
    return f"{others[0] + 1},{others[1] + 1}" if len(others) > 1 else "1,2"
