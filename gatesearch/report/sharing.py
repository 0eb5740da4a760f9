"""Sharing maps: which layers each task of a front's network keeps to itself."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from gatesearch.report import style
from gatesearch.report.record_queries import network_label, pick_evenly, shown_split, split_pages
from gatesearch.results import Result, StudyRecord, delta, front

_MAPS = 6
_MAPS_PER_PAGE = 3
_LAYER_NAMES = 60  # of more layers only every second or third is named


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw up to six maps, three per page; none if no network of the front has one."""
    drawn = pick_evenly([trial for trial in front(record) if trial.sharing], _MAPS)
    for part in split_pages(drawn, _MAPS_PER_PAGE):
        figure = style.page(
            "What is shared, layer by layer",
            "Share of the live channels of each layer that are the task's own: "
            "0 = all shared, 1 = a network of its own",
        )
        for i, trial in enumerate(part):
            _draw(figure, record, trial, row=i)
        style.note(figure, "White: no channel of that layer is alive for the task.")
        yield figure


def _draw(figure: Figure, record: StudyRecord, trial: Result, *, row: int) -> None:
    tasks = [task.name for task in record.tasks if task.name in trial.sharing]
    count = max(len(trial.sharing[task]) for task in tasks) if tasks else 0
    if count == 0:
        return
    names = [*trial.layers, *(str(i + 1) for i in range(len(trial.layers), count))][:count]
    values = np.full((len(tasks), count), np.nan)
    for i, task in enumerate(tasks):
        shares = trial.sharing[task]
        values[i, : len(shares)] = shares
    height = 0.122
    bottom = style.TOP - 0.012 - height - row * 0.255
    axes = figure.add_axes((0.135, bottom, 0.735, height))
    image = axes.imshow(
        np.clip(values, 0, 1), cmap=style.SHARING, vmin=0, vmax=1, aspect="auto",
        interpolation="nearest",
    )  # fmt: skip
    axes.set_yticks(range(len(tasks)), [style.clip(task, 14) for task in tasks], color=style.INK)
    ticks = range(0, count, -(-count // _LAYER_NAMES))
    axes.set_xticks(
        ticks, [_short_name(names[i]) for i in ticks], rotation=90 if count > 12 else 0, size=5.5
    )
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(tasks) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)
    split = shown_split(record)
    means = [
        f"{style.clip(task, 14)} {100 * np.nanmean(shares):.0f} %"
        for task, shares in zip(tasks, values, strict=True)
        if np.isfinite(shares).any()
    ]
    axes.set_title(
        f"{network_label(trial)}   Δ MTL {style.signed(delta(record, trial, split))} % ({split}), "
        f"{style.compact(trial.gflops)} GFLOPs",
        pad=5,
    )
    axes.set_title(
        f"own, mean over layers: {', '.join(means)}" if len(means) < 5 else "",
        loc="right", size=7, weight="normal", color=style.MUTED, pad=5,
    )  # fmt: skip
    bar = figure.colorbar(image, cax=figure.add_axes((0.885, bottom, 0.009, height)))
    bar.outline.set_visible(False)
    bar.set_ticks([0, 0.5, 1], labels=["shared", "half", "own"])
    bar.ax.tick_params(length=0, labelsize=6.5)


def _short_name(name: str) -> str:
    short = name.removeprefix("backbone.").replace("layer", "L").replace("blocks.", "B")
    return style.clip(short, 14)
