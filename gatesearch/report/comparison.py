"""The table of networks, in the form of the poster's: metrics, gain and costs."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gatesearch.measures import mean_rank
from gatesearch.report import style
from gatesearch.report.layout import WIDTH, Block, Box, Section, draw_lines
from gatesearch.report.legend import draw_marker
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import (
    SeedGroup,
    baseline_groups,
    front_groups,
    has_weightings,
    shown_split,
    split_pages,
    training_ratio,
)
from gatesearch.report.text import fit, line_height, text_width, wrap
from gatesearch.results import Result, Split, StudyRecord, delta

_SIZE, _HEAD, _SMALL = 7.5, 7.0, 6.5  # sizes of figures, of the head, of deviations
_NAMES = 2.30  # width of the networks' names at most, inches
_MARK = 0.17  # of the marker before a name
_GAP = 0.07  # between columns
_NARROWEST, _WIDEST = 0.55, 0.98  # of a column, the gap included
_HEAD_LINES = 3  # of each part of a column's head


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        head: First part of the heading.
        kind: Second part.
        unit: Third part.
        measure: Network -> its figure.
        deviation: Network -> standard deviation of the figure over seeds.
        higher: Whether higher is better.
        signed: Whether figures are written with their sign.
        decimals: Digits after the point; -1 for as many as suit the figures.
    """

    head: str
    kind: str
    unit: str
    measure: Callable[[SeedGroup], float]
    deviation: Callable[[SeedGroup], float]
    higher: bool
    signed: bool = False
    decimals: int = -1


@dataclass(frozen=True)
class _Grid:
    """Where the columns of the table are.

    Attributes:
        names: Width of the networks' names, inches.
        width: Width of each column of figures, inches.
        count: Number of columns of figures.
    """

    names: float
    width: float
    count: int

    def right(self, column: int) -> float:
        """Right edge of a column of figures."""
        return self.names + self.width * (column + 1)


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield the table; one of more columns than fit on a page is continued in a second table."""
    split = shown_split(record)
    groups = [*baseline_groups(record), *front_groups(record)]
    columns = _make_columns(record, split, groups)
    styles = network_styles(record)
    several = any(len(group.results) > 1 for group in groups)
    widest = max((text_width(group.label, _SIZE) for group in groups), default=0.0)
    names = min(max(widest + _MARK + _GAP, 1.2), _NAMES)
    most = int((WIDTH - names) / _NARROWEST)
    count = len(record.tasks)
    parts: list[Sequence[_Column]] = [columns]
    if len(columns) > most:
        parts = [*split_pages(columns[:count], most), columns[count:]]
    for i, part in enumerate(parts):
        texts = [_texts(column, groups) for column in part]
        grid = _Grid(names, min((WIDTH - names) / len(part), _WIDEST), len(part))
        yield Section(
            "Networks compared" if i == 0 else "Networks compared, further columns",
            f"Baselines and the front's networks, {split} split",
            _rows(groups, texts, styles, grid, several=several),
            note=_caption(record, split, several) if i == len(parts) - 1 else "",
            head=_head(part, grid),
            keep=min(4, len(groups)),
        )


def _make_columns(record: StudyRecord, split: Split, groups: Sequence[SeedGroup]) -> list[_Column]:
    def column(
        head: str,
        kind: str,
        unit: str,
        measure: Callable[[Result], float],
        *,
        higher: bool = False,
        signed: bool = False,
    ) -> _Column:
        return _Column(
            f"{head} {style.arrow(higher)}", kind, unit, lambda g: g.mean(measure),
            lambda g: g.deviation(measure), higher, signed, 2 if signed else -1,
        )  # fmt: skip

    def metric(name: str) -> Callable[[Result], float]:
        return lambda r: r.metrics.get(split, {}).get(name, math.nan)

    tasks = [
        column(task.name, task.metric, task.unit, metric(task.name), higher=task.higher_is_better)
        for task in record.tasks
    ]
    columns = list(tasks)
    gains: tuple[tuple[str, Split], ...] = (("test", "test"), ("validation", "validation"))
    for name, part in gains:
        gain = partial(delta, record, split=part)
        columns.append(column("Δ MTL", name, "%", gain, higher=True, signed=True))
    directions = record.higher_is_better
    rows = {
        group.label: {
            task.name: column.measure(group)
            for task, column in zip(record.tasks, tasks, strict=True)
        }
        for group in groups
        if any(math.isfinite(column.measure(group)) for column in tasks)
    }
    ranks = mean_rank(rows, directions) if directions else {}
    rank = _Column(
        "MR ↓", "mean rank", "", lambda g: ranks.get(g.label, math.nan), lambda g: math.nan, False,
        decimals=1,
    )  # fmt: skip
    letter, factor = style.operations_unit(
        max((group.mean(lambda r: r.train_pflops) for group in groups), default=0.0)
    )
    return [
        *columns,
        rank,
        column("FLOPs", "network", "G", lambda r: r.gflops),
        column("FLOPs", "backbone", "G", lambda r: r.backbone_gflops),
        column("Params", "network", "M", lambda r: r.params_m),
        column("Training", "FLOPs", letter, lambda r: r.train_pflops * factor),
        *(
            [column("Training", "x uniform", "", partial(training_ratio, record))]
            if has_weightings(record)
            else []
        ),
        column("Training", "time", "min", lambda r: r.train_seconds / 60),
    ]


def _head(columns: Sequence[_Column], grid: _Grid) -> Block:
    """Make the head of the table: name, kind and unit of each column, wrapped to its width."""
    room = grid.width - _GAP
    parts = [
        (
            wrap(column.head, room, _HEAD, lines=_HEAD_LINES, bold=True),
            wrap(column.kind, room, _SMALL, lines=_HEAD_LINES) if column.kind else [],
            [fit(column.unit, room, _SMALL)] if column.unit else [],
        )
        for column in columns
    ]
    lines = [max(len(part[i]) for part in parts) for i in range(3)]
    tops = [0.0, lines[0] * line_height(_HEAD)]
    tops.append(tops[1] + lines[1] * line_height(_SMALL))
    height = tops[2] + lines[2] * line_height(_SMALL) + 0.08

    def draw(box: Box) -> None:
        box.text(0, line_height(_HEAD) / 2, "Network", size=_HEAD, weight="bold")
        for i, (head, kind, unit) in enumerate(parts):
            x = grid.right(i)
            draw_lines(box, head, x, 0, size=_HEAD, weight="bold", ha="right")
            draw_lines(box, kind, x, tops[1], size=_SMALL, ha="right", color=style.MUTED)
            draw_lines(box, unit, x, tops[2], size=_SMALL, ha="right", color=style.MUTED)
        box.rule(height - 0.03, to=grid.right(grid.count - 1))

    return Block(height, draw)


# Of a cell: figure, deviation or nothing, whether it is the best of the column.
_Cell = tuple[str, str, bool]


def _texts(column: _Column, groups: Sequence[SeedGroup]) -> list[_Cell]:
    """Write the figures of a column, a cell per network."""
    values = [column.measure(group) for group in groups]
    finite = [value for value in values if math.isfinite(value)]
    best = (max if column.higher else min)(finite, default=math.nan)
    digits = column.decimals
    if digits < 0:
        digits = style.decimals(values, 4 if column.higher else 3)
    write = style.signed if column.signed else style.number
    cells = []
    for group, value in zip(groups, values, strict=True):
        deviation = column.deviation(group)
        spread = f"±{style.number(deviation, digits)}" if deviation > 0 else ""
        cells.append((write(value, digits), spread, math.isfinite(value) and value == best))
    return cells


def _rows(
    groups: Sequence[SeedGroup],
    columns: Sequence[Sequence[_Cell]],
    styles: Mapping[str, NetworkStyle],
    grid: _Grid,
    *,
    several: bool,
) -> list[Block]:
    height = line_height(_SIZE) + (line_height(_SMALL) if several else 0.04)
    end = grid.right(grid.count - 1)

    def make(i: int) -> Block:
        group, cells = groups[i], [column[i] for column in columns]
        is_trial = group.results[0].trial is not None
        first_trial = is_trial and i > 0 and groups[i - 1].results[0].trial is None

        def draw(box: Box) -> None:
            if first_trial:
                box.rule(0, color=style.FAINT, to=end)
            spreads = any(spread for _, spread, _ in cells)
            used = line_height(_SIZE) + (line_height(_SMALL) if spreads else 0)
            y = (box.height - used) / 2 + line_height(_SIZE) / 2
            draw_marker(box, styles[group.label], 0.06, y)
            name = fit(group.label, grid.names - _MARK, _SIZE)
            box.text(_MARK, y, name, size=_SIZE)
            for j, (figure, spread, bold) in enumerate(cells):
                x = grid.right(j)
                weight = "bold" if bold else "normal"
                size = _size_that_fits(figure, grid.width - 0.06, bold=bold)
                box.text(x, y, figure, size=size, ha="right", weight=weight)
                if spread:
                    below = y + (line_height(_SIZE) + line_height(_SMALL)) / 2
                    spread = fit(spread, grid.width - 0.04, _SMALL)
                    box.text(x, below, spread, size=_SMALL, ha="right", color=style.MUTED)
            if i == len(groups) - 1:
                box.rule(box.height, to=end)

        return Block(height, draw, most=height + 0.10)

    if groups:
        return [make(i) for i in range(len(groups))]

    def draw_nothing(box: Box) -> None:
        text = "No complete baseline, and no front."
        box.text(0, box.height / 2, text, size=9, color=style.MUTED)

    return [Block(0.3, draw_nothing)]


def _size_that_fits(text: str, width: float, *, bold: bool) -> float:
    return _SIZE if text_width(text, _SIZE, bold=bold) <= width else _SMALL


def _caption(record: StudyRecord, split: Split, several: bool) -> str:
    more = " Several seeds: mean, standard deviation below." if several else ""
    if has_weightings(record):
        more += (
            " x uniform: training FLOPs, a weighting's own passes and all tries of scalar among "
            "them, over those of the same network under the study's weights."
        )
    more += "".join(f"\nData: {note}" for note in record.data.get("notes", ()))
    return (
        f"Metrics, MR and ranks: {split}. ↑ higher is better, ↓ lower. MR: mean over tasks of the "
        "rank among the rows, ties share the smaller rank. FLOPs = 2 x multiply-adds; network "
        "includes the heads, which no sharing saves. Training: 3 x forward FLOPs x images, and "
        f"wall-clock time. Bold: best of the column.{more}"
    )
