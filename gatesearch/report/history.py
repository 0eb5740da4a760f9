"""The search by trial, and how gain and cost depend on each of its parameters."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gatesearch.pareto import hypervolume, pareto_front
from gatesearch.report import style
from gatesearch.report.layout import Section
from gatesearch.report.legend import Entry, legend_block
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.panels import Panel, panel_row
from gatesearch.report.record_queries import (
    complete_trials,
    is_crowded,
    network_label,
    split_pages,
)
from gatesearch.results import Result, StudyRecord, delta

_PARAMETERS_PER_ROW = 5


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield the search, and its parameters if it has any; nothing before a trial has completed."""
    trials = [t for t in complete_trials(record) if math.isfinite(delta(record, t, "validation"))]
    if not trials:
        return
    styles = network_styles(record)
    yield _search(record, trials, styles)
    parameters = _numeric_parameters(record, trials)
    if parameters:
        yield _influence(record, trials, parameters, styles)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Compute the rank correlation: Pearson's of ranks, where ties have their mean rank.

    Returns:
        In [-1, 1]; NaN if one of them is constant.

    >>> spearman([1, 2, 3], [10, 30, 20])
    0.5
    """
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm > 0 else math.nan


def _volumes(points: Sequence[tuple[float, float]], corner: tuple[float, float]) -> list[float]:
    """Compute the hypervolume of (gain up, cost down) after every point."""
    dominating: list[tuple[float, float]] = []
    volumes: list[float] = []
    for gain, cost in points:
        if not any(g >= gain and c <= cost for g, c in dominating):
            dominating.append((gain, cost))
            dominating = [dominating[i] for i in pareto_front(dominating, [True, False])]
            volumes.append(hypervolume(dominating, corner, [True, False]))
        else:
            volumes.append(volumes[-1])
    return volumes


def _search(
    record: StudyRecord, trials: Sequence[Result], styles: Mapping[str, NetworkStyle]
) -> Section:
    numbers = [_number(t) for t in trials]
    gains = [delta(record, t, "validation") for t in trials]
    costs = [t.gflops for t in trials]
    colors = [_colour(t, styles) for t in trials]
    lost = [_number(t) for t in record.trials if t.state != "complete"]
    corner = (min(gains), max(costs))
    volumes = _volumes(list(zip(gains, costs, strict=True)), corner)

    def points(values: Sequence[float]) -> Callable[[Axes, float, float], None]:
        def draw(axes: Axes, width: float, height: float) -> None:
            _scatter(axes, numbers, values, colors)
            if values is gains:
                best = np.maximum.accumulate(gains)
                axes.step(numbers, best, where="post", color=style.INK, linewidth=1.0)
            elif lost:
                axes.plot(
                    lost, [0.03] * len(lost), "x", color=style.ALARM, markersize=5,
                    transform=axes.get_xaxis_transform(), rasterized=is_crowded(lost),
                )  # fmt: skip
            finish(axes, width, height)

        return draw

    def volume(axes: Axes, width: float, height: float) -> None:
        axes.step(numbers, volumes, where="post", color=style.ACCENT, linewidth=1.6)
        axes.fill_between(numbers, volumes, step="post", color=style.ACCENT, alpha=0.08)
        axes.set_ylim(0, max(volumes) * 1.08 or 1.0)
        finish(axes, width, height)

    def finish(axes: Axes, width: float, height: float) -> None:
        every = [*numbers, *lost]
        axes.set_xlim(min(every) - 0.6, max(every) + 0.6)
        style.set_ticks(axes.xaxis, width, integer=True)
        style.set_ticks(axes.yaxis, height)

    panels = [
        Panel("Δ MTL ↑, %", points(gains), "Trial"),
        Panel("GFLOPs ↓", points(costs), "Trial"),
        Panel("Hypervolume ↑, % × GFLOPs", volume, "Trial"),
    ]
    entries = [
        Entry("on the front, darker = more GFLOPs", style.ACCENT, marker="o"),
        Entry("other trials", style.OTHERS, marker="o"),
        Entry("best so far", style.INK, dash="-"),
    ]
    entries += [Entry("failed or stopped", style.ALARM, marker="x")] if lost else []
    return Section(
        "The search",
        "Every trial in order, judged on validation",
        [panel_row(panels, columns=3, least=1.3), legend_block(entries)],
        note="Hypervolume: area of (Δ MTL, GFLOPs) that the trials so far dominate, down to the "
        f"worst seen, Δ MTL {style.signed(corner[0])} % at {style.compact(corner[1])} GFLOPs.",
        keep=2,
    )


def _influence(
    record: StudyRecord,
    trials: Sequence[Result],
    names: Sequence[str],
    styles: Mapping[str, NetworkStyle],
) -> Section:
    numbers = [t.numbers for t in trials]
    colors = [_colour(t, styles) for t in trials]
    rows = (
        ("Δ MTL ↑, %", [delta(record, t, "validation") for t in trials]),
        ("GFLOPs ↓", [t.gflops for t in trials]),
    )
    parts = split_pages(names, _PARAMETERS_PER_ROW)
    columns = max(len(parts[0]), 2)

    def panel(name: str, quantity: str, values: Sequence[float], *, named: bool) -> Panel:
        points = [
            (params[name], y, color)
            for params, y, color in zip(numbers, values, colors, strict=True)
            if name in params and math.isfinite(params[name])
        ]
        x, y = [point[0] for point in points], [point[1] for point in points]
        shades = [point[2] for point in points]
        log = name.startswith("lambda_") and bool(x) and min(x) > 0

        def draw(axes: Axes, width: float, height: float) -> None:
            if not points:
                axes.set_axis_off()
                return
            _scatter(axes, x, y, shades)
            if log:
                axes.set_xscale("log")
            low, high = _padded(values)
            axes.set_ylim(low, high)
            style.set_ticks(axes.xaxis, width, log=log)
            style.set_ticks(axes.yaxis, height)

        rho = spearman(x, y) if len(x) > 2 else math.nan
        strong = math.isfinite(rho) and abs(rho) >= 0.5
        remark = f"ρ {style.signed(rho)}" if math.isfinite(rho) else ""
        return Panel(quantity, draw, _title(name) if named else "", remark, strong)

    blocks = [
        panel_row(
            [panel(name, *row, named=row is rows[1]) for name in part],
            columns=columns,
            least=0.8,
            most=1.9,
        )
        for part in parts
        for row in rows
    ]
    # A row of gains stays with the row of costs below it, which names the parameters.
    blocks = [replace(block, with_next=i % 2 == 0) for i, block in enumerate(blocks)]
    return Section(
        "What the parameters do",
        f"Each parameter of the search against gain and cost, {len(trials)} complete trials, "
        "validation",
        blocks,
        note="ρ: Spearman's rank correlation (bold from 0.5 on); with few trials, or a sampler "
        "that has gone where it is good, it is a hint and no more. Green: on the front.",
        keep=2,
    )


def _scatter(axes: Axes, x: Sequence[float], y: Sequence[float], colors: Sequence[str]) -> None:
    """Draw points, those of the front above the others."""
    for front in (False, True):
        chosen = [i for i, color in enumerate(colors) if (color != style.OTHERS) == front]
        axes.scatter(
            [x[i] for i in chosen], [y[i] for i in chosen], c=[colors[i] for i in chosen], s=20,
            edgecolor="white", linewidth=0.5, zorder=3 + front, rasterized=is_crowded(chosen),
        )  # fmt: skip


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _colour(trial: Result, styles: Mapping[str, NetworkStyle]) -> str:
    network = styles.get(network_label(trial))
    return network.colour if network else style.OTHERS


def _numeric_parameters(record: StudyRecord, trials: Sequence[Result]) -> list[str]:
    """Name the parameters to draw: those that `_title` knows first, others as trials have them."""
    tasks = [task.name for task in record.tasks]
    known = ["lambda_s", *(f"{kind}.{task}" for kind in ("tau", "share") for task in tasks)]
    names = dict.fromkeys(name for trial in trials for name in trial.numbers)
    return [name for name in dict.fromkeys([*known, *names]) if name in names]


def _title(name: str) -> str:
    """Title a parameter's column; one without a title of its own has its name."""
    if name == "lambda_s":
        return "λ, weight of sparsity"
    kind, _, task = name.partition(".")
    return {"tau": f"τ {task}", "share": f"open, {task}"}.get(kind, name)


def _number(trial: Result) -> int:
    return -1 if trial.trial is None else trial.trial


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, equal = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(equal) - equal
    return np.asarray((below + (equal + 1) / 2)[place], dtype=np.float64)
