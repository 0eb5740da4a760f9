"""Cells of a row of a table, numbers or text, as kinds with labels per image read them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_cells(raw: NDArray[Any], count: int, *, what: str) -> list[str]:
    """Read the cells of a row as text; an empty text is no label.

    Whole numbers have no decimal point, whatever their type; NaN and None are no label; blanks
    around a text do not count.

    Args:
        raw: (K,) numbers or text.
        count: K.
        what: What the cells are, for the error, as "value per attribute".

    Raises:
        ValueError: There is another number of them.

    >>> read_cells(np.array([1.0, float("nan"), 2.5]), 3, what="value")
    ['1', '', '2.5']
    """
    values = np.asarray(raw).reshape(-1).tolist()
    if len(values) != count:
        raise ValueError(f"must have {count} {what}, found {len(values)}")
    return [_text_of(value) for value in values]


def _text_of(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def number_of(cell: str) -> float:
    """Read a number; NaN for an empty cell and for the text `nan`.

    Raises:
        ValueError: It is no finite number.
    """
    if not cell:
        return math.nan
    try:
        if "_" in cell:  # Python reads 1_000 as a number, and no table means one by it
            raise ValueError
        number = float(cell)
    except ValueError:
        raise ValueError(f"must be a number, as 3.5, found '{cell[:40]}'") from None
    if math.isinf(number):
        raise ValueError(f"must be a finite number, found '{cell[:40]}'")
    return number


def plain_spelling(cell: str) -> str:
    """Spell a whole number without sign, decimals and leading zeros; all other text stays.

    >>> [plain_spelling(text) for text in ("3.0", "03", "+3", "three", "3.5", "1e400")]
    ['3', '3', '3', 'three', '3.5', '1e400']
    """
    try:
        number = number_of(cell)
    except ValueError:
        return cell
    return str(int(number)) if number.is_integer() else cell


def shown(values: Sequence[object], most: int = 10) -> str:
    """List values for an error, not more than `most` of them."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(str(value)[:40] for value in values[:most]) + more
