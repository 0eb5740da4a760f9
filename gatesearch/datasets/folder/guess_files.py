"""Guess what kind of task label files are for, from their values."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.faults import FileFaultError
from gatesearch.datasets.folder.guess import FEW_CLASSES, GIVEN, IGNORE, Guess
from gatesearch.datasets.folder.label_files import read_label
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError

Array = NDArray[Any]
_MOST_CLASSES = 254  # that a byte can name beside the ignored one
_FEWEST, _SAMPLE = 8, 48  # files that are read in any case, and first
_SECONDS = 1.5  # that reading more than the fewest may take per task
_MOST_VALUES = 4096
_EDGE_WORDS = re.compile(r"(?i)edge|bound|contour|border")
_SEGMENT_WORDS = re.compile(r"(?i)seg|class|part|categor")
_NEARLY_ALL = 0.8
_METRES = 100.0
_MILLIMETRES = 300.0  # median from which whole numbers are no metres
_LARGEST_16_BIT = 2**16 - 1


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
        given = (GIVEN,)
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
        return 1 if len(positive) <= FEW_CLASSES else (int(largest) + 1) // 2
    return 128 if largest <= IGNORE else (int(largest) + 1) // 2


def _is_soft_mask(survey: Survey) -> bool:
    total = sum(survey.values.values())
    ends = survey.values[0.0] + survey.values[255.0]
    return len(survey.values) > FEW_CLASSES and ends >= 0.9 * total


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
    if not classes or classes[0] < 0 or len(classes) > _MOST_CLASSES:
        raise DataError(
            f"labels of classes must be at most {_MOST_CLASSES} whole numbers from 0, found "
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
