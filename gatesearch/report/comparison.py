"""The table of networks, in the form of the poster's: metrics, gain and costs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gatesearch.measures import mean_rank
from gatesearch.report import style
from gatesearch.report.record_queries import (
    SeedGroup,
    baseline_groups,
    front_groups,
    has_weightings,
    shown_split,
    split_pages,
    training_ratio,
)
from gatesearch.results import Result, Split, StudyRecord, delta

_HEIGHT = 0.63  # of a page, for rows


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        head: First line of the heading.
        kind: Second line.
        unit: Third line.
        measure: Network -> its figure.
        deviation: Network -> standard deviation of the figure over seeds.
        higher: Whether higher is better.
        signed: Whether figures are written with their sign.
    """

    head: str
    kind: str
    unit: str
    measure: Callable[[SeedGroup], float]
    deviation: Callable[[SeedGroup], float]
    higher: bool
    signed: bool = False


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw as many pages as the rows need."""
    split = shown_split(record)
    groups = [*baseline_groups(record), *front_groups(record)]
    columns = _make_columns(record, split, groups)
    several = any(len(group.results) > 1 for group in groups)
    least = 0.036 if several else 0.027
    parts = split_pages(groups, int(_HEIGHT / least)) or [()]
    step = min(max(_HEIGHT / len(parts[0] or groups or [0]), least), 0.038)
    for part in parts:
        figure = style.page(
            "Networks compared", f"Baselines and the front's networks, {split} split"
        )
        _draw(figure, part, groups, columns, step)
        style.note(figure, _caption(record, split, several))
        yield figure


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
            head, kind, unit, lambda g: g.mean(measure), lambda g: g.deviation(measure),
            higher, signed,
        )  # fmt: skip

    def metric(name: str, higher: bool) -> tuple[Callable[[Result], float], bool]:
        return (lambda r: r.metrics.get(split, {}).get(name, math.nan)), higher

    length = 11 if len(record.tasks) > 4 else 14
    columns = []
    for task in record.tasks:
        measure, higher = metric(task.name, task.higher_is_better)
        arrow = "↑" if higher else "↓"
        head = f"{style.clip(task.name, length - 2)} {arrow}"
        kind = style.clip(task.metric, length)
        columns.append(column(head, kind, task.unit, measure, higher=higher))
    tasks = list(columns)
    gains: tuple[tuple[str, Split], ...] = (("test", "test"), ("valid.", "validation"))
    for name, part in gains:
        gain = partial(delta, record, split=part)
        columns.append(column("Δ MTL ↑", name, "%", gain, higher=True, signed=True))
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
    return [
        *columns,
        _Column(
            "MR ↓",
            "mean rank",
            "",
            lambda g: ranks.get(g.label, math.nan),
            lambda g: math.nan,
            False,
        ),
        column("FLOPs ↓", "network", "G", lambda r: r.gflops),
        column("FLOPs ↓", "backbone", "G", lambda r: r.backbone_gflops),
        column("Params ↓", "network", "M", lambda r: r.params_m),
        column("Training ↓", "FLOPs", "P", lambda r: r.train_pflops),
        *(
            [column("Training ↓", "x uniform", "", partial(training_ratio, record))]
            if has_weightings(record)
            else []
        ),
        column("Training ↓", "time", "min", lambda r: r.train_seconds / 60),
    ]


def _draw(
    figure: Figure,
    part: Sequence[SeedGroup],
    all_groups: Sequence[SeedGroup],
    columns: Sequence[_Column],
    step: float,
) -> None:
    left, right, top = style.LEFT, style.RIGHT, 0.845
    names = 0.125 if len(columns) < 12 else 0.10
    width = min((right - left - names) / len(columns), 0.085)
    edges = [left + names + width * (i + 1) - 0.004 for i in range(len(columns))]
    small = 7.0 if len(columns) > 10 else 8.0
    for column, x in zip(columns, edges, strict=True):
        figure.text(x, top, column.head, size=small, weight="bold", ha="right", va="center")
        for i, line in enumerate((column.kind, column.unit)):
            figure.text(
                x, top - 0.020 - 0.017 * i, line, size=small - 1, color=style.MUTED, ha="right",
                va="center",
            )  # fmt: skip
    figure.text(left, top, "Network", size=small, weight="bold", va="center")
    end = edges[-1] + 0.004
    _line(figure, top - 0.052, end, style.INK)
    y = top - 0.052 - step * 0.62
    bests = [_best(column, all_groups) for column in columns]
    places = [_decimals(column, all_groups) for column in columns]
    for i, group in enumerate(part):
        trial = group.results[0].trial is not None
        if trial and i and part[i - 1].results[0].trial is None:
            _line(figure, y + step * 0.5, end, style.FAINT)
        color = style.ACCENT if trial else style.INK
        figure.text(
            left, y, style.clip(group.label, 22), size=small + 0.5, color=color, va="center"
        )
        for column, x, best, digits in zip(columns, edges, bests, places, strict=True):
            value, deviation = column.measure(group), column.deviation(group)
            shown = style.signed(value, digits) if column.signed else style.number(value, digits)
            bold = math.isfinite(value) and value == best
            lift = step * 0.17 if deviation > 0 else 0.0
            figure.text(
                x, y + lift, shown, size=small + 0.5, ha="right", va="center",
                weight="bold" if bold else "normal",
            )  # fmt: skip
            if deviation > 0:
                figure.text(
                    x, y - step * 0.25, f"±{style.number(deviation, digits)}", size=small - 2,
                    color=style.MUTED, ha="right", va="center",
                )  # fmt: skip
        y -= step
    if not part:
        figure.text(
            left, y, "No complete baseline, and no front.", size=9, color=style.MUTED, va="center"
        )
        y -= step
    _line(figure, y + step * 0.45, end, style.INK)


def _best(column: _Column, groups: Sequence[SeedGroup]) -> float:
    values = [v for v in map(column.measure, groups) if math.isfinite(v)]
    return (max if column.higher else min)(values, default=math.nan)


def _decimals(column: _Column, groups: Sequence[SeedGroup]) -> int:
    if column.signed:
        return 2
    if column.head.startswith("MR"):
        return 1
    return style.decimals([column.measure(group) for group in groups], 4 if column.higher else 3)


def _line(figure: Figure, y: float, right: float, color: str) -> None:
    figure.add_artist(Line2D([style.LEFT, right], [y, y], color=color, linewidth=0.8))


def _caption(record: StudyRecord, split: Split, several: bool) -> str:
    notes = record.data.get("notes", ())
    more = " Several seeds: mean, standard deviation below." if several else ""
    if has_weightings(record):
        more += (
            "\nx uniform: training FLOPs, a weighting's own passes and all tries of scalar among "
            "them, over those of the same network under the study's weights."
        )
    more += "".join(f"\nData: {note}" for note in notes)
    return (
        f"Metrics, MR and ranks: {split}. MR: mean over tasks of the rank among the rows, ties "
        "share the smaller rank. FLOPs = 2 x multiply-adds; network includes the heads, which no "
        "sharing saves.\nTraining: 3 x forward FLOPs x images, and wall-clock time. Bold: best of "
        f"the column.{more}"
    )
