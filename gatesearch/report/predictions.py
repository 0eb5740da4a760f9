"""Pages of real images beside truth and predictions, one task per page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from gatesearch.drawing import COLOR_SCALE, DRAWINGS
from gatesearch.files import FileRefusedError
from gatesearch.report import style
from gatesearch.report.record_queries import NAMES, display_name, pick_evenly, split_pages
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.store.predictions import read_predictions

_FRAMES_PER_PAGE = 4
_COLUMNS = 5  # networks beside image and truth
_PIXELS = 400  # width up to which pictures are drawn; a page does not show more


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Yield a page per task and four frames; none where no predictions were kept.

    Trials are ordered by cost; where not all fit, the cheapest and the most expensive remain.

    Raises:
        FileRefusedError: The file of predictions is damaged.
    """
    if record.predictions is None:
        return
    arrays = read_predictions(record.predictions)
    images = arrays["image"]
    gflops = {trial.name: trial.gflops for trial in record.trials}
    for task in record.tasks:
        truth = arrays.get(f"truth.{task.name}")
        suffix = f".{task.name}"
        labels = [k.removesuffix(suffix) for k in arrays if k.endswith(suffix)]
        named = sorted((k for k in labels if k not in gflops and k != "truth"), key=_order)
        trials = sorted((k for k in labels if k in gflops), key=lambda name: gflops[name])
        kept = named[: max(_COLUMNS - len(trials), 3)]
        shown = [*kept, *pick_evenly(trials, _COLUMNS - len(kept))]
        columns = [("Image", images)]
        columns += [("Truth", truth)] if truth is not None else []
        columns += [(_title(k), arrays[k + suffix]) for k in shown]
        if len(columns) == 1:
            continue
        _check_values(task, columns[1:], record.predictions)
        for part in split_pages(range(len(images)), _FRAMES_PER_PAGE):
            yield _draw(task, columns, part)


def _check_values(task: TaskInfo, columns: Sequence[tuple[str, NDArray[Any]]], path: Path) -> None:
    """Refuse arrays that the task's drawing cannot draw."""
    dimensions = 4 if task.drawing == "directions" else 3
    for name, array in columns:
        drawable = array.ndim == dimensions and (dimensions == 3 or array.shape[3] == 3)
        if task.drawing == "classes":
            drawable &= array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255
        if not drawable:
            raise FileRefusedError(
                path,
                f"is damaged: {name} of {task.name} cannot be drawn as {task.drawing}, found "
                f"{array.dtype} of shape {array.shape}; delete it: `gatesearch run` draws it anew",
            )


def _draw(
    task: TaskInfo, columns: Sequence[tuple[str, NDArray[Any]]], frames: Sequence[int]
) -> Figure:
    unit = f", {task.unit}" if task.unit else ""
    figure = style.page(
        f"Predictions: {task.name}", f"Truth beside predictions; the metric is {task.metric}{unit}"
    )
    drawing = DRAWINGS[task.drawing]
    limits = drawing.limits_of(columns[1][1][list(frames)])
    height, width = columns[0][1].shape[1:3]
    step = -(-width // _PIXELS)
    area_w, area_h = style.RIGHT - style.LEFT, style.TOP - 0.15
    page_w, page_h = style.A4_LANDSCAPE
    gap = 0.006
    shape = page_w / page_h * height / width  # of a picture, in fractions of the page
    cell_w = min(
        (area_w - gap * (len(columns) - 1)) / len(columns), (area_h / len(frames) - gap) / shape
    )
    cell_h = cell_w * shape
    # One axes for all pictures: making an axes costs more than drawing the picture.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1), autoscale_on=False)
    axes.set_axis_off()
    figure.suppressComposite = True
    for j, (name, array) in enumerate(columns):
        x = style.LEFT + j * (cell_w + gap)
        figure.text(x, style.TOP, style.clip(name, 18), size=9, weight="bold", va="center")
        for i, frame in enumerate(frames):
            values = array[frame, ::step, ::step]
            rgb = values if j == 0 else drawing.draw(values, limits)
            y = style.TOP - 0.018 - cell_h - i * (cell_h + gap * 1.4)
            extent = (x, x + cell_w, y, y + cell_h)
            axes.imshow(rgb, interpolation="nearest", aspect="auto", extent=extent)
    if limits is not None:
        scale = ScalarMappable(Normalize(*limits), colormaps[COLOR_SCALE])
        bar = figure.colorbar(
            scale, cax=figure.add_axes((0.70, 0.092, 0.24, 0.010)), orientation="horizontal"
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=6.5)
        bar.ax.set_title(f"{task.unit or 'depth'}", size=7, loc="right", weight="normal", pad=2)
    style.note(figure, drawing.legend)
    return figure


def _order(name: str) -> tuple[int, str]:
    return (list(NAMES).index(name) if name in NAMES else len(NAMES)), name


def _title(name: str) -> str:
    return (
        display_name(*name.partition(" + ")[::2])
        if not name.startswith("trial ")
        else name.capitalize()
    )
