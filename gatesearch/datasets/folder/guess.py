"""Guess what kind of task a user's labels are for, from their values.

Every guess comes with its reason, and is only a line of a study's file, which the user can change.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.faults import FileFaultError
from gatesearch.datasets.folder.label_files import read_label
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks.table_cells import number_of, plain_spelling, shown

Array = NDArray[Any]
IGNORE = 255
MOST_CLASSES = 254  # that a byte can name beside the ignored one
_FEWEST, _SAMPLE = 8, 48  # files that are read in any case, and first
_SECONDS = 1.5  # that reading more than the fewest may take per task
_MOST_VALUES = 4096
_EDGE_WORDS = re.compile(r"(?i)edge|bound|contour|border")
_SEGMENT_WORDS = re.compile(r"(?i)seg|class|part|categor")
_FEW_CLASSES = 20
_PER_CLASS = 3  # frames
_MOST_NAMES = 1000
_GIVEN = "kind was given"
_X = re.compile(r"(?i)^x[_. -]|[_. -]?x$")  # of the column of a point's x
_TRUE_OR_FALSE = {"true", "True", "TRUE", "false", "False", "FALSE"}
_OPPOSITES = {"yes": "no", "y": "n", "t": "f", "on": "off"}
# Cells that tables have in place of an empty one, in lower case.
_MISSING = {"na", "n/a", "#n/a", "nan", "null", "-", "--", "?"}
_LEFT_OR_RIGHT = re.compile(r"(?i)left|right|(?<![a-z])[lr](?![a-z])")
_OTHER_SIDE = {"left": "right", "right": "left", "l": "r", "r": "l"}
_NEARLY_ALL = 0.8
_METRES = 100.0
_MILLIMETRES = 300.0  # median from which whole numbers are no metres
_LARGEST_16_BIT = 2**16 - 1


@dataclass(frozen=True)
class Guess:
    """What is guessed of a task.

    Attributes:
        kind: A name in `gatesearch.tasks.TASKS`.
        options: Keys of `[tasks.NAME]` beside `kind` and `label`.
        reasons: Why, a line each.
        alternative: Another reading of the same values, as (what it would mean, its options).
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    alternative: tuple[str, Mapping[str, Any]] | None = None


@dataclass
class Survey:
    """Values of label files.

    Attributes:
        values: Value -> number of pixels; the most frequent ones where there are many.
        files: Number of files that were read.
        is_whole: Whether all values are whole numbers.
        vectors: Whether a pixel has three numbers.
        bits: Most bits per number.
        many: Whether there are more distinct values than are counted.
    """

    values: Counter[float] = field(default_factory=Counter)
    files: int = 0
    is_whole: bool = True
    vectors: bool = False
    bits: int = 8
    many: bool = False


def survey_labels(paths: Sequence[Path], *, kind: str = "") -> Survey:
    """Read a sample of label files that is spread over all, and more while that is quick.

    Args:
        paths: The files.
        kind: Kind of their task, if the user says it.

    Raises:
        DataError: One cannot be read.
    """
    survey = Survey()
    started = time.monotonic()
    # Samples that are spread over all files come first, so that few large files tell much.
    for path in dict.fromkeys(
        [*spread_evenly(paths, _FEWEST), *spread_evenly(paths, _SAMPLE), *paths]
    ):
        if survey.files >= _FEWEST and time.monotonic() - started > _SECONDS:
            break
        _add(survey, read_label(path, channels=3) if kind == "normals" else _read(path))
    return survey


def _read(path: Path) -> Array:
    try:
        return read_label(path)
    except FileFaultError as error:
        if error.kind not in ("label in colours", "label of another shape"):
            raise
        array = _three_channels(path)
        if array is None:
            raise
        return array


def _three_channels(path: Path) -> Array | None:
    """Read normals; None if the vectors of a file are none."""
    try:
        array = read_label(path, channels=3)
    except DataError:
        return None
    return array if _are_units(array) else None


def _are_units(vectors: Array) -> bool:
    """Whether nearly all vectors that are not zero have length 1; bytes store them around 127.5."""
    scaled = vectors.astype(np.float64)
    if vectors.dtype == np.uint8:
        scaled = np.where(vectors.any(-1, keepdims=True), vectors / 127.5 - 1, 0)
    lengths = np.linalg.norm(scaled.reshape(-1, 3), axis=1)
    known = lengths[np.isfinite(lengths) & (lengths > 0.1)]
    return bool(known.size) and bool((np.abs(known - 1) < 0.1).mean() > _NEARLY_ALL)


def _add(survey: Survey, array: Array) -> None:
    survey.files += 1
    survey.bits = max(survey.bits, 8 * array.dtype.itemsize)
    if array.ndim == 3:
        survey.vectors = True
        return
    finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    values, counts = np.unique(finite, return_counts=True)
    survey.is_whole &= bool((values == np.round(values)).all())
    if len(survey.values) + len(values) > _MOST_VALUES:
        keep = np.linspace(0, len(values) - 1, min(len(values), 64)).astype(int)
        values, counts = values[keep], counts[keep]
        survey.many = True
    survey.values.update(dict(zip(map(float, values), map(int, counts), strict=True)))


def guess_from_files(name: str, survey: Survey, *, kind: str = "") -> Guess:
    """Guess the task of label files.

    Args:
        name: Name of the task, which may tell edges and classes from the rest.
        survey: Values of the files.
        kind: The kind, if the user says it; only its options are guessed.
    """
    seen = f"{survey.files} file{'s' * (survey.files != 1)}"
    values = sorted(survey.values)
    if kind:
        given = (_GIVEN,)
    elif survey.vectors:
        kind, given = "normals", (f"three numbers per pixel of length 1 in {seen}",)
    else:
        kind, why = _kind_of_values(name, survey, values, seen)
        given = (why,)
    if kind == "normals":
        return Guess(kind, {"encoding": "rgb"} if survey.bits == 8 else {}, given)
    if not values:
        return Guess(kind, {}, given)
    if kind in ("saliency", "edges"):
        return _binary(kind, survey, values, given)
    if kind in ("semseg", "parts"):
        return _classes(kind, survey, values, seen, given)
    if kind == "depth":
        known = [value for value in values if value > 0]
        options: dict[str, Any] = {}
        reasons = [*given]
        if survey.is_whole and len(known) > 1 and known[-1] == _LARGEST_16_BIT > 2 * known[-2]:
            options = {"ignore": int(known.pop())}
            reasons.append(f"{_LARGEST_16_BIT} is ignored: far from the others")
        scale, why = _depth_scale(known, is_whole=survey.is_whole)
        options |= {} if scale == 1.0 else {"scale": scale}
        return Guess(kind, options, (*reasons, why))
    return Guess(kind, {}, given)


def _kind_of_values(
    name: str, survey: Survey, values: Sequence[float], seen: str
) -> tuple[str, str]:
    with_ignored = list(values) == [0, 1, IGNORE] or _is_trimap(values)
    two = len(values) <= 2 or with_ignored
    listed = ", ".join(f"{value:g}" for value in values[:3])
    has_zero = bool(values) and values[0] == 0
    if not values:
        raise DataError(f"labels of '{name}' must hold numbers, found none in {seen}")
    if two and survey.is_whole and has_zero and not _SEGMENT_WORDS.search(name):
        total = sum(survey.values.values())
        positive = sum(n for v, n in survey.values.items() if v not in (values[0],)) / max(total, 1)
        if _EDGE_WORDS.search(name):
            return "edges", f"values {listed} in {seen}, and its name"
        return "saliency", f"values {listed} in {seen}: a region, {positive:.0%} of the pixels"
    if survey.is_whole and survey.bits <= 8 and _is_soft_mask(survey):
        kind = "edges" if _EDGE_WORDS.search(name) else "saliency"
        return kind, f"values from 0 to 255 in {seen}, nearly all of them 0 or 255"
    if survey.is_whole and not survey.many and (survey.bits <= 8 or max(values) <= IGNORE):
        return "semseg", f"{len(values)} whole numbers in {seen}"
    what = "whole numbers beyond 255" if survey.is_whole else "floats"
    return "depth", f"{what} in {seen}, up to {max(values):g}"


def _binary(kind: str, survey: Survey, values: Sequence[float], given: tuple[str, ...]) -> Guess:
    """Guess which value of a mask is positive, or where to cut degrees."""
    positive = [value for value in values if value > 0]
    if _is_trimap(values):
        between = int(values[1])
        reasons = (*given, "255 is positive", f"{between} marks pixels without a label")
        return Guess(kind, {"positive": IGNORE, "ignore": between}, reasons)
    if len(positive) == 1 or (len(positive) == 2 and positive == [1, IGNORE]):
        options = {} if positive[0] == 1 else {"positive": int(positive[0])}
        reasons = (*given, f"{positive[0]:g} is positive")
        if len(positive) == 2:
            reasons = (*reasons, "255 marks pixels without a label")
        return Guess(kind, options, reasons)
    if not positive:
        return Guess(kind, {}, given)
    middle = _middle(positive, is_whole=survey.is_whole)
    return Guess(kind, {"threshold": middle}, (*given, f"degrees, positive from {middle:g}"))


def _is_trimap(values: Sequence[float]) -> bool:
    """Whether a mask has 0, 255 and, for pixels that may be either, a value halfway."""
    return len(values) == 3 and values[0] == 0 and 120 <= values[1] <= 135 and values[2] == IGNORE


def _middle(positive: Sequence[float], *, is_whole: bool) -> float:
    """Choose the degree from which pixels are positive: any where degrees are few and small."""
    largest = positive[-1]
    if not is_whole:
        return 0.5 if largest <= 1 else largest / 2
    if largest < 128:
        return 1 if len(positive) <= _FEW_CLASSES else (int(largest) + 1) // 2
    return 128 if largest <= IGNORE else (int(largest) + 1) // 2


def _is_soft_mask(survey: Survey) -> bool:
    total = sum(survey.values.values())
    ends = survey.values[0.0] + survey.values[255.0]
    return len(survey.values) > _FEW_CLASSES and ends >= 0.9 * total


def _classes(
    kind: str, survey: Survey, values: Sequence[float], seen: str, given: tuple[str, ...]
) -> Guess:
    if list(values) == [IGNORE]:
        raise DataError(
            f"labels of classes must be numbers from 0, found {IGNORE} alone in {seen}, which "
            "marks pixels without a label; name other files, or another --kind"
        )
    odd, why = _odd_one_out(values)
    classes = [int(value) for value in values if value != odd]
    if not classes or classes[0] < 0 or len(classes) > MOST_CLASSES:
        raise DataError(
            f"labels of classes must be at most {MOST_CLASSES} whole numbers from 0, found "
            f"{len(classes)}, {values[0]:g} to {values[-1]:g}, in {seen}; renumber them, or name "
            "another --kind"
        )
    count = classes[-1] + 1
    options: dict[str, Any] = {"classes": max(count, 2)}
    why_classes = f"{count} classes: the largest number is {classes[-1]}"
    if len(classes) > 1 and (classes[0] == 1 or 2 * len(classes) < count):
        options = {"classes": len(classes), "values": classes}
        why_classes = f"{len(classes)} classes: as many numbers, {classes[0]} to {classes[-1]}"
    reasons = [*given, why_classes]
    if odd is not None:
        options["ignore"] = int(odd)
        reasons.append(f"{odd:g} is ignored: {why}")
    alternative = None
    if odd is None and len(classes) > 2 and classes == list(range(count)):
        rest = {"classes": count - 1, "ignore": 0, "values": classes[1:]}
        alternative = ("if 0 marks pixels without a label", rest)
    return Guess(kind, options, tuple(reasons), alternative)


def _odd_one_out(values: Sequence[float]) -> tuple[float | None, str]:
    """Tell the value of pixels without a label, and why."""
    if len(values) < 3:
        return None, ""
    if values[-1] == IGNORE:
        return values[-1], "255 marks pixels without a label"
    if values[0] == -1:
        return values[0], "-1 is no class"
    follow = values[-2] - values[0] == len(values) - 2
    if follow and values[-1] > 2 * values[-2] + 1 and values[-1] > values[-2] + 10:
        return values[-1], f"far from the others, which end at {values[-2]:g}"
    return None, ""


def _depth_scale(known: Sequence[float], *, is_whole: bool) -> tuple[float, str]:
    """Guess the metres per stored unit from positive values, sorted."""
    if not known:
        return 1.0, "no depth is known"
    median = known[len(known) // 2]
    if is_whole and median >= _MILLIMETRES:
        return 0.001, f"millimetres: whole numbers around {median:g}"
    if known[-1] > _METRES:
        return 0.001, f"millimetres: values up to {known[-1]:g}"
    return 1.0, f"metres: values up to {known[-1]:g}"


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
        return Guess(kind, {}, (_GIVEN,))
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
    return Guess("classification", {"classes": names}, (*((_GIVEN,) * bool(kind)), why))


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
        why = _GIVEN if kind else f"{count} of {found}"
        reasons = (why, f"'{signs['positive']}' is positive") if "positive" in signs else (why,)
        return Guess("attributes", names | signs, reasons)
    if kind in ("", "regression") and are_numbers:
        why = _GIVEN if kind else f"{count} of numbers"
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
    reasons: tuple[str, ...] = (_GIVEN, f"{len(groups)} points of {step} columns")
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
    return whole and len(distinct) <= min(_FEW_CLASSES, len(values) / _PER_CLASS)


def _sorted_names(names: set[str]) -> list[str]:
    """Sort numbers by value, other names by letters."""
    return sorted(names, key=lambda name: (*_order(name), name))


def _order(name: str) -> tuple[int, float]:
    try:
        return 0, float(name)
    except ValueError:
        return 1, 0.0
