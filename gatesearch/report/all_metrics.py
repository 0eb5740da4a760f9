"""All metrics: every figure of every task and network, also those by which none are ranked."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from gatesearch.report import style
from gatesearch.report.layout import WIDTH, Block, Box, Section, draw_lines
from gatesearch.report.legend import draw_marker
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import (
    SeedGroup,
    baseline_groups,
    front_groups,
    shown_split,
    split_pages,
)
from gatesearch.report.text import fit, line_height, text_width, wrap
from gatesearch.results import Result, Split, StudyRecord, TaskInfo

_SIZE, _HEAD = 7.0, 7.0  # sizes of figures and of the head, points
_NAMES, _INDENT = 2.4, 0.12  # width of the figures' names at most, inches; of those below a task
_NARROWEST, _WIDEST = 0.58, 1.0  # of a column, the gap included
_GAP = 0.07
_HEAD_LINES = 3
_SPREAD = ("lowest", "highest")  # columns behind the networks


@dataclass(frozen=True)
class _Figure:
    """A row of the table.

    Attributes:
        name: The task, or one of its further figures.
        values: One per network; NaN where it was not measured.
        leads: Whether it is the figure that ranks networks, which opens the task's rows.
        higher: Whether higher is better; None for a further figure, which does not say.
    """

    name: str
    values: tuple[float, ...]
    leads: bool = False
    higher: bool | None = None


@dataclass(frozen=True)
class _Grid:
    """Where the columns of the table are.

    Attributes:
        names: Width of the figures' names, inches.
        width: Width of each column of figures, inches.
        count: Number of networks.
    """

    names: float
    width: float
    count: int

    def right(self, column: int) -> float:
        """Right edge of a column of figures."""
        return self.names + self.width * (column + 1)

    @property
    def end(self) -> float:
        """Right edge of the table."""
        return self.right(self.count + len(_SPREAD) - 1)


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield a table of all figures, or several of some networks each; none without further figures.

    A store of an older gatesearch has no further figures.
    """
    split = shown_split(record)
    groups = [*baseline_groups(record), *front_groups(record)]
    if not any(_details(result, split, task.name) for group in groups
               for result in group.results for task in record.tasks):  # fmt: skip
        return
    styles = network_styles(record)
    figures = [figure for task in record.tasks for figure in _figures(task, groups, split)]
    shifts = [(text_width(f.name, _SIZE, bold=f.leads), 0 if f.leads else _INDENT) for f in figures]
    names = min(max(width + shift for width, shift in shifts) + 2 * _GAP, _NAMES)
    most = max(int((WIDTH - names) / _NARROWEST) - len(_SPREAD), 1)
    parts = split_pages(range(len(groups)), most)
    for i, part in enumerate(parts):
        columns = len(part) + len(_SPREAD)
        grid = _Grid(names, min((WIDTH - names) / columns, _WIDEST), len(part))
        yield Section(
            "All metrics" if i == 0 else "All metrics, further networks",
            f"Every figure of every task, {split} split",
            [_row(figure, part, grid) for figure in figures],
            note=_NOTE if i == len(parts) - 1 else "",
            head=_head([groups[j] for j in part], styles, grid),
            keep=min(6, len(figures)),
        )


_NOTE = (
    "Bold rows: the metric that ranks networks, with the best bold. Below it: further figures, in "
    "their own units. Several seeds: mean. lowest, highest: over all networks of the report."
)


def _details(result: Result, split: Split, task: str) -> Mapping[str, float]:
    return result.details.get(split, {}).get(task, {})


def _figures(task: TaskInfo, groups: Sequence[SeedGroup], split: Split) -> Iterator[_Figure]:
    """Yield the rows of a task: its metric, and its further figures in the order of the kind."""
    unit = f", {task.unit}" if task.unit else ""
    metrics = tuple(
        group.mean(lambda r: r.metrics.get(split, {}).get(task.name, math.nan)) for group in groups
    )
    title = f"{task.name} · {task.metric}{unit} {style.arrow(task.higher_is_better)}"
    yield _Figure(title, metrics, leads=True, higher=task.higher_is_better)
    names = dict.fromkeys(
        name for group in groups for r in group.results for name in _details(r, split, task.name)
    )
    for name in names:

        def measure(result: Result, name: str = name) -> float:
            return _details(result, split, task.name).get(name, math.nan)

        yield _Figure(name, tuple(group.mean(measure) for group in groups))


def _head(groups: Sequence[SeedGroup], styles: Mapping[str, NetworkStyle], grid: _Grid) -> Block:
    room = grid.width - _GAP
    titles = [wrap(g.label, room, _HEAD, lines=_HEAD_LINES, bold=True) for g in groups]
    titles += [wrap(word, room, _HEAD) for word in _SPREAD]
    step = line_height(_HEAD)
    height = step * max(map(len, titles)) + 0.22

    def draw(box: Box) -> None:
        box.text(0, 0.14 + step / 2, "Figure", size=_HEAD, weight="bold")
        for i, lines in enumerate(titles):
            x = grid.right(i)
            is_network = i < len(groups)
            if is_network:
                draw_marker(box, styles[groups[i].label], x - 0.05, 0.06)
            color = style.INK if is_network else style.MUTED
            weight = "bold" if is_network else "normal"
            draw_lines(box, lines, x, 0.14, size=_HEAD, weight=weight, ha="right", color=color)
        box.rule(height - 0.03, to=grid.end)

    return Block(height, draw)


def _row(figure: _Figure, networks: Sequence[int], grid: _Grid) -> Block:
    finite = [value for value in figure.values if math.isfinite(value)]
    ends = (min(finite), max(finite)) if finite else (math.nan, math.nan)
    digits = style.decimals(figure.values, 4)
    best = math.nan if figure.higher is None else ends[1 if figure.higher else 0]
    step = line_height(_SIZE)
    above = 0.06 if figure.leads else 0.0

    def draw(box: Box) -> None:
        y = above + step / 2
        shift = 0.0 if figure.leads else _INDENT
        weight = "bold" if figure.leads else "normal"
        room = grid.names - shift - _GAP
        name = fit(figure.name, room, _SIZE, bold=figure.leads)
        box.text(shift, y, name, size=_SIZE, weight=weight)
        cells = [(figure.values[i], style.INK) for i in networks]
        cells += [(value, style.MUTED) for value in ends]
        for i, (value, color) in enumerate(cells):
            is_best = value == best and color == style.INK
            text = fit(style.number(value, digits), grid.width - 0.03, _SIZE, bold=is_best)
            box.text(
                grid.right(i), y, text, size=_SIZE, ha="right", color=color,
                weight="bold" if is_best else "normal",
            )  # fmt: skip

    return Block(above + step, draw, most=above + step + 0.03, with_next=figure.leads)
