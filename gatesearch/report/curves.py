"""Training by epoch: each task's loss, its weight, and the share of its gates that are open."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gatesearch.report import style
from gatesearch.report.record_queries import baseline_groups, network_label, pick_evenly
from gatesearch.results import Result, StudyRecord, front

_NETWORKS = 5


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw a page of losses, of gates and of task weights, each only if there are such curves."""
    lines = _chosen_lines(record)
    losses = [(f"loss.{task.name}", task.name) for task in record.tasks]
    gates = [
        *((f"open.{task.name}", f"Open gates, {task.name}") for task in record.tasks),
        ("sparsity", "Sparsity loss"),
    ]
    texts = (
        ("Training", "Mean training loss of each epoch", "Loss", losses),
        ("Gates", "Share of gates that pick the task's own channel, by epoch", "", gates),
    )
    for title, subtitle, quantity, keys in texts:
        kept = [(k, text) for k, text in keys if any(_has_values(r, k) for r, _, _ in lines)]
        if kept:
            yield _draw(style.page(title, subtitle), lines, kept, quantity)
    balanced = [_in_shares(*line) for line in lines if line[0].weighting != "uniform"]
    if balanced:
        title, subtitle = "Task weights", "Each task's share of the weights, mean of each epoch"
        keys = [(f"weight.{task.name}", task.name) for task in record.tasks]
        yield _draw(style.page(title, subtitle), balanced, keys, "Share")


def _in_shares(result: Result, color: str, dash: str) -> tuple[Result, str, str]:
    """Scale weights to sum to one in each epoch, since only their ratio matters."""
    names = [name for name in result.curves if name.startswith("weight.")]
    weights = np.array([result.curves[name] for name in names], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = weights / weights.sum(0) if names else weights
    curves = dict(zip(names, shares.tolist(), strict=True))
    return replace(result, curves={**result.curves, **curves}), color, dash


def _chosen_lines(record: StudyRecord) -> list[tuple[Result, str, str]]:
    """Choose networks to draw: each baseline's first seed dashed, the front's from pale to dark.

    Returns:
        (network, colour, line style) per line.
    """
    lines = []
    for i, group in enumerate(baseline_groups(record)):
        lines.append((group.results[0], style.colour(group.style_key, i), "--"))
    chosen = pick_evenly(front(record), _NETWORKS)
    for i, trial in enumerate(chosen):
        shade = i / max(len(chosen) - 1, 1)
        red, green, blue, _ = style.NETWORKS(shade)
        lines.append(
            (trial, f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}", "-")
        )
    return lines


def _draw(
    figure: Figure,
    lines: Sequence[tuple[Result, str, str]],
    keys: Sequence[tuple[str, str]],
    quantity: str,
) -> Figure:
    columns = len(keys) if len(keys) < 4 else -(-len(keys) // 2)
    rows = -(-len(keys) // columns)
    grid = figure.add_gridspec(
        rows, columns, left=style.LEFT + 0.025, right=style.RIGHT, top=style.TOP - 0.03,
        bottom=0.195, hspace=0.32, wspace=0.22,
    )  # fmt: skip
    drawn: dict[str, Line2D] = {}
    for i, (key, title) in enumerate(keys):
        axes = figure.add_subplot(grid[i // columns, i % columns])
        highest, lowest = 0.0, math.inf
        for result, color, dash in lines:
            if not _has_values(result, key):
                continue
            values = np.array(result.curves[key], dtype=np.float64)
            values[~np.isfinite(values)] = np.nan
            single = "o" if len(values) == 1 else ""
            (line,) = axes.plot(
                range(1, len(values) + 1), values, dash, color=color, linewidth=1.3, marker=single,
                markersize=4,
            )  # fmt: skip
            drawn.setdefault(network_label(result), line)
            highest, lowest = max(highest, np.nanmax(values)), min(lowest, np.nanmin(values))
        _label_axes(axes, key, style.clip(title, 34 if columns < 4 else 26), lowest, highest)
        if i // columns == rows - 1 or i + columns >= len(keys):
            axes.set_xlabel("Epoch")
        if quantity and i % columns == 0:
            axes.set_ylabel(quantity)
    legend_rows = max(1, -(-len(drawn) // 7))
    figure.legend(
        list(drawn.values()), [style.clip(name, 22) for name in drawn], loc="lower center",
        bbox_to_anchor=(0.5, 0.085), ncols=-(-len(drawn) // legend_rows), columnspacing=1.8,
        handlelength=2.2,
    )  # fmt: skip
    baseline = keys[0][0].startswith(("loss.", "weight."))
    dashed = "Dashed: baselines, first seed. " if baseline else ""
    style.note(figure, f"{dashed}Solid: the front's networks, dearer = darker.")
    return figure


def _label_axes(axes: Axes, key: str, title: str, lowest: float, highest: float) -> None:
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    if key.startswith(("open.", "weight.")):
        axes.set_ylim(-0.03, 1.03)
    elif lowest > 0 and highest / lowest > 30:
        axes.set_yscale("log")
        style.use_plain_log_ticks(axes.yaxis)


def _has_values(result: Result, key: str) -> bool:
    return any(math.isfinite(value) for value in result.curves.get(key, ()))
