"""Sharing maps: which layers each task of a front's network keeps to itself."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from matplotlib.axes import Axes

from gatesearch.report import style
from gatesearch.report.layout import WIDTH, Block, Box, Section
from gatesearch.report.legend import draw_marker
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import network_label, pick_evenly, shown_split, split_pages
from gatesearch.report.text import SMALLEST, fit, line_height, text_width
from gatesearch.results import Result, Split, StudyRecord, delta, front

_MAPS, _FEWEST = 6, 2  # maps at most; at least, where tasks are many
_ROWS = 60  # of all maps together
_TASKS = 24  # of a block: more are continued in another
_TASKS_WIDTH, _BAR_WIDTH = 1.15, 1.10  # beside a map, inches
_MAP_WIDTH = WIDTH - _TASKS_WIDTH - _BAR_WIDTH
_TITLE = 0.26
_LONGEST_NAME, _NAME_WIDTH = 0.72, 0.125  # of an upright layer's name, inches
_STAGES = 0.22  # height of the line that names stages


@dataclass(frozen=True)
class LayerNames:
    """Names of layers, short enough to be read below a map.

    Attributes:
        short: A name per layer, without that of its stage.
        stages: (name, index of its first layer, number of its layers), in order; layers whose names
            have no dot are in none.
    """

    short: tuple[str, ...]
    stages: tuple[tuple[str, int, int], ...]


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield up to six maps, fewer of many tasks; nothing if no network of the front has one."""
    tasks = [task.name for task in record.tasks]
    trials = [t for t in front(record) if any(t.sharing.get(task) for task in tasks)]
    split, styles = shown_split(record), network_styles(record)
    most = max(min(_MAPS, _ROWS // max(len(tasks), 1)), _FEWEST)
    blocks = [
        _map(record, trial, part, split, styles[network_label(trial)])
        for trial in pick_evenly(trials, most)
        for part in split_pages([task for task in tasks if trial.sharing.get(task)], _TASKS)
    ]
    if blocks:
        yield Section(
            "What is shared, layer by layer",
            "Share of the live channels of each layer that are the task's own: "
            "0 = all shared, 1 = a network of its own; at the right the mean over layers",
            blocks,
            note="White: no channel of that layer is alive for the task.",
        )


def layer_names(names: Sequence[str]) -> LayerNames:
    """Divide names of layers into those of stages and short ones within each stage.

    What all names begin with is left out.

    >>> layer_names(["conv1", "layer1.0.conv1", "layer1.0.downsample"])
    LayerNames(short=('conv1', '0.conv1', '0.down'), stages=(('layer1', 1, 2),))
    """
    bare = list(names)
    while len(set(names)) > 1 and len({name.partition(".")[0] for name in bare}) == 1:
        if not all(name.partition(".")[2] for name in bare):
            break
        bare = [name.partition(".")[2] for name in bare]
    short, stages = [], []
    for stage, members in groupby(range(len(bare)), key=lambda i: _stage(bare[i])):
        inside = list(members)
        if stage:
            stages.append((stage, inside[0], len(inside)))
        for i in inside:
            rest = bare[i].removeprefix(f"{stage}.")
            for long, brief in (("downsample", "down"), ("depthwise", "dw")):
                rest = rest.replace(long, brief)
            short.append(rest)
    return LayerNames(tuple(short), tuple(stages))


def _stage(name: str) -> str:
    """Name a layer's stage; empty for a layer in none."""
    stage, dot, _ = name.partition(".")
    return stage if dot else ""


def _map(
    record: StudyRecord, trial: Result, tasks: Sequence[str], split: Split, network: NetworkStyle
) -> Block:
    """Make the map of some tasks of a network."""
    count = max(len(trial.sharing[task]) for task in tasks)
    full = [*trial.layers, *(str(i + 1) for i in range(len(trial.layers), count))][:count]
    names = layer_names(full)
    values = np.full((len(tasks), count), np.nan)
    for i, task in enumerate(tasks):
        values[i, : len(trial.sharing[task])] = trial.sharing[task]
    values[~np.isfinite(values)] = np.nan
    shown = _shown_names(names, count)
    longest = max((text_width(text, SMALLEST) for text in shown.values()), default=0.0)
    upright = longest + 0.06 > _MAP_WIDTH / count
    below = 0.08 + _STAGES + (longest if upright else line_height(SMALLEST))
    least, most = max(0.17 * len(tasks), 0.5), max(0.26 * len(tasks), 0.75)

    def draw(box: Box) -> None:
        height = box.height - _TITLE - below - 0.06
        gain = style.signed(delta(record, trial, split))
        title = (
            f"{network_label(trial)} · Δ MTL ↑ {gain} % ({split}), "
            f"{style.compact(trial.gflops)} GFLOPs ↓"
        )
        draw_marker(box, network, _TASKS_WIDTH + 0.06, _TITLE / 2)
        box.text(_TASKS_WIDTH + 0.18, _TITLE / 2, title, size=8.5, weight="bold")
        right = _TASKS_WIDTH + _MAP_WIDTH
        word = "own, mean"
        box.text(right + 0.05, _TITLE / 2, word, size=SMALLEST, color=style.MUTED)
        axes = box.axes(_TASKS_WIDTH, _TITLE, _MAP_WIDTH, height)
        image = axes.imshow(
            np.clip(values, 0, 1), cmap=style.SHARING, vmin=0, vmax=1, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        _clear(axes, len(tasks), count)
        step = height / len(tasks)
        for i, task in enumerate(tasks):
            room = _TASKS_WIDTH - 0.08
            size = next((s for s in (7.5, 7.0) if text_width(task, s) <= room), SMALLEST)
            y = _TITLE + step * (i + 0.5)
            box.text(_TASKS_WIDTH - 0.06, y, fit(task, room, size), size=size, ha="right")
            if np.isfinite(values[i]).any():
                mean = f"{100 * np.nanmean(values[i]):.0f} %"
                box.text(right + 0.40, y, mean, size=7, ha="right")
        _write_layers(box, names, shown, count, _TITLE + height, upright=upright)
        bar = box.figure.colorbar(image, cax=box.axes(right + 0.52, _TITLE, 0.11, height))
        bar.outline.set_visible(False)
        bar.set_ticks([])
        for share, word in ((0.0, "own"), (0.5, "half"), (1.0, "shared")):
            y = _TITLE + 0.06 + (height - 0.12) * share
            box.text(right + 0.68, y, word, size=SMALLEST, color=style.MUTED)

    frame = _TITLE + below + 0.06
    return Block(frame + least, draw, most=frame + most)


def _shown_names(names: LayerNames, count: int) -> dict[int, str]:
    """Choose the layers that are named: in each stage every k-th, from its first on."""
    every = math.ceil(_NAME_WIDTH / (_MAP_WIDTH / count))
    starts = [start for _, start, _ in names.stages]
    ends = [start + length for _, start, length in names.stages]
    edges = sorted({0, *starts, *ends, count})
    shown = {}
    for start, end in pairwise(edges):
        for i in range(start, end, every):
            # Clear of the next stage's first name.
            if i == start or i + every <= end or end == count:
                shown[i] = fit(names.short[i], _LONGEST_NAME, SMALLEST)
    return shown


def _write_layers(
    box: Box,
    names: LayerNames,
    shown: dict[int, str],
    count: int,
    top: float,
    *,
    upright: bool,
) -> None:
    """Write short names below a map, and the stages' names below lines over their width."""
    step = _MAP_WIDTH / count
    for i, name in shown.items():
        x = _TASKS_WIDTH + step * (i + 0.5)
        box.text(
            x, top + 0.04, name, size=SMALLEST, color=style.MUTED, ha="center", va="top",
            rotation=90 if upright else 0,
        )  # fmt: skip
    y = box.height - _STAGES
    taken = 0.0  # right end of the last name of a stage
    for stage, start, length in names.stages:
        left, right = _TASKS_WIDTH + step * start, _TASKS_WIDTH + step * (start + length)
        box.part(left + 0.02, y, right - left - 0.04, 0).rule(0, color=style.MUTED)
        name = fit(stage, max(right - left, 0.5), SMALLEST)
        width = text_width(name, SMALLEST)
        x = (left + right - width) / 2
        if x >= taken:
            box.text(x, y + 0.08, name, size=SMALLEST, color=style.INK)
            taken = x + width + 0.04


def _clear(axes: Axes, rows: int, columns: int) -> None:
    """Leave nothing of the axes but white lines between the cells."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0 if columns <= 60 else 0.4)
    axes.tick_params(which="minor", length=0)
