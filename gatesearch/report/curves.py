"""Training by epoch: each task's loss, its weight, and the share of its gates that are open."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes

from gatesearch.report import style
from gatesearch.report.layout import Section
from gatesearch.report.legend import Entry, legend_block
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.panels import Panel, panel_row
from gatesearch.report.record_queries import (
    baseline_groups,
    network_label,
    pick_evenly,
    split_pages,
)
from gatesearch.results import Result, StudyRecord, front

_BASELINES, _TRIALS = 12, 5  # drawn at most
_COLUMNS = 5

_Line = tuple[Result, NetworkStyle]


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield losses, gates, policies and task weights, each only if there are such curves."""
    lines, note = _chosen_lines(record)
    losses = [(f"loss.{task.name}", task.name) for task in record.tasks]
    gates = [
        *((f"open.{task.name}", task.name) for task in record.tasks),
        ("sparsity", "Sparsity loss"),
    ]
    policies = [
        *((f"selected.{task.name}", task.name) for task in record.tasks),
        ("policy.sparsity", "L_sparsity"),
        ("policy.sharing", "L_sharing"),
    ]
    balanced = [(_in_shares(result), look) for result, look in lines
                if result.weighting != "uniform"]  # fmt: skip
    weights = [(f"weight.{task.name}", f"Share, {task.name}") for task in record.tasks]
    texts = (
        ("Training", "Mean training loss ↓ of each epoch", losses, lines),
        ("Gates", "Share of gates that pick the task's own channel, by epoch", gates, lines),
        ("Policies", "Mean probability that a task selects a block, by epoch", policies, lines),
        ("Task weights", "Each task's share of the weights, mean of each epoch", weights, balanced),
    )
    for title, subtitle, keys, chosen in texts:
        kept = [(k, text) for k, text in keys if any(_has_values(r, k) for r, _ in chosen)]
        if kept:
            yield _section(title, subtitle, chosen, kept, note)


def _in_shares(result: Result) -> Result:
    """Scale weights to sum to one in each epoch, since only their ratio matters."""
    names = [name for name in result.curves if name.startswith("weight.")]
    length = min((len(result.curves[name]) for name in names), default=0)
    weights = np.array([result.curves[name][:length] for name in names], dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = weights / weights.sum(0) if names else weights
    curves = dict(zip(names, shares.tolist(), strict=True))
    return replace(result, curves={**result.curves, **curves})


def _chosen_lines(record: StudyRecord) -> tuple[list[_Line], str]:
    """Choose networks to draw: the baselines' first seeds, and some of the front.

    All methods are drawn; of many weightings some are left out.

    Returns:
        (network, style) per line, and what a reader must know of the choice.
    """
    styles = network_styles(record)
    baselines, chosen = baseline_groups(record), front(record)
    weighted = [group for group in baselines if not group.is_uniform]
    room = max(_BASELINES - len(baselines) + len(weighted), 0)
    left_out = {group.label for group in weighted}
    left_out -= {group.label for group in pick_evenly(weighted, room)}
    drawn = [group for group in baselines if group.label not in left_out]
    trials = pick_evenly(chosen, _TRIALS)
    networks = [*(group.results[0] for group in drawn), *trials]
    note = ""
    if len(drawn) < len(baselines) or len(trials) < len(chosen):
        note = (
            f" Drawn: {len(drawn)} of {len(baselines)} baselines, "
            f"{len(trials)} of {len(chosen)} networks of the front."
        )
    return [(result, styles[network_label(result)]) for result in networks], note


def _section(
    title: str,
    subtitle: str,
    lines: Sequence[_Line],
    keys: Sequence[tuple[str, str]],
    note: str,
) -> Section:
    panels = [Panel(text, _drawing(lines, key), "Epoch") for key, text in keys]
    parts = split_pages(panels, _COLUMNS)
    columns = max(len(parts[0]), 2)
    drawn = [line for line in lines if any(_has_values(line[0], key) for key, _ in keys)]
    entries = [Entry(network_label(result), look.colour, dash=look.dash) for result, look in drawn]
    trials = [result.trial is not None for result, _ in drawn]
    kinds = "" if all(trials) else "Dashed: baselines, first seed. "
    kinds += "Solid: the front's networks, darker = more GFLOPs." if any(trials) else ""
    return Section(
        title,
        subtitle,
        [panel_row(part, columns=columns) for part in parts],
        note=(kinds + note).strip(),
        head=legend_block(entries),
    )


def _drawing(lines: Sequence[_Line], key: str) -> Callable[[Axes, float, float], None]:
    """Return what draws the lines of one curve into a panel."""

    def draw(axes: Axes, width: float, height: float) -> None:
        highest, lowest = 0.0, math.inf
        for result, look in lines:
            if not _has_values(result, key):
                continue
            values = np.array(result.curves[key], dtype=np.float64)
            values[~np.isfinite(values)] = np.nan
            single = "o" if np.isfinite(values).sum() == 1 else ""
            axes.plot(
                range(1, len(values) + 1), values, look.dash, color=look.colour, linewidth=1.2,
                marker=single, markersize=4,
            )  # fmt: skip
            highest, lowest = max(highest, np.nanmax(values)), min(lowest, np.nanmin(values))
        log = False
        if key.startswith(("open.", "weight.")):
            axes.set_ylim(-0.03, 1.03)
        elif lowest > 0 and highest / lowest > 30:
            log = True
            axes.set_yscale("log")
        style.set_ticks(axes.xaxis, width, integer=True)
        style.set_ticks(axes.yaxis, height, log=log)

    return draw


def _has_values(result: Result, key: str) -> bool:
    return any(math.isfinite(value) for value in result.curves.get(key, ()))
