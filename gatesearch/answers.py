"""Ways to tell predictions that are a few numbers per image: as columns of a table, and in words.

A kind of task names its way (`Task.drawing`), which the report and `gatesearch predict` look up in
`ANSWERS`. Nothing here needs torch, since the report must not load it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
Size = tuple[int, int]  # height and width, pixels
Cell = str | float

UNKNOWN = "–"
_DIGITS = 4  # significant ones of a number in words


@dataclass(frozen=True)
class Row:
    """A line on one image: what is true, and what each network answers.

    Attributes:
        name: Name of the attribute or value; empty for a task of one line.
        truth: What is true, `UNKNOWN` without a label.
        answers: What each network answers.
        right: Whether each answer is right; None where that is not known, or no question.
    """

    name: str
    truth: str
    answers: tuple[str, ...]
    right: tuple[bool | None, ...]


@dataclass(frozen=True)
class Answer:
    """A way to tell the numbers of an image.

    Attributes:
        legend: What the words mean.
        numbers: Numbers per name.
        heads: (names, unit) -> heads of the columns, each behind the name of the task.
        cells: (numbers of an image, names, size of the image) -> a cell per column.
        rows: (label or None, numbers of each network, names, unit) -> lines on an image; none for
            what is drawn over the image instead.
    """

    legend: str
    numbers: int
    heads: Callable[[Sequence[str], str], list[str]]
    cells: Callable[[Values, Sequence[str], Size], list[Cell]]
    rows: Callable[[Values | None, Sequence[Values], Sequence[str], str], list[Row]]


def complete_names(names: Sequence[str], count: int) -> list[str]:
    """List a name per value: those given, and numbers for the others.

    >>> complete_names(["cat"], 3)
    ['cat', '1', '2']
    """
    return [*names[:count], *map(str, range(len(names), count))]


def _class_heads(names: Sequence[str], unit: str) -> list[str]:
    return ["", *(f".{name}" for name in names)]


def _class_cells(chances: Values, names: Sequence[str], size: Size) -> list[Cell]:
    best = "" if np.isnan(chances).all() else names[int(np.nanargmax(chances))]
    return [best, *chances.tolist()]


def _class_rows(
    label: Values | None, networks: Sequence[Values], names: Sequence[str], unit: str
) -> list[Row]:
    index = -1 if label is None else int(label[0])
    known = 0 <= index < len(names)
    answers, right = [], []
    for chances in networks:
        if np.isnan(chances).all():
            answers.append(UNKNOWN)
            right.append(False if known else None)
            continue
        best = int(np.nanargmax(chances))
        answers.append(f"{names[best]} · {_percent(chances[best])}")
        right.append(best == index if known else None)
    return [Row("", names[index] if known else UNKNOWN, tuple(answers), tuple(right))]


def _attribute_heads(names: Sequence[str], unit: str) -> list[str]:
    return [""] if len(names) == 1 else [f".{name}" for name in names]


def _plain_cells(values: Values, names: Sequence[str], size: Size) -> list[Cell]:
    return list(values.tolist())


def _attribute_rows(
    label: Values | None, networks: Sequence[Values], names: Sequence[str], unit: str
) -> list[Row]:
    rows = []
    for i, name in enumerate(names):
        present = {0: False, 1: True}.get(-1 if label is None else int(label[i]))
        truth = UNKNOWN if present is None else ("yes" if present else "no")
        chances = [float(values[i]) for values in networks]
        right = tuple(None if present is None else (c > 0.5) == present for c in chances)
        answers = tuple(map(_percent, chances))
        rows.append(Row(name if len(names) > 1 else "", truth, answers, right))
    return rows


def _number_heads(names: Sequence[str], unit: str) -> list[str]:
    behind = f" ({unit})" if unit else ""
    return [behind] if len(names) == 1 else [f".{name}{behind}" for name in names]


def _number_rows(
    label: Values | None, networks: Sequence[Values], names: Sequence[str], unit: str
) -> list[Row]:
    rows = []
    for i, name in enumerate(names):
        truth = math.nan if label is None else float(label[i])
        answers = []
        for values in networks:
            value = float(values[i])
            off = value - truth
            sign = "−" if off < 0 else "+"
            error = f" ({sign}{_in_words(abs(off))})" if math.isfinite(off) else ""
            answers.append(_in_words(value) + error)
        known = f"{_in_words(truth)} {unit}".strip() if math.isfinite(truth) else UNKNOWN
        neither = (None,) * len(networks)
        rows.append(Row(name if len(names) > 1 else "", known, tuple(answers), neither))
    return rows


def _point_heads(names: Sequence[str], unit: str) -> list[str]:
    return [f".{name}.{axis}" for name in names for axis in ("x", "y", "score")]


def _point_cells(points: Values, names: Sequence[str], size: Size) -> list[Cell]:
    """Convert places in -1..1 from border to border to pixels; the first's centre is at (0, 0)."""
    height, width = size
    x, y, score = points.reshape(-1, 3).astype(np.float64).T
    pixels = [(x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5, score]
    return list(np.stack(pixels, 1).ravel().tolist())


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else UNKNOWN


def _in_words(value: float) -> str:
    """Write a number with four significant digits, as `34.21`, `−0.5` or `1.2e-07`.

    >>> [_in_words(value) for value in (34.2149, -0.5, 123456.0, 1.2e-7, 0.0)]
    ['34.21', '−0.5', '123456', '1.2e-07', '0']
    """
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.{_DIGITS}g}"
    if "e" in text and _DIGITS <= math.log10(abs(value)) < 9:
        text = f"{value:.0f}"
    return text.replace("-", "−", 1) if value < 0 else text


# What `Task.drawing` may name of tasks whose predictions are a few numbers per image.
ANSWERS: dict[str, Answer] = {
    "one_class": Answer(
        "Class: the most likely one with its probability.",
        1, _class_heads, _class_cells, _class_rows,
    ),
    "attributes": Answer(
        "Attribute: the probability that it is there.",
        1, _attribute_heads, _plain_cells, _attribute_rows,
    ),
    "numbers": Answer(
        "Value: in brackets, how much it is off.",
        1, _number_heads, _plain_cells, _number_rows,
    ),
    "points": Answer(
        "", 3, _point_heads, _point_cells,
        lambda label, networks, names, unit: [],
    ),
}  # fmt: skip
