"""Real images beside truth and predictions, a section per task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from gatesearch.drawing import COLOR_SCALE, DRAWINGS, Drawing, Limits, palette
from gatesearch.errors import DataError
from gatesearch.report import style
from gatesearch.report.layout import PAGE_HEIGHT, PAGE_WIDTH, WIDTH, Block, Box, Section, paragraph
from gatesearch.report.legend import Entry, draw_marker, legend_block
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import (
    NAMES,
    display_name,
    pick_evenly,
    shown_split,
    split_pages,
)
from gatesearch.report.text import SMALLEST, fit
from gatesearch.results import StudyRecord, TaskInfo

_IGNORED = 255  # as in gatesearch.tasks.labels, which needs torch
_FRAMES_PER_BLOCK = 4
_COLUMNS = 5  # networks beside image and truth
_PIXELS = 400  # width up to which pictures are drawn; a page does not show more
_GAP = 0.07  # between pictures, inches
_HEAD = 0.26
_HIGHEST = 1.6  # of a picture, inches
_SMALLEST_SHARE = 0.62  # of its full size to which a picture is drawn so that more fit on a page
_SCALE_HEIGHT = 0.42  # of a colour scale

Values = NDArray[Any]


@dataclass(frozen=True)
class _Column:
    """A column of pictures.

    Attributes:
        title: Above it.
        values: (frames, H, W) or (frames, H, W, 3).
        network: Style of the network that predicted them; None for image and truth.
    """

    title: str
    values: Values
    network: NetworkStyle | None = None


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield a section per task; nothing where no predictions were kept.

    Trials are ordered by cost; where not all fit, the cheapest and the most expensive remain. What
    cannot be drawn is left out, and a sentence says why.
    """
    try:
        arrays = _load(record)
    except DataError as error:
        yield _left_out("Predictions", str(error))
        return
    images = arrays.get("image")
    if images is None or len(images) == 0:
        return
    styles = network_styles(record)
    stored = arrays.get("seed", np.array(()))
    seed = int(stored) if stored.shape == () and stored.dtype.kind in "iu" else None
    for task in record.tasks:
        columns = _columns(record, task, arrays, styles)
        if len(columns) == 1:
            continue
        try:
            _check_shapes(columns, task)
            yield _section(record, task, columns, seed)
        except DataError as error:
            yield _left_out(f"Predictions: {task.name}", str(error))


def shared_limits(drawing: Drawing, truth: Values | None, guesses: Sequence[Values]) -> Limits:
    """Choose one colour scale for labels and predictions.

    It spans the 2nd to the 98th percentile of the truth, and of each prediction where it reaches
    further, but by no more than the truth's own span on either side, so that a network that
    diverged leaves the others their colours.
    """
    ranges = [drawing.limits_of(values) for values in guesses if _has_known(values)]
    known = [limits for limits in ranges if limits is not None]
    low, high = min((r[0] for r in known), default=0.0), max((r[1] for r in known), default=1.0)
    if truth is None or not _has_known(truth):
        return low, high
    first, last = drawing.limits_of(truth) or (0.0, 1.0)
    room = max(last - first, 0.25 * abs(last))
    return max(min(low, first), first - room), min(max(high, last), last + room)


def _has_known(values: Values) -> bool:
    return bool((np.isfinite(values) & (values > 0)).any())


def _load(record: StudyRecord) -> Mapping[str, Values]:
    path = record.predictions
    if path is None or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in sorted(stored.files)}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise DataError(
            f"predictions must be an .npz of plain arrays, found {path} damaged ({error}); "
            "delete it: `gatesearch run` draws them anew"
        ) from error


def _left_out(title: str, reason: str) -> Section:
    return Section(title, "Left out", [paragraph(reason, size=8, color=style.MUTED)])


def _columns(
    record: StudyRecord,
    task: TaskInfo,
    arrays: Mapping[str, Values],
    styles: Mapping[str, NetworkStyle],
) -> list[_Column]:
    """Choose the columns: image, truth, baselines, and trials from cheap to expensive."""
    gflops = {trial.name: trial.gflops for trial in record.trials}
    suffix = f".{task.name}"
    labels = [k.removesuffix(suffix) for k in arrays if k.endswith(suffix)]
    named = sorted((k for k in labels if k not in gflops and k != "truth"), key=_order)
    trials = sorted((k for k in labels if k in gflops), key=lambda name: gflops[name])
    kept = named[: max(_COLUMNS - len(trials), 3)]
    truth = arrays.get(f"truth{suffix}")
    columns = [_Column("Image", arrays["image"])]
    columns += [_Column("Truth", truth)] if truth is not None else []
    for key in [*kept, *pick_evenly(trials, _COLUMNS - len(kept))]:
        title = _title(key)
        columns.append(_Column(title, arrays[key + suffix], styles.get(title)))
    return columns


def _check_shapes(columns: Sequence[_Column], task: TaskInfo) -> None:
    images = columns[0].values
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise DataError(
            f"images must be (frames, rows, columns, 3) of uint8, found {images.shape} of "
            f"{images.dtype}; delete the file: `gatesearch run` draws them anew"
        )
    shape = images.shape[:3]
    for column in columns:
        if column.values.ndim not in (3, 4) or column.values.shape[:3] != shape:
            raise DataError(
                f"predictions of {task.name} must cover {shape} frames, rows and columns, found "
                f"{column.values.shape} for {column.title}; delete the file: `gatesearch run` "
                "draws them anew"
            )


def _section(
    record: StudyRecord, task: TaskInfo, columns: Sequence[_Column], seed: int | None
) -> Section:
    drawing = DRAWINGS.get(task.drawing)
    if drawing is None:
        raise DataError(
            f"a task's drawing must be one of {', '.join(DRAWINGS)}, found {task.drawing}; report "
            "with the gatesearch that wrote the store"
        )
    truth = next((c.values for c in columns if c.title == "Truth" and c.network is None), None)
    guesses = [c.values for c in columns[1:] if c.values is not truth]
    step = -(-columns[0].values.shape[2] // _PIXELS)
    try:
        limits = None if drawing.limits is None else shared_limits(drawing, truth, guesses)
        pictures = [
            [column.values[frame, ::step, ::step] if i == 0
             else drawing.draw(column.values[frame, ::step, ::step], limits)
             for frame in range(len(column.values))]
            for i, column in enumerate(columns)
        ]  # fmt: skip
    except (IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"predictions of {task.name} cannot be drawn as {task.drawing} ({error}); delete the "
            "file: `gatesearch run` draws them anew"
        ) from error
    heads = [_head(record, task, column, seed) for column in columns]
    blocks = [
        _pictures(columns, heads, [row[part[0] : part[-1] + 1] for row in pictures])
        for part in split_pages(range(len(columns[0].values)), _FRAMES_PER_BLOCK)
    ]
    below = []
    if limits is not None:
        below.append(_color_scale(limits, task, [c.values for c in columns[1:]]))
    if task.drawing == "classes":
        below.append(legend_block(_class_entries(task, [c.values for c in columns[1:]])))
    if below:
        blocks[-1] = Block(blocks[-1].height, blocks[-1].draw, blocks[-1].most, with_next=True)
    unit = f", {task.unit}" if task.unit else ""
    split = shown_split(record)
    return Section(
        f"Predictions: {task.name}",
        f"Truth beside predictions; below each network its {task.metric}{unit} "
        f"{style.arrow(task.higher_is_better)} over the whole {split} split",
        [*blocks, *below],
        note=drawing.legend,
    )


def _head(
    record: StudyRecord, task: TaskInfo, column: _Column, seed: int | None
) -> tuple[str, str]:
    """Write a column's name and the metric of its network, empty where there is none."""
    split = shown_split(record)
    values = [
        result.metrics.get(split, {}).get(task.name)
        for result in (*record.baselines, *record.trials)
        if result.state == "complete"
        and _title(result.name) == column.title
        and (seed is None or result.seed == seed or result.trial is not None)
    ]
    if column.title in ("Image", "Truth") or not values or values[0] is None:
        return column.title, ""
    return column.title, f"{style.compact(values[0])} {task.unit}".strip()


def _pictures(
    columns: Sequence[_Column],
    heads: Sequence[tuple[str, str]],
    pictures: Sequence[Sequence[NDArray[np.uint8]]],
) -> Block:
    """Make a block of pictures, a row per frame."""
    rows = len(pictures[0])
    height, width = columns[0].values.shape[1:3]
    shape = height / width
    cell = min((WIDTH - _GAP * (len(columns) - 1)) / len(columns), _HIGHEST / shape)
    full = rows * (cell * shape + _GAP)
    frame = 2 * _HEAD * 0.62 + 0.04

    def draw(box: Box) -> None:
        high = (box.height - frame) / rows - _GAP
        wide = high / shape
        # One axes for all pictures: making an axes costs more than drawing the picture.
        axes = _page_axes(box)
        for j, (column, (name, metric)) in enumerate(zip(columns, heads, strict=True)):
            x = j * (wide + _GAP)
            left = x
            if column.network:
                draw_marker(box, column.network, x + 0.06, 0.08)
                left += 0.16
            title = fit(name, x + wide - left, 8, bold=True)
            box.text(left, 0.08, title, size=8, weight="bold")
            box.text(x, 0.24, fit(metric, wide, 7), size=7, color=style.MUTED)
            for i, picture in enumerate(pictures[j]):
                y = frame + i * (high + _GAP)
                axes.imshow(
                    picture, interpolation="nearest", aspect="auto",
                    extent=_extent(box, x, y, wide, high),
                )  # fmt: skip

    return Block(frame + full * _SMALLEST_SHARE, draw, most=frame + full)


def _page_axes(box: Box) -> Axes:
    """Make axes over the whole page, whose units are shares of it."""
    axes = box.figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1), autoscale_on=False)
    axes.set_axis_off()
    box.figure.suppressComposite = True
    return axes


def _extent(box: Box, x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    left, top = (box.left + x) / PAGE_WIDTH, 1 - (box.top + y) / PAGE_HEIGHT
    return left, left + width / PAGE_WIDTH, top - height / PAGE_HEIGHT, top


def _color_scale(limits: Limits, task: TaskInfo, values: Sequence[Values]) -> Block:
    """Make a colour scale with its unit; pointed ends stand for values beyond it."""
    known = [array[np.isfinite(array) & (array > 0)] for array in values]
    lowest = min((float(array.min()) for array in known if array.size), default=limits[0])
    highest = max((float(array.max()) for array in known if array.size), default=limits[1])
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (lowest < limits[0], highest > limits[1]), "neither"
    )

    def draw(box: Box) -> None:
        scale = ScalarMappable(Normalize(*limits), colormaps[COLOR_SCALE])
        axes = box.axes(0.1, 0.08, 4.0, 0.11)
        bar = box.figure.colorbar(scale, cax=axes, orientation="horizontal", extend=extend)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=SMALLEST, pad=2)
        style.set_ticks(bar.ax.xaxis, 4.0)
        beyond = "" if extend == "neither" else "; pointed ends: values beyond"
        unit = f"{task.name}, {task.unit}" if task.unit else task.name
        box.text(4.25, 0.135, fit(unit + beyond, box.width - 4.3, 7.5), size=7.5)

    return Block(_SCALE_HEIGHT, draw)


def _class_entries(task: TaskInfo, values: Sequence[Values]) -> list[Entry]:
    """List the classes that occur, the most frequent first, by name or else by number."""
    counts = sum(np.bincount(array.ravel(), minlength=256) for array in values)
    present = [int(i) for i in np.argsort(-np.asarray(counts), kind="stable") if counts[i] > 0]
    return [
        Entry(
            task.class_names[i] if i < len(task.class_names) else f"class {i}",
            "#" + bytes(palette()[i].tolist()).hex(),
        )
        for i in present
        if i != _IGNORED
    ]


def _order(name: str) -> tuple[int, str]:
    return (list(NAMES).index(name) if name in NAMES else len(NAMES)), name


def _title(name: str) -> str:
    if name.startswith("trial "):
        return name.capitalize()
    return display_name(*name.partition(" + ")[::2])
