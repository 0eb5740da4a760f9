"""The search by trial, and how gain and cost depend on each of its parameters."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from gatesearch.pareto import hypervolume, pareto_front
from gatesearch.report import style
from gatesearch.report.record_queries import complete_trials
from gatesearch.results import Result, StudyRecord, delta, front


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw the search, and its parameters if it has any; no page before a trial has completed."""
    trials = [t for t in complete_trials(record) if math.isfinite(delta(record, t, "validation"))]
    if not trials:
        return
    yield _draw_history(record, trials)
    parameters = _numeric_parameters(record, trials)
    if parameters:
        yield _draw_influence(record, trials, parameters)


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


def _draw_history(record: StudyRecord, trials: Sequence[Result]) -> Figure:
    figure = style.page("The search", "Every trial in order, judged on validation")
    grid = figure.add_gridspec(
        3, 1, left=style.LEFT + 0.035, right=style.RIGHT, top=style.TOP - 0.005, bottom=0.155,
        hspace=0.22,
    )  # fmt: skip
    upper, middle, lower = (figure.add_subplot(grid[i]) for i in range(3))
    numbers = [_number(t) for t in trials]
    gains = [delta(record, t, "validation") for t in trials]
    costs = [t.gflops for t in trials]
    chosen = {t.trial for t in front(record)}
    colors = [style.ACCENT if t.trial in chosen else "#9fb0b3" for t in trials]
    for axes, values in ((upper, gains), (middle, costs)):
        axes.scatter(
            numbers, values, c=colors, s=26, edgecolor="white", linewidth=0.6, zorder=3,
            rasterized=style.is_crowded(numbers),
        )  # fmt: skip
    best = np.maximum.accumulate(gains)
    upper.step(numbers, best, where="post", color=style.INK, linewidth=1.0, label="best so far")
    upper.legend(loc="lower right")
    upper.set_ylabel("Δ MTL, %")
    middle.set_ylabel("GFLOPs")
    corner = (min(gains), max(costs))
    volumes = _volumes(list(zip(gains, costs, strict=True)), corner)
    lower.step(numbers, volumes, where="post", color=style.ACCENT, linewidth=1.6)
    lower.fill_between(numbers, volumes, step="post", color=style.ACCENT, alpha=0.08)
    lower.set_ylabel("Hypervolume, % × GFLOPs")
    lower.set_xlabel("Trial")
    lower.set_ylim(bottom=0)
    lost = [_number(t) for t in record.trials if t.state != "complete"]
    if lost:
        middle.plot(
            lost, [0.03] * len(lost), "x", color=style.ALARM, markersize=5, label="failed, stopped",
            transform=middle.get_xaxis_transform(),
        )  # fmt: skip
        middle.legend(loc="upper right")
    every = [*numbers, *lost]
    for axes in (upper, middle, lower):
        axes.set_xlim(min(every) - 0.6, max(every) + 0.6)
        axes.yaxis.set_label_coords(-0.045, 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    style.note(
        figure,
        "Green: on the front. Hypervolume: area of (Δ MTL, GFLOPs) that the trials so far "
        f"dominate, down to the worst seen,\nΔ MTL {style.signed(corner[0])} % at "
        f"{style.compact(corner[1])} GFLOPs.",
    )
    return figure


def _draw_influence(record: StudyRecord, trials: Sequence[Result], names: Sequence[str]) -> Figure:
    figure = style.page(
        "What the parameters do",
        f"Each parameter of the search against gain and cost, {len(trials)} complete trials, "
        "validation",
    )
    count = len(names)
    grid = figure.add_gridspec(
        2, count, left=style.LEFT + 0.035, right=style.RIGHT, top=style.TOP - 0.03, bottom=0.15,
        hspace=0.2, wspace=0.14,
    )  # fmt: skip
    chosen = {t.trial for t in front(record)}
    numbers, good = [t.numbers for t in trials], [t.trial in chosen for t in trials]
    rows = (
        ("Δ MTL, %", [delta(record, t, "validation") for t in trials]),
        ("GFLOPs", [t.gflops for t in trials]),
    )
    for i, (title, values) in enumerate(rows):
        first: Axes | None = None
        for j, name in enumerate(names):
            axes = figure.add_subplot(grid[i, j], sharey=first)
            first = first or axes
            points = [
                (params[name], y, on_front)
                for params, y, on_front in zip(numbers, values, good, strict=True)
                if name in params and math.isfinite(params[name])
            ]
            if not points:
                continue
            x, y, green = (list(column) for column in zip(*points, strict=True))
            colors = [style.ACCENT if g else "#9fb0b3" for g in green]
            axes.scatter(
                x, y, c=colors, s=22, edgecolor="white", linewidth=0.5,
                rasterized=style.is_crowded(x),
            )  # fmt: skip
            if name == "lambda_s" and min(x) > 0:
                axes.set_xscale("log")
                style.use_plain_log_ticks(axes.xaxis)
            else:
                axes.xaxis.set_major_locator(MaxNLocator(4))
            rho = spearman(x, y) if len(x) > 2 else math.nan
            strong = math.isfinite(rho) and abs(rho) >= 0.5
            axes.set_title(
                f"ρ = {style.signed(rho)}" if math.isfinite(rho) else "ρ –",
                size=8, weight="bold" if strong else "normal",
                color=style.INK if strong else style.MUTED,
            )  # fmt: skip
            if j:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(title)
            if i:
                axes.set_xlabel(_title(name, narrow=count >= 5))
            axes.tick_params(axis="x", labelsize=6.5 if count > 5 else 7.5)
    style.note(
        figure,
        "ρ: Spearman's rank correlation (bold from 0.5 on); with few trials, or a sampler that has "
        "gone where it is good, it is a hint and no more. Green: on the front.",
    )
    return figure


def _numeric_parameters(record: StudyRecord, trials: Sequence[Result]) -> list[str]:
    """Name the parameters to draw: those that `_title` knows first, others as trials have them."""
    tasks = [task.name for task in record.tasks]
    known = ["lambda_s", *(f"{kind}.{task}" for kind in ("tau", "share") for task in tasks)]
    names = dict.fromkeys(name for trial in trials for name in trial.numbers)
    return [name for name in dict.fromkeys([*known, *names]) if name in names]


def _title(name: str, *, narrow: bool) -> str:
    """Title a parameter's column; one without a title of its own has its name."""
    if name == "lambda_s":
        return "λ" if narrow else "λ, weight of sparsity"
    kind, _, task = name.partition(".")
    title = {"tau": f"τ {task}", "share": f"open, {task}"}.get(kind, name)
    return style.clip(title, 12 if narrow else 20)


def _number(trial: Result) -> int:
    return -1 if trial.trial is None else trial.trial


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, equal = np.unique(values, return_inverse=True, return_counts=True)
    below = np.cumsum(equal) - equal
    return np.asarray((below + (equal + 1) / 2)[place], dtype=np.float64)
