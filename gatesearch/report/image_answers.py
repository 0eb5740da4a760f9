"""Answers on whole images, as class, attributes and numbers: in words beside each image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.answers import ANSWERS, UNKNOWN, Row, complete_names
from gatesearch.drawing import OVERLAYS
from gatesearch.errors import DataError
from gatesearch.report import style
from gatesearch.report.layout import (
    WIDTH,
    Block,
    Box,
    Section,
    draw_lines,
    paragraph,
)
from gatesearch.report.legend import draw_marker
from gatesearch.report.network_styles import network_styles
from gatesearch.report.predictions import Column, columns_of, load_arrays, not_drawable
from gatesearch.report.record_queries import output_names
from gatesearch.report.text import fit, line_height, text_width, wrap
from gatesearch.results import StudyRecord, TaskInfo

_SIZE, _HEAD = 7.0, 7.5  # sizes of answers and of the head, points
_IMAGE, _HIGHEST = 1.7, 1.5  # largest width and height of an image, inches
_NAMES, _GAP = 2.1, 0.10  # width of the tasks' names at most; between columns
_SIGN = 0.14  # of the sign before an answer
_WIDEST = 1.75  # of a column
_LINES = 2  # of an answer at most
_BLOCK = 2.0  # height of the rows of a block, inches, unless one row is higher
_ROWS = 48  # on an image; networks' errors come first
RIGHT, WRONG = "✓", "✗"

Values = NDArray[Any]


@dataclass(frozen=True)
class _Grid:
    """Where the columns are, from the left edge.

    Attributes:
        names: Left edge of the tasks' names.
        columns: Left edge of the column of the truth.
        width: Width of the columns of the truth and of each network.
    """

    names: float
    columns: float
    width: float

    def left(self, column: int) -> float:
        """Left edge of a column, of which the first is that of the truth."""
        return self.columns + column * self.width


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield a section of all tasks whose predictions are told in words, if there are any."""
    tasks = [t for t in record.tasks if t.drawing in ANSWERS and t.drawing not in OVERLAYS]
    try:
        arrays = load_arrays(record)
    except (DataError, OSError):  # The section of pictures says so.
        return
    images = arrays.get("image")
    if images is None or len(images) == 0 or not tasks:
        return
    styles = network_styles(record)
    networks: list[Column] = []
    lines: list[list[Row]] = [[] for _ in images]
    faults = []
    shown = set()
    for task in tasks:
        _, *columns = columns_of(record, task, arrays, styles)
        if not columns:
            continue
        predicted = [column for column in columns if column.is_predicted]
        networks = networks or predicted
        truth = next((c.values for c in columns if not c.is_predicted), None)
        try:
            rows = _rows(task, truth, [column.values for column in predicted], len(images))
        except (IndexError, TypeError, ValueError) as error:
            faults.append(f"Left out: {not_drawable(task, error)}")
            continue
        if [column.title for column in predicted] != [column.title for column in networks]:
            faults.append(f"Left out: {task.name} has predictions of other networks.")
            continue
        shown.add(task.drawing)
        for frame, of_task in enumerate(rows):
            lines[frame] += [replace(row, name=_full_name(task, row)) for row in of_task]
    blocks = [paragraph(fault, size=8, color=style.MUTED) for fault in faults]
    if shown:
        grid = _grid(lines, len(networks))
        left_out = max(len(of_image) - _ROWS for of_image in lines)
        for number, (image, of_image) in enumerate(zip(images, lines, strict=True), start=1):
            blocks += _blocks(number, image, _most_telling(of_image), grid)
        legends = [answer.legend for name, answer in ANSWERS.items() if name in shown]
        yield Section(
            "Answers on whole images",
            "The images of the report beside truth and the networks' answers",
            blocks,
            note=_note(legends, left_out),
            head=_head(networks, grid),
        )
    elif blocks:
        yield Section("Answers on whole images", "", blocks)


def _rows(
    task: TaskInfo, truth: Values | None, networks: Sequence[Values], images: int
) -> list[list[Row]]:
    """Say in words what is stored of a task: per image its rows.

    Raises:
        ValueError: Values are not numbers per image.
    """
    answer = ANSWERS[task.drawing]
    every = [*networks, *([] if truth is None else [truth])]
    odd = [values.shape for values in every if values.ndim != 2 or len(values) != images]
    counts = {values.shape[1] for values in networks}
    if odd or len(counts) > 1:
        raise ValueError(f"numbers of {images} images expected, found {odd or sorted(counts)}")
    count = counts.pop() if counts else len(output_names(task)) or every[0].shape[1]
    names = complete_names(output_names(task), count // answer.numbers)
    return [
        answer.rows(None if truth is None else truth[i], [v[i] for v in networks], names, task.unit)
        for i in range(images)
    ]


def _full_name(task: TaskInfo, row: Row) -> str:
    return f"{task.name} · {row.name}" if row.name else task.name


def _most_telling(lines: Sequence[Row]) -> list[Row]:
    """Choose the rows for which there is room: those with errors first, in their order."""
    chosen = sorted(range(len(lines)), key=lambda i: False not in lines[i].right)[:_ROWS]
    return [lines[i] for i in sorted(chosen)]


def _note(legends: Sequence[str], left_out: int) -> str:
    signs = f"{RIGHT} right, {WRONG} wrong, {UNKNOWN} no label."
    more = f" Left out of each image: {left_out} rows, first those without errors."
    return " ".join([*legends, signs]) + (more if left_out > 0 else "")


def _grid(lines: Sequence[Sequence[Row]], networks: int) -> _Grid:
    names = [line.name for of_image in lines for line in of_image]
    widest = max((text_width(name, _SIZE) for name in names), default=0.0) + 1.5 * _GAP
    start = _IMAGE + 0.2
    columns = start + min(max(widest, 0.5), _NAMES)
    return _Grid(start, columns, min((WIDTH - columns) / (networks + 1), _WIDEST))


def _head(networks: Sequence[Column], grid: _Grid) -> Block:
    room = grid.width - _GAP - _SIGN
    titles = [wrap(c.title, room, _HEAD, lines=_LINES, bold=True) for c in networks]
    step = line_height(_HEAD)
    height = step * max(map(len, titles), default=1) + 0.08

    def draw(box: Box) -> None:
        for x, title in ((0.0, "Image"), (grid.names, "Task"), (grid.left(0) + _SIGN, "Truth")):
            box.text(x, step / 2, title, size=_HEAD, weight="bold")
        for i, (column, lines) in enumerate(zip(networks, titles, strict=True), start=1):
            x = grid.left(i)
            if column.network:
                draw_marker(box, column.network, x + 0.05, step / 2)
            draw_lines(box, lines, x + _SIGN, 0, size=_HEAD, weight="bold")
        box.rule(height - 0.03)

    return Block(height, draw)


@dataclass(frozen=True)
class _Cell:
    """A cell as it is drawn.

    Attributes:
        sign: `RIGHT`, `WRONG` or nothing.
        lines: Its text.
    """

    sign: str
    lines: list[str]


def _cells(line: Row, grid: _Grid) -> list[_Cell]:
    """Wrap the texts of a row: its name, the truth, and the networks' answers."""
    room = grid.width - _GAP - _SIGN
    signs = {True: RIGHT, False: WRONG, None: ""}
    texts = [line.truth, *line.answers]
    marks = ["", *(signs[right] for right in line.right)]
    name = wrap(line.name, grid.columns - grid.names - _GAP, _SIZE, lines=_LINES)
    return [_Cell("", name)] + [
        _Cell(mark, wrap(text, room, _SIZE, lines=_LINES))
        for mark, text in zip(marks, texts, strict=True)
    ]


def _blocks(number: int, image: Values, lines: Sequence[Row], grid: _Grid) -> list[Block]:
    """Make the blocks of an image: the first has the image, all have as many rows as fit."""
    step = line_height(_SIZE)
    parts: list[list[list[_Cell]]] = []
    height = 0.0
    for cells in (_cells(line, grid) for line in lines):
        high = step * max(len(cell.lines) for cell in cells)
        if not parts or height + high > _BLOCK:
            parts.append([])
            height = 0.0
        parts[-1].append(cells)
        height += high
    return [_block(number, image if i == 0 else None, part, grid) for i, part in enumerate(parts)]


def _block(
    number: int, image: Values | None, rows: Sequence[Sequence[_Cell]], grid: _Grid
) -> Block:
    step = line_height(_SIZE)
    title = line_height(_SIZE)
    wide = high = 0.0
    if image is not None:
        wide = min(_IMAGE, _HIGHEST * image.shape[1] / image.shape[0])
        high = wide * image.shape[0] / image.shape[1]
    heights = [step * max(len(cell.lines) for cell in cells) for cells in rows]
    total = max(sum(heights), title + high) + 0.12

    def draw(box: Box) -> None:
        text = f"Image {number}" if image is not None else f"Image {number}, continued"
        box.text(0, title / 2, fit(text, _IMAGE, _SIZE), size=_SIZE, color=style.MUTED)
        if image is not None:
            _draw_image(box, image, title, wide, high)
        y = 0.0
        for cells, row in zip(rows, heights, strict=True):
            draw_lines(box, cells[0].lines, grid.names, y, size=_SIZE)
            for i, cell in enumerate(cells[1:]):
                color = style.ALARM if cell.sign == WRONG else style.INK
                if cell.sign:
                    box.text(grid.left(i), y + step / 2, cell.sign, size=_SIZE, color=color)
                draw_lines(box, cell.lines, grid.left(i) + _SIGN, y, size=_SIZE, color=color)
            y += row
        box.rule(total - 0.06, color=style.FAINT)

    return Block(total, draw)


def _draw_image(box: Box, image: Values, y: float, width: float, height: float) -> None:
    axes = box.axes(0, y, width, height)
    axes.set_axis_off()
    step = -(-image.shape[1] // 400)
    axes.imshow(np.ascontiguousarray(image[::step, ::step]), interpolation="nearest", aspect="auto")
