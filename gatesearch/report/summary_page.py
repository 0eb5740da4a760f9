"""The first page: Δ MTL against compute, the front beside the baselines, and a summary in words."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from gatesearch.comparisons import WIDENED
from gatesearch.report import style
from gatesearch.report.headline import gflops, leading_trial, rival_of, summary_sentences
from gatesearch.report.layout import PAGE_HEIGHT, PAGE_WIDTH, WIDTH, Block, Box, Section, paragraph
from gatesearch.report.legend import Entry, draw_legend
from gatesearch.report.network_styles import network_styles
from gatesearch.report.panels import BELOW
from gatesearch.report.point_labels import PointLabel, place_labels
from gatesearch.report.published import PublishedRow, published_rows
from gatesearch.report.record_queries import (
    baseline_groups,
    complete_trials,
    control_groups,
    count_trials,
    display_name,
    front_groups,
    front_trials,
    group_of_method,
    has_weightings,
    is_crowded,
    network_label,
    partly_labelled,
    shown_split,
    trial_group,
    width_curves,
)
from gatesearch.report.text import SMALLEST, fit, line_height, wrap
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, Split, StudyRecord, delta, front

_COLUMN = 2.35  # width of the tiles and the legend, inches
_GAP = 0.25  # between chart and tiles
_LEFT, _ABOVE = 0.50, 0.24  # of the chart, for numbers and the title
_LABEL = 0.18  # height of the name of the horizontal axis
_TILE_PAD = 0.12
_BIG, _SMALL = 14.0, 7.5  # sizes of a tile's text, points
_TASKS_NAMED = 3  # with labels of some frames only
_WIDENED = "#c2571a"  # MTL's
_GATED, _PUBLISHED = "#8cc4bd", "#b9c0c8"  # published rows


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield the summary, which fills the first page."""
    split = shown_split(record)
    rows, remark = _published_overlay(record)
    sentences = summary_sentences(record, split)
    floor, below = _floor(record, split, rows)

    def draw(whole: Box) -> None:
        box = whole.part(0, 0.12, WIDTH, whole.height - 0.12)
        chart = box.part(0, 0, WIDTH - _COLUMN - _GAP, box.height)
        _draw_chart(chart, record, split, rows, floor)
        column = box.part(WIDTH - _COLUMN, 0, _COLUMN, box.height)
        y = _draw_tiles(column, _tiles(record, split))
        draw_legend(column, _legend(record, split, rows), y + 0.10)

    yield Section(
        record.name,
        f"Δ MTL against compute on the {split} split",
        [
            paragraph(sentences[0], size=10, bold=True),
            *(paragraph(text, size=9) for text in sentences[1:]),
            Block(4.5, draw, most=7.0),
        ],
        note=_caption(record, split, below, remark),
        keep=1 + len(sentences),
    )


def _floor(record: StudyRecord, split: Split, rows: Sequence[PublishedRow]) -> tuple[float, int]:
    """Choose the gain at which the chart ends, and count the trials below it.

    Every labelled network is drawn; other trials far below them would flatten the chart.
    """
    groups = [*baseline_groups(record), *front_groups(record), *control_groups(record)]
    results = [r for group in groups for r in group.results]
    gains = [delta(record, r, split) for r in results] + [row.delta_mtl for row in rows] + [0.0]
    finite = [gain for gain in gains if math.isfinite(gain)]
    floor = min(finite) - 0.45 * max(max(finite) - min(finite), 1.0)
    return floor, sum(delta(record, t, split) < floor for t in complete_trials(record))


def _draw_chart(
    box: Box, record: StudyRecord, split: Split, rows: Sequence[PublishedRow], floor: float
) -> None:
    """Draw gain against cost."""

    def gain(result: Result) -> float:
        return delta(record, result, split)

    width, height = box.width - _LEFT, box.height - _ABOVE - BELOW - _LABEL
    box.text(0, _ABOVE / 2, f"Δ MTL ↑ on {split}, %", size=8, weight="bold")
    name = "Inference cost of the whole network ↓, GFLOPs"
    box.text(_LEFT + width / 2, box.height - _LABEL / 2, name, size=8, ha="center")
    axes = box.axes(_LEFT, _ABOVE, width, height)
    styles = network_styles(record)
    chosen = [g for g in front_groups(record) if math.isfinite(g.mean(gain))]
    lines = {
        method: [(g.mean(gflops), g.mean(gain)) for g in chosen if g.style_key == method]
        for method in record.fronts
    }
    groups = [g for g in baseline_groups(record) if math.isfinite(g.mean(gain))]
    dots = [(t.gflops, gain(t)) for t in complete_trials(record) if math.isfinite(gain(t))]
    shown = [(x, y) for x, y in dots if y >= floor]

    axes.axhline(0, color=style.MUTED, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
    _scatter(axes, shown, color=style.OTHERS, size=14, zorder=2)
    colours = _front_colours(record)
    for method, line in lines.items():
        if line:
            axes.plot(*zip(*line, strict=True), color=colours[method], linewidth=1.4, zorder=3)
    tags, obstacles = [], [*shown]
    for group in chosen:
        x, y = group.mean(gflops), group.mean(gain)
        _scatter(axes, [(x, y)], color=styles[group.label].colour, size=46, zorder=4)
        if len(group.results) > 1:
            axes.errorbar(
                x, y, yerr=group.deviation(gain), color=colours[group.style_key], capsize=3,
                linewidth=1.2, zorder=3,
            )  # fmt: skip
        number = str(group.results[0].trial)
        tags.append(PointLabel(x, y, number, color=colours[group.style_key]))
    for curve in width_curves(record):
        ends = [(g.mean(gflops), g.mean(gain)) for g in curve if math.isfinite(g.mean(gain))]
        if ends:
            colour = styles[curve[0].label].colour
            axes.plot(*zip(*ends, strict=True), color=colour, linewidth=0.9, zorder=2)
    for group in control_groups(record):
        x, y = group.mean(gflops), group.mean(gain)
        if math.isfinite(y):
            colour = _WIDENED if group.label == WIDENED else style.MUTED
            mark = "D" if group.label == WIDENED else "o"
            axes.plot(x, y, mark, mfc="none", color=colour, markersize=5.5, zorder=3)
            obstacles.append((x, y))
    baseline_tags = []
    for group in groups:
        x, y = group.mean(gflops), group.mean(gain)
        look = styles[group.label]
        if len(group.results) > 1 and group.is_uniform:
            error = group.deviation(gain)
            axes.errorbar(x, y, yerr=error, color=look.colour, capsize=3, linewidth=1.2, zorder=4)
            seeds = [(r.gflops, gain(r)) for r in group.results if math.isfinite(gain(r))]
            obstacles += seeds
            _scatter(axes, seeds, color=look.colour, size=10, zorder=3, alpha=0.55)
        axes.plot(
            x, y, look.marker, color=look.colour, markersize=8.5, mec="white", mew=1.0, zorder=5
        )
        name = fit(group.label, 2.4, 8, bold=True)
        baseline_tags.append(PointLabel(x, y, name, color=look.colour))
    tags = [*baseline_tags, *tags]
    obstacles += [(tag.x, tag.y) for tag in tags]
    for row in rows:
        gated = row.family == "gates"
        color, mark = (_GATED, "o") if gated else (_PUBLISHED, "s")
        axes.plot(row.gflops, row.delta_mtl, mark, mfc="none", color=color, markersize=5.5)
        tags.append(
            PointLabel(
                row.gflops, row.delta_mtl, row.method, "#7b8691", SMALLEST, bold=False,
                needed=False,
            )
        )  # fmt: skip
        obstacles.append((row.gflops, row.delta_mtl))
    _set_limits(axes, obstacles)
    if not obstacles:
        axes.text(
            0.5, 0.6, "No Δ MTL to draw", transform=axes.transAxes, color=style.MUTED, ha="center",
            size=9,
        )  # fmt: skip
    style.set_ticks(axes.xaxis, width)
    style.set_ticks(axes.yaxis, height)
    low, high = axes.get_xlim()
    zero = [(low, 0.0), (high, 0.0)]
    along = [point for line in lines.values() for point in _points_along(line, 40)]
    place_labels(axes, tags, [*obstacles, *along, *_points_along(zero, 80)])


def _front_colours(record: StudyRecord) -> dict[str, str]:
    """Choose the colour of each searched method's front: the accent's for the first."""
    styles = network_styles(record)
    return {
        method: styles[network_label(trials[0])].colour if number else style.ACCENT
        for number, (method, trials) in enumerate(record.fronts.items())
    }


def _set_limits(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    xs = [x for x, _ in points] or [0.0, 1.0]
    ys = [0.0, *(y for _, y in points)]
    pad_x = 0.09 * (max(xs) - min(xs)) or 0.1 * max(xs) or 1.0
    pad_y = 0.10 * (max(ys) - min(ys)) or 1.0
    axes.set_xlim(min(xs) - pad_x, max(xs) + pad_x)
    axes.set_ylim(min(ys) - pad_y, max(ys) + pad_y)


def _points_along(line: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """List points on a line, `count` per piece, for labels to keep off it."""
    return [
        (x0 + (x1 - x0) * i / count, y0 + (y1 - y0) * i / count)
        for (x0, y0), (x1, y1) in pairwise(line)
        for i in range(1, count)
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
            rasterized=is_crowded(xs),
            edgecolor="white",
            linewidth=0.6,
            zorder=zorder,
            alpha=alpha,
        )


def _tiles(record: StudyRecord, split: Split) -> list[tuple[str, str]]:
    """Write the figures that a reader looks for first: a big text and a small one per tile."""
    tiles = []
    best = leading_trial(record)
    if best is not None:
        groups = baseline_groups(record)
        stl, mtl = (group_of_method(groups, method) for method in (SINGLE_TASK, MULTI_TASK))
        own = trial_group(record, best)
        gain = style.signed(own.mean(lambda r: delta(record, r, split)))
        small = f"Δ MTL ↑ of trial {best.trial} on {split}"
        beside = rival_of(record, best, split) or mtl
        if beside is not None:
            other = style.signed(beside.mean(lambda r: delta(record, r, split)))
            small += f"; {beside.label} {other} %"
        tiles.append((f"{gain} %", small))
        changes = {
            group.label: f"{style.signed(100 * (own.mean(gflops) / group.mean(gflops) - 1), 1)} %"
            for group in (stl, mtl)
            if group is not None and group.mean(gflops) > 0
        }
        if changes:
            (first, change), *more = changes.items()
            small = f"its FLOPs ↓ against {first}"
            small += "".join(f"; {value} against {name}" for name, value in more)
            tiles.append((change, small))
    lost = len(record.trials) - len(complete_trials(record))
    failed = f" ({lost} failed or stopped)" if lost else ""
    on_front = f"on the front, of {count_trials(len(record.trials))}{failed}"
    tiles.append((str(len(front(record))), on_front))
    spent = style.duration(record.training_seconds)
    letter, factor = style.operations_unit(record.training_pflops)
    trained = f"{style.compact(record.training_pflops * factor)} {letter}FLOPs"
    tiles.append((trained, f"training of the whole study, {spent}"))
    return tiles


def _draw_tiles(box: Box, tiles: Sequence[tuple[str, str]]) -> float:
    """Draw tiles below each other, each as high as its text needs; return where they end."""
    y = 0.0
    room = box.width - 2 * _TILE_PAD
    for big, small in tiles:
        lines = wrap(small, room, _SMALL)
        head = line_height(_BIG)
        height = head + line_height(_SMALL) * len(lines) + 0.14
        tile = box.part(0, y, box.width, height)
        corner = tile.left / PAGE_WIDTH, 1 - (tile.top + height) / PAGE_HEIGHT
        box.figure.add_artist(
            FancyBboxPatch(
                corner, box.width / PAGE_WIDTH, height / PAGE_HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.006", facecolor=style.PAPER, edgecolor="none",
                transform=box.figure.transFigure,
            )
        )  # fmt: skip
        shown = fit(big, room, _BIG, bold=True)
        tile.text(_TILE_PAD, 0.07 + head / 2, shown, size=_BIG, weight="bold", color=style.ACCENT)
        for i, text in enumerate(lines):
            middle = 0.07 + head + line_height(_SMALL) * (i + 0.5)
            tile.text(_TILE_PAD, middle, text, size=_SMALL, color=style.MUTED)
        y += height + 0.10
    return y


def _legend(record: StudyRecord, split: Split, rows: Sequence[PublishedRow]) -> list[Entry]:
    entries = []
    several = len(record.fronts) > 1
    for method, colour in _front_colours(record).items():
        name = f"Front of {display_name(method)}" if several else "Front"
        entries.append(Entry(f"{name} (number = trial)", colour, marker="o", dash="-"))
    drawn = {id(trial) for trial in front_trials(record)}
    others = [trial for trial in complete_trials(record) if id(trial) not in drawn]
    if any(math.isfinite(delta(record, trial, split)) for trial in others):
        entries.append(Entry("Other trials", style.OTHERS, marker="o"))
    if rows:
        entries.append(Entry("Published rows", _PUBLISHED, marker="s", hollow=True))
    gated = next((row.method.split()[0] for row in rows if row.family == "gates"), "")
    if gated:
        entries.append(Entry(f"Published {gated}", _GATED, marker="o", hollow=True))
    kinds = {group.label for group in control_groups(record)}
    if WIDENED in kinds:
        entries.append(Entry("MTL at that cost (mtl@B)", _WIDENED, marker="D", hollow=True))
    if kinds - {WIDENED}:
        entries.append(Entry("Other controls", style.MUTED, marker="o", hollow=True))
    styles = network_styles(record)
    for group in baseline_groups(record):
        of_seeds = len(group.results) > 1 and group.is_uniform
        seeds = f" (mean of {len(group.results)} seeds)" if of_seeds else ""
        look = styles[group.label]
        entries.append(Entry(group.label + seeds, look.colour, marker=look.marker))
    return entries


def _caption(record: StudyRecord, split: Split, below: int, remark: str) -> str:
    parts = [
        "Δ MTL: mean relative gain over the single-task networks (STL) of the same seed; dashed "
        "line, 0 = STL. FLOPs = 2 x multiply-adds.",
        "The front was chosen on validation; the figures drawn are of the test split."
        if split == "test"
        else "Chosen and drawn on validation: there are no test figures of every network.",
    ]
    if any(len(group.results) > 1 for group in baseline_groups(record)):
        parts.append("Error bars: standard deviation over seeds, a small dot each.")
        if has_weightings(record):
            parts.append("Without, for legibility: weightings, which are means too.")
    missing = sum(not math.isfinite(delta(record, t, split)) for t in complete_trials(record))
    if missing:
        parts.append(f"{count_trials(missing)} without {split} figures not drawn.")
    if below:
        parts.append(f"{count_trials(below)} below the chart.")
    parts += [_unequal_training(record), _partial_labels(record), remark]
    return " ".join(part for part in parts if part)


def _unequal_training(record: StudyRecord) -> str:
    """Warn where networks that are compared were trained for different numbers of epochs."""
    front_epochs, other_epochs = (
        "/".join(str(epochs) for epochs in sorted({result.epochs for result in results}))
        for results in (front_trials(record), record.baselines)
    )
    if not record.fronts or front_epochs == other_epochs:
        return ""
    return f"UNEQUAL TRAINING: the front {front_epochs} epochs, baselines {other_epochs}."


def _partial_labels(record: StudyRecord) -> str:
    """Name the tasks that have labels of some frames only, with the frames that have them."""
    some = partly_labelled(record)
    named = [
        f"{task} ({', '.join(f'{part} {known} of {of}' for part, (known, of) in parts.items())})"
        for task, parts in list(some.items())[:_TASKS_NAMED]
    ]
    if not named:
        return ""
    rest = len(some) - len(named)
    more = f" and {rest} more task{'s' * (rest > 1)}, see Provenance" if rest else ""
    return f"Labels of some frames only: {'; '.join(named)}{more}."


def _published_overlay(record: StudyRecord) -> tuple[tuple[PublishedRow, ...], str]:
    """Choose the published rows to draw too, and the remark that a reader needs on them."""
    if not record.published:
        return (), ""
    rows = published_rows(record.published)
    published, studied = set(rows[0].metrics), {task.name for task in record.tasks}
    if published != studied:
        return (), f"Published rows not drawn: their tasks are {', '.join(sorted(published))}."
    return rows, "Published rows: as printed, against the paper's own single-task networks."
