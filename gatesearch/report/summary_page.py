"""The first page: Δ MTL against compute, the front beside the baselines, and a summary in words."""

import math
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch

from gatesearch.report import style
from gatesearch.report.published import PublishedRow, published_rows
from gatesearch.report.record_queries import (
    baseline_groups,
    complete_trials,
    front_groups,
    group_of_method,
    has_weightings,
    shown_split,
)
from gatesearch.results import (
    MULTI_TASK,
    SINGLE_TASK,
    Result,
    Split,
    StudyRecord,
    delta,
    front,
)


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw the summary, always one page."""
    split = shown_split(record)
    figure = style.page(record.name, f"Δ MTL against compute on the {split} split")
    sentences = summary_sentences(record, split)
    lines = [(line, True) for line in textwrap.wrap(sentences[0], 118)]
    lines += [(line, False) for text in sentences[1:] for line in textwrap.wrap(text, 150)]
    for i, (line, first) in enumerate(lines):
        figure.text(
            style.LEFT,
            0.846 - 0.026 * i,
            style.printable(line),
            size=9.8 if first else 9,
            weight="bold" if first else "normal",
            va="center",
        )
    top = 0.805 - 0.026 * (len(lines) - 1)
    rows, remark = _published_overlay(record)
    axes = figure.add_axes((style.LEFT + 0.035, 0.155, 0.615, top - 0.155))
    hidden = _draw_chart(axes, record, split, rows)
    _draw_cards(figure, record, split, top)
    _draw_legend(figure, record, split, rows)
    style.note(figure, _caption(record, split, hidden, remark))
    yield figure


def summary_sentences(record: StudyRecord, split: Split) -> list[str]:
    """Summarize the study in sentences whose every figure was measured.

    The networks named are chosen by validation; their figures are of `split`.
    """
    if not record.trials:
        return ["No trial has been run yet: the baselines stand alone."]
    chosen = front(record)
    completed = len(complete_trials(record))
    if not chosen:
        cause = (
            "no single-task networks of the same seed to compare with"
            if completed
            else "none completed"
        )
        return [f"{_count_trials(len(record.trials))} and no front: {cause}."]
    best = max(chosen, key=lambda trial: delta(record, trial, "validation"))
    groups = baseline_groups(record)
    stl, mtl = (group_of_method(groups, method) for method in (SINGLE_TASK, MULTI_TASK))
    comparisons = [
        _cost_change(best.gflops, group.mean(_gflops), group.label)
        for group in (stl, mtl)
        if group is not None
    ]
    lines = [
        f"Trial {best.trial}, the best on validation, reaches Δ MTL "
        f"{style.signed(delta(record, best, split))} % ({split}) at {style.compact(best.gflops)} "
        f"GFLOPs: {', '.join(comparisons) or 'no baseline beside it'}."
    ]
    if mtl is None:
        return lines
    gain = mtl.mean(lambda r: delta(record, r, split))
    validation_gain = mtl.mean(lambda r: delta(record, r, "validation"))
    lines.append(
        f"Plain sharing (MTL) costs {style.compact(mtl.mean(_gflops))} GFLOPs "
        f"for {style.signed(gain)} %."
    )
    above = [trial for trial in chosen if delta(record, trial, "validation") > validation_gain]
    if not above:
        lines[-1] += " No network of the front beats it on validation."
    elif above[0] is not best:
        lines[-1] += (
            f" The front's cheapest network ahead of it on validation, trial {above[0].trial}, has "
            f"{style.signed(delta(record, above[0], split))} % at "
            f"{style.compact(above[0].gflops)} GFLOPs."
        )
    return lines


def _draw_chart(axes: Axes, record: StudyRecord, split: Split, rows: Sequence[PublishedRow]) -> int:
    """Draw gain against cost.

    Returns:
        How many trials lie below the chart.
    """

    def gain(result: Result) -> float:
        return delta(record, result, split)

    tags: list[style.PointLabel] = []
    obstacles: list[tuple[float, float]] = []
    chosen = [g for g in front_groups(record) if math.isfinite(g.mean(gain))]
    line = [(g.mean(_gflops), g.mean(gain)) for g in chosen]
    groups = [g for g in baseline_groups(record) if math.isfinite(g.mean(gain))]
    dots = [(t.gflops, gain(t)) for t in complete_trials(record) if math.isfinite(gain(t))]
    # Every labelled network is drawn; other trials far below them would flatten the chart.
    labelled = [y for _, y in line] + [gain(r) for g in groups for r in g.results] + [0.0]
    labelled = [y for y in [*labelled, *(row.delta_mtl for row in rows)] if math.isfinite(y)]
    height = max(max(labelled) - min(labelled), 1.0)
    floor = min(labelled) - 0.45 * height
    hidden = sum(y < floor for _, y in dots)
    lowest = min([*labelled, *(y for _, y in dots if y >= floor)])

    axes.axhline(0, color=style.MUTED, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    shown = [(x, y) for x, y in dots if y >= floor]
    _scatter(axes, shown, color="#9fb0b3", size=14, zorder=2)
    if line:
        axes.plot(*zip(*line, strict=True), color=style.ACCENT, linewidth=1.6, zorder=3)
        _scatter(axes, line, color=style.ACCENT, size=42, zorder=4)
    for group, (x, y) in zip(chosen, line, strict=True):
        text = str(group.results[0].trial)
        tags.append(style.PointLabel(x, y, text, color=style.ACCENT, weight="bold"))
    baseline_tags = []
    for i, group in enumerate(groups):
        x, y = group.mean(_gflops), group.mean(gain)
        color, mark = style.colour(group.style_key, i), style.marker(group.style_key, i)
        if len(group.results) > 1 and group.is_uniform:
            error = group.deviation(gain)
            axes.errorbar(x, y, yerr=error, color=color, capsize=3, linewidth=1.2, zorder=4)
            seeds = [(r.gflops, gain(r)) for r in group.results if math.isfinite(gain(r))]
            obstacles += seeds
            _scatter(axes, seeds, color=color, size=10, zorder=3, alpha=0.55)
        axes.plot(x, y, mark, color=color, markersize=8.5, mec="white", mew=1.0, zorder=5)
        baseline_tags.append(
            style.PointLabel(x, y, style.clip(group.label, 22), color=color, weight="bold")
        )
    tags = [*baseline_tags, *tags]
    obstacles += [(tag.x, tag.y) for tag in tags] + shown
    for row in rows:
        same_method = row.family == "gates"
        color = "#8cc4bd" if same_method else "#b9c0c8"
        mark = "o" if same_method else "s"
        axes.plot(row.gflops, row.delta_mtl, mark, mfc="none", color=color, markersize=5.5)
        tags.append(
            style.PointLabel(row.gflops, row.delta_mtl, row.method, "#8b96a1", size=6, needed=False)
        )
        obstacles.append((row.gflops, row.delta_mtl))

    xs = [x for x, _ in [*shown, *obstacles]] or [0.0, 1.0]
    ys = [lowest, max(y for y in [*labelled, *(y for _, y in shown)])]
    pad_x = 0.09 * (max(xs) - min(xs)) or 0.1 * max(xs) or 1.0
    pad_y = 0.10 * (ys[1] - ys[0]) or 1.0
    axes.set_xlim(min(xs) - pad_x, max(xs) + pad_x)
    axes.set_ylim(ys[0] - pad_y, ys[1] + pad_y)
    if not obstacles and not shown:
        axes.text(
            0.5, 0.6, "No Δ MTL to draw", transform=axes.transAxes, color=style.MUTED, ha="center"
        )
    axes.set_xlabel("Inference cost of the whole network, GFLOPs")
    axes.set_ylabel(f"Δ MTL on {split}, %")
    axes.annotate(
        "single-task = 0", (0, 0), xycoords=axes.get_yaxis_transform(), xytext=(3, 2),
        textcoords="offset points", size=6.5, color=style.MUTED,
    )  # fmt: skip
    zero = [(axes.get_xlim()[0], 0.0), *((x, 0.0) for x in sorted(xs)), (axes.get_xlim()[1], 0.0)]
    style.place_labels(axes, tags, [*obstacles, *_points_along(line), *_points_along(zero)])
    return hidden


def _points_along(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """List points on a line, close enough together for labels to keep off it."""
    return [
        (x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8)
        for (x0, y0), (x1, y1) in pairwise(line)
        for i in range(1, 8)
    ]


def _scatter(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    *,
    color: str,
    size: float,
    zorder: int,
    alpha: float = 1.0,
) -> None:
    if points:
        xs, ys = zip(*points, strict=True)
        axes.scatter(
            xs,
            ys,
            s=size,
            color=color,
            rasterized=style.is_crowded(xs),
            edgecolor="white",
            linewidth=0.6,
            zorder=zorder,
            alpha=alpha,
        )


def _draw_cards(figure: Figure, record: StudyRecord, split: Split, top: float) -> None:
    """Draw on the right the four figures that a reader looks for first, a card each."""
    chosen = front(record)
    lost = len(record.trials) - len(complete_trials(record))
    hours = record.training_seconds / 3600
    best = max(chosen, key=lambda t: delta(record, t, "validation"), default=None)
    stl = group_of_method(baseline_groups(record), SINGLE_TASK)
    cards = []
    if best is not None:
        cards.append(
            (f"{style.signed(delta(record, best, split))} %", f"Δ MTL of trial {best.trial}")
        )
        if stl is not None and stl.mean(_gflops) > 0:
            saved = 100 * (best.gflops / stl.mean(_gflops) - 1)
            cards.append((f"{style.signed(saved, 1)} %", "its FLOPs against STL"))
    failed = f" ({lost} lost)" if lost else ""
    cards.append(
        (str(len(chosen)), f"on the front, of {_count_trials(len(record.trials))}{failed}")
    )
    cost = record.training_pflops
    spent = f"{style.compact(hours)} h" if hours >= 1 else f"{style.compact(hours * 60)} min"
    cards.append((f"{style.compact(cost)} PFLOPs", f"training of the whole study, {spent}"))
    height, gap = 0.072, 0.012
    for i, (big, small) in enumerate(cards):
        y = top - height - i * (height + gap)
        figure.add_artist(
            FancyBboxPatch(
                (0.745, y), style.RIGHT - 0.745, height,
                boxstyle="round,pad=0,rounding_size=0.006", facecolor=style.PAPER, edgecolor="none",
                transform=figure.transFigure,
            )
        )  # fmt: skip
        figure.text(0.757, y + 0.039, big, size=14, weight="bold", color=style.ACCENT)
        figure.text(0.757, y + 0.016, style.clip(small, 38), size=7.5, color=style.MUTED)


def _draw_legend(
    figure: Figure, record: StudyRecord, split: Split, rows: Sequence[PublishedRow]
) -> None:
    def dot(color: str, size: float, label: str, **more: object) -> Line2D:
        options = {"marker": "o", "linestyle": "none", "mec": "white"} | more
        return Line2D([], [], color=color, markersize=size, label=label, **options)  # type: ignore[arg-type]

    items = []
    if front(record):
        items.append(dot(style.ACCENT, 7, "Front (number = trial)", linestyle="-"))
    others = [trial for trial in complete_trials(record) if trial not in record.front]
    if any(math.isfinite(delta(record, trial, split)) for trial in others):
        items.append(dot("#9fb0b3", 5, "Other trials"))
    for i, group in enumerate(baseline_groups(record)):
        several = len(group.results) > 1 and group.is_uniform
        seeds = f" (mean of {len(group.results)} seeds)" if several else ""
        items.append(
            dot(
                style.colour(group.style_key, i),
                7,
                style.clip(group.label, 24) + seeds,
                marker=style.marker(group.style_key, i),
            )
        )
    if rows:
        items.append(dot("#b9c0c8", 5.5, "Published rows", marker="s", mfc="none", mec="#b9c0c8"))
    gated = next((row.method.split()[0] for row in rows if row.family == "gates"), "")
    if gated:
        items.append(dot("#8cc4bd", 5.5, f"Published {gated}", mfc="none", mec="#8cc4bd"))
    if items:
        figure.legend(
            handles=items[:14], loc="lower left", bbox_to_anchor=(0.738, 0.13), labelspacing=0.55,
            handlelength=1.6, borderpad=0,
        )  # fmt: skip


def _caption(record: StudyRecord, split: Split, hidden: int, remark: str) -> str:
    first = (
        "Δ MTL: mean relative gain over the single-task networks (STL) of the same seed; 0 = STL. "
    )
    first += (
        "The front was chosen on validation; the figures drawn are of the test split."
        if split == "test"
        else "Chosen and drawn on validation: there are no test figures of every network."
    )
    more = []
    if any(len(group.results) > 1 for group in baseline_groups(record)):
        more.append("Error bars: standard deviation over seeds, a small dot each.")
        if has_weightings(record):
            more.append("Without, for legibility: weightings, which are means too.")
    missing = sum(not math.isfinite(delta(record, t, split)) for t in complete_trials(record))
    if missing:
        more.append(f"{_count_trials(missing)} without {split} figures not drawn.")
    if hidden:
        more.append(f"{_count_trials(hidden)} below the chart.")
    more += [_unequal_training(record), remark]
    return first + "\n" + " ".join(part for part in more if part)


def _unequal_training(record: StudyRecord) -> str:
    """Warn where networks that are compared were trained for different numbers of epochs."""
    front_epochs, other_epochs = (
        "/".join(str(epochs) for epochs in sorted({result.epochs for result in results}))
        for results in (record.front, record.baselines)
    )
    if not record.front or front_epochs == other_epochs:
        return ""
    return f"UNEQUAL TRAINING: the front {front_epochs} epochs, baselines {other_epochs}."


def _published_overlay(record: StudyRecord) -> tuple[tuple[PublishedRow, ...], str]:
    """Choose the published rows to draw too, and the remark that a reader needs on them."""
    if not record.published:
        return (), ""
    rows = published_rows(record.published)
    published, studied = set(rows[0].metrics), {task.name for task in record.tasks}
    if published != studied:
        return (), f"Published rows not drawn: their tasks are {', '.join(sorted(published))}."
    return rows, "Published rows: as printed, against the paper's own single-task networks."


def _gflops(result: Result) -> float:
    return result.gflops


def _cost_change(value: float, other: float, name: str) -> str:
    percent = 100 * (value / other - 1) if other > 0 else 0.0
    if abs(percent) < 0.5:
        return f"as many as {name}"
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'} than {name}"


def _count_trials(count: int) -> str:
    return f"{count} trial" if count == 1 else f"{count} trials"
