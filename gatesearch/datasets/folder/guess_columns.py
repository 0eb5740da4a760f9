"""Guess what kind of task columns of a table are for, from their cells."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gatesearch.datasets.folder.guess import FEW_CLASSES, GIVEN, IGNORE, Guess
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks.table_cells import number_of, plain_spelling, shown

_PER_CLASS = 3  # frames
_MOST_NAMES = 1000
_X = re.compile(r"(?i)^x[_. -]|[_. -]?x$")  # of the column of a point's x
_TRUE_OR_FALSE = {"true", "True", "TRUE", "false", "False", "FALSE"}
_OPPOSITES = {"yes": "no", "y": "n", "t": "f", "on": "off"}
# Cells that tables have in place of an empty one, in lower case.
_MISSING = {"na", "n/a", "#n/a", "nan", "null", "-", "--", "?"}
_LEFT_OR_RIGHT = re.compile(r"(?i)left|right|(?<![a-z])[lr](?![a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}


def guess_from_columns(name: str, columns: Mapping[str, Sequence[str]], *, kind: str = "") -> Guess:
    """Guess the task of columns of a table.

    Args:
        name: Name of the task.
        columns: Column -> its cells; empty ones are no labels.
        kind: The kind, if the user says it; only its options are guessed.

    Raises:
        UsageError: The columns are of no kind that is known.
    """
    filled = {column: [cell for cell in cells if cell] for column, cells in columns.items()}
    numbers = {column: _numbers(cells) for column, cells in filled.items()}
    if kind == "keypoints":
        return _points(filled)
    if len(columns) > 1 or kind in ("attributes", "regression"):
        return _several(filled, numbers, kind)
    cells = next(iter(filled.values()))
    if kind and kind != "classification":
        return Guess(kind, {}, (GIVEN,))
    missing = {cell for cell in cells if cell.casefold() in _MISSING}
    if missing and len(set(cells) - missing) > 1:
        return _with_missing(name, columns, missing, kind)
    names = list(
        {plain_spelling(cell): cell for cell in reversed(_sorted_names(set(cells)))}.values()
    )
    names.reverse()
    why = f"{len(names)} distinct values in {len(cells)} rows"
    values = next(iter(numbers.values()))
    if not kind and values is not None and not _are_classes(values):
        span = f"numbers from {min(values):g} to {max(values):g}"
        return Guess("regression", {}, (f"{span}, {why}",))
    if not kind and values is None and len(cells) < 2 * len(names):
        text = next(cell for cell in cells if _numbers([cell]) is None)
        raise UsageError(
            f"a column of names must have each name several times, found {why} in "
            f"'{next(iter(columns))}', such as '{text[:40]}'; write numbers as 3.5, or name "
            "another column"
        )
    if not 2 <= len(names) <= _MOST_NAMES:
        raise UsageError(
            f"classes must be 2 to {_MOST_NAMES}, found {why} of '{next(iter(columns))}'; name "
            "another column"
        )
    return Guess("classification", {"classes": names}, (*((GIVEN,) * bool(kind)), why))


def _with_missing(
    name: str, columns: Mapping[str, Sequence[str]], missing: set[str], kind: str
) -> Guess:
    """Guess the task of a column in which some cells say that there is no label, as `NA` does.

    Raises:
        UsageError: The others are of no known kind.
        DataError: There are several such words, or the others are numbers of no classes, which have
            an empty cell for it.
    """
    ((column, cells),) = columns.items()
    guess = guess_from_columns(
        name, {column: [cell for cell in cells if cell not in missing]}, kind=kind
    )
    words = ", ".join(f"'{word}'" for word in sorted(missing))
    if guess.kind == "regression" and _numbers(sorted(missing)) is not None:  # all of them `nan`
        return guess
    if guess.kind != "classification" or len(missing) > 1:
        raise DataError(
            f"column '{column}' must have empty cells where there is no label, found {words}; "
            "empty these cells"
        )
    (word,) = missing
    return Guess(
        guess.kind, {**guess.options, "ignore": word}, (*guess.reasons, f"{words} is no label")
    )


def _several(
    filled: Mapping[str, Sequence[str]], numbers: Mapping[str, list[float] | None], kind: str
) -> Guess:
    """Guess the task of several columns: attributes, or values.

    Raises:
        UsageError: A column holds text.
    """
    count = f"{len(filled)} column{'s' * (len(filled) != 1)}"
    cells = {cell for column in filled.values() for cell in column}
    are_numbers = all(column is not None for column in numbers.values())
    names: dict[str, Any] = {"names": list(filled)}
    signs = _signs(cells) if kind in ("", "attributes") else None
    if kind == "attributes" and signs is None:
        signs = _signs_by_order(cells)
    if signs is not None:
        found = ", ".join(_sorted_names(cells)[:3])
        why = GIVEN if kind else f"{count} of {found}"
        reasons = (why, f"'{signs['positive']}' is positive") if "positive" in signs else (why,)
        return Guess("attributes", names | signs, reasons)
    if kind in ("", "regression") and are_numbers:
        why = GIVEN if kind else f"{count} of numbers"
        return Guess("regression", names if len(filled) > 1 else {}, (why,))
    text = next(column for column, read in numbers.items() if read is None)
    raise UsageError(
        f"several columns of one task must hold numbers, found text in '{text}'; make a task of "
        f"each: --label NAME=FILE:{text}"
    )


def _signs(cells: set[str]) -> dict[str, Any] | None:
    """Tell the options that say which cells of attributes are positive; None if that is not known.

    >>> _signs({"Yes", "No"})
    {'positive': 'Yes', 'negative': 'No'}
    """
    spelled = {plain_spelling(cell) for cell in cells} - {str(IGNORE)}
    if spelled <= {"0", "1"} or cells <= _TRUE_OR_FALSE:
        return {}
    if spelled <= {"-1", "1"}:
        return {"negative": -1}
    for positive in spelled:
        others = spelled - {positive}
        if {_OPPOSITES.get(positive.casefold())} == {word.casefold() for word in others}:
            return {"positive": positive, "negative": others.pop()}
    return None


def _signs_by_order(cells: set[str]) -> dict[str, Any]:
    """Take the later one of two values for positive.

    Raises:
        UsageError: There is another number of them.
    """
    two = _sorted_names({plain_spelling(cell) for cell in cells} - {str(IGNORE)})
    if len(two) != 2:
        raise UsageError(
            f"attributes must have two values, as 1 and 0 or yes and no, found {len(two)}: "
            f"{shown(two, 5)}; leave cells without a label empty, or name another --kind"
        )
    return {"positive": two[1], "negative": two[0]}


def _points(filled: Mapping[str, Sequence[str]]) -> Guess:
    """Read columns x and y of each point, perhaps with its visibility, and name the points.

    Raises:
        UsageError: There is another number of columns, or they have another order.
        DataError: The places are shares of the image.
    """
    columns = list(filled)
    with_visibility = len(columns) % 3 == 0 and all(
        re.search(r"(?i)(^|[^a-z])v(is(ib.*)?)?$", column) for column in columns[2::3]
    )
    step = 3 if with_visibility else 2
    if len(columns) % step:
        raise UsageError(
            f"keypoints need two columns per point, x and y, found {len(columns)} columns; name "
            "them all, as FILE:nose_x,nose_y"
        )
    groups = [columns[i : i + step] for i in range(0, len(columns), step)]
    if turned := next((group for group in groups if _X.search(group[1])), None):
        raise UsageError(
            f"keypoints need x and then y of each point, found {turned[0]},{turned[1]}; name the "
            "columns in this order, as FILE:nose_x,nose_y,eye_x,eye_y"
        )
    places = [_numbers(filled[column]) or [] for group in groups for column in group[:2]]
    known = [value for values in places for value in values]
    if any(0 < value < 1 for value in known) and all(-1 <= value <= 1 for value in known):
        raise DataError(
            f"places of keypoints must be pixels of the image, found {min(known):g} to "
            f"{max(known):g}; multiply x by its width and y by its height"
        )
    names = [_X.sub("", group[0]) for group in groups]
    named = all(names) and len(set(names)) == len(names)
    options: dict[str, Any] = {"names": names} if named else {"count": len(groups)}
    reasons: tuple[str, ...] = (GIVEN, f"{len(groups)} points of {step} columns")
    if named and (pairs := _mirrored(names)):
        options["flip_pairs"] = pairs
        reasons = (*reasons, "left and right change places in mirrored images")
    return Guess("keypoints", options, reasons)


def _mirrored(names: Sequence[str]) -> list[list[str]]:
    """Pair the points whose names differ by left and right.

    >>> _mirrored(["nose", "left_eye", "right_eye"])
    [['left_eye', 'right_eye']]
    """

    def other(match: "re.Match[str]") -> str:
        word = _OTHER_SIDE[match[0].lower()]
        return word.upper() if match[0].isupper() else word.title() if match[0].istitle() else word

    pairs = [[name, _LEFT_OR_RIGHT.sub(other, name)] for name in names]
    places = {name: place for place, name in enumerate(names)}
    return [pair for pair in pairs if places[pair[0]] < places.get(pair[1], -1)]


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        return [number_of(cell) for cell in cells]
    except ValueError:
        return None


def _are_classes(values: Sequence[float]) -> bool:
    distinct = set(values)
    whole = all(value == round(value) for value in distinct)
    return whole and len(distinct) <= min(FEW_CLASSES, len(values) / _PER_CLASS)


def _sorted_names(names: set[str]) -> list[str]:
    """Sort numbers by value, other names by letters."""
    return sorted(names, key=lambda name: (*_order(name), name))


def _order(name: str) -> tuple[int, float]:
    try:
        return 0, float(name)
    except ValueError:
        return 1, 0.0
