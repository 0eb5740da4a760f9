"""Write predictions that are a few numbers per image as one CSV file of all images."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from gatesearch.answers import ANSWERS, Cell, Size, complete_names
from gatesearch.files import sync_folder
from gatesearch.tasks import Task

Values = NDArray[np.generic]

PREDICTIONS = "predictions.csv"
# A spreadsheet takes a text that begins with one of these for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


class PredictionTable:
    """A CSV file with a row per image, which is put in place when it is whole.

    Rows go to a temporary file beside it, so that any number of images needs the same memory. Used
    with `with`: after an exception the temporary file is removed, and an earlier table stays.

    Columns: `image`, then for each task those of its drawing (`gatesearch.answers`). Text is UTF-8,
    in quotes where it holds a comma, a quote or a line break (RFC 4180); lines end in a line feed.
    A cell is empty where the prediction is not a number. So that no spreadsheet runs a name as a
    formula, an image whose path begins with `=`, `+`, `-`, `@`, a tab or a line break has `./`
    before it, which is the same file, and any other such text has an apostrophe.

    Args:
        path: The file; its folder exists.
        tasks: Task name -> task; those whose drawing is none of `ANSWERS` have no columns.
    """

    def __init__(self, path: Path, tasks: Mapping[str, Task]) -> None:
        self.path = path
        self._tasks = {name: task for name, task in tasks.items() if task.drawing in ANSWERS}
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def add(self, image: Path, predicted: Mapping[str, Values], size: Size) -> None:
        """Add the row of an image.

        Args:
            image: Its path, as the user named it.
            predicted: Task -> decoded prediction of the image; others than the table's are ignored.
            size: Height and width of the image, pixels.

        Raises:
            OSError: It cannot be written.
        """
        if not self._tasks:
            return
        heads: list[str] = ["image"]
        row: list[Cell] = [_safe_path(image)]
        for name, task in self._tasks.items():
            answer = ANSWERS[task.drawing]
            values = predicted[name].reshape(-1)
            names = complete_names(task.output_names, values.size // answer.numbers)
            heads += [name + head for head in answer.heads(names, task.unit)]
            row += answer.cells(values, names, size)
        if self._file is None:
            self._temporary.unlink(missing_ok=True)
            # Names that are no UTF-8 keep their bytes readable, as \udce9.
            self._file = self._temporary.open(
                "x", encoding="utf-8", errors="backslashreplace", newline=""
            )
            self._write([_safe_text(head) for head in heads])
        self._write([row[0], *map(_text, row[1:])])

    def close(self) -> bool:
        """Put the table in place; return False if it has no row, when nothing is written."""
        if self._file is None:
            return False
        file, self._file = self._file, None
        try:
            with file:
                file.flush()
                os.fsync(file.fileno())
            self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        return True

    def _write(self, cells: Sequence[Cell]) -> None:
        assert self._file is not None
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        self._file.write(line.getvalue())


def _safe_path(image: Path) -> str:
    text = str(image)
    return f"./{text}" if text.startswith(_FORMULA) else text


def _safe_text(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _text(cell: Cell) -> str:
    """Write a cell; a number of float32 with the fewest digits that give it back."""
    if isinstance(cell, str):
        return _safe_text(cell)
    return "" if np.isnan(cell) else str(np.float32(cell))
