"""Real images beside truth and predictions of every task."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from gatesearch.answers import ANSWERS, complete_names
from gatesearch.drawing import (
    COLOR_SCALE,
    DRAWINGS,
    OVERLAYS,
    Drawing,
    Limits,
    Overlay,
    Picture,
    palette,
)
from gatesearch.errors import DataError
from gatesearch.report import style
from gatesearch.report.layout import (
    PAGE_HEIGHT,
    PAGE_WIDTH,
    WIDTH,
    Block,
    Box,
    Section,
    draw_lines,
    paragraph,
)
from gatesearch.report.legend import Entry, draw_legend, draw_marker, legend_block
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import (
    NAMES,
    display_name,
    output_names,
    pick_evenly,
    shown_split,
    split_pages,
)
from gatesearch.report.text import SMALLEST, fit, text_width, wrap
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.store.predictions import read_predictions

_IGNORED = 255  # as in gatesearch.tasks.labels, which needs torch
_FRAMES_PER_BLOCK = 4
_COLUMNS = 5  # networks beside image and truth
_PIXELS = 400  # width up to which pictures are drawn; a page does not show more
_GAP = 0.07  # between pictures, inches
_KEY_WIDTH = 1.65  # at the right of the pictures
_KEY_ENTRIES = 4  # classes in the key per row of pictures; more are named below the pictures
_FRAME = 0.63  # above the pictures of a task
_LEAST, _HIGHEST = 0.78, 1.6  # height of a picture

Values = NDArray[Any]
_Extent = tuple[float, float, float, float]  # left, right, bottom, top


@dataclass(frozen=True)
class Column:
    """A column of pictures or answers.

    Attributes:
        title: Above it.
        values: (frames, H, W), (frames, H, W, 3) or (frames, numbers).
        is_predicted: Whether a network predicted them.
        network: Style of that network where other pages draw it too.
    """

    title: str
    values: Values
    is_predicted: bool = False
    network: NetworkStyle | None = None


@dataclass(frozen=True)
class _Key:
    """What the colours of a task's pictures mean.

    Attributes:
        note: A sentence.
        limits: Values at the ends of the colour scale; None without one.
        extend: Ends beyond which there are values: `neither`, `min`, `max` or `both`.
        entries: The classes.
    """

    note: str
    limits: Limits | None
    extend: str
    entries: Sequence[Entry]


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield all tasks in one section; nothing where no predictions were kept.

    Trials are ordered by cost; where not all fit, the cheapest and the most expensive remain. What
    cannot be drawn is left out, and a sentence says why.
    """
    try:
        arrays = load_arrays(record)
    except (DataError, OSError) as error:
        yield Section("Predictions", "", [_left_out(str(error))])
        return
    images = arrays.get("image")
    if images is None or len(images) == 0:
        return
    blocks: list[Block] = []
    for task in record.tasks:
        columns = columns_of(record, task, arrays, network_styles(record))
        if len(columns) == 1 or (task.drawing in ANSWERS and task.drawing not in OVERLAYS):
            continue
        try:
            blocks += _task_blocks(record, task, columns, _seed(arrays))
        except DataError as error:
            blocks.append(_left_out(f"{task.name}: {error}"))
    if blocks:
        yield Section(
            "Predictions",
            "Images beside truth and predictions; below each network's name its figure on the "
            f"whole {shown_split(record)} split",
            blocks,
        )


def shared_limits(drawing: Drawing, truth: Values | None, guesses: Sequence[Values]) -> Limits:
    """Choose one colour scale for labels and predictions.

    It spans the 2nd to the 98th percentile of the truth, and of each prediction where it reaches
    further, but by no more than the truth's own span on either side, so that a network that
    diverged leaves the others their colours.
    """
    known = [values for values in guesses if _has_known(values)]
    ranges = [limits for values in known if (limits := drawing.limits_of(values)) is not None]
    if truth is None or not _has_known(truth):
        ends = ranges or [(0.0, 1.0)]
        return min(low for low, _ in ends), max(high for _, high in ends)
    first, last = drawing.limits_of(truth) or (0.0, 1.0)
    room = max(last - first, 0.25 * abs(last))
    low, high = min([first, *(r[0] for r in ranges)]), max([last, *(r[1] for r in ranges)])
    return max(low, first - room), min(high, last + room)


def _has_known(values: Values) -> bool:
    return bool((np.isfinite(values) & (values > 0)).any())


def load_arrays(record: StudyRecord) -> Mapping[str, Values]:
    """Read the arrays that the report shows; none where none were kept.

    Raises:
        DataError: The file is damaged.
        OSError: It cannot be read.
    """
    return {} if record.predictions is None else read_predictions(record.predictions)


def _left_out(reason: str) -> Block:
    return paragraph(f"Left out: {reason}", size=8, color=style.MUTED)


def _seed(arrays: Mapping[str, Values]) -> int | None:
    """Read the seed of the networks that predicted; None where it is not kept."""
    stored = arrays.get("seed", np.array(()))
    return int(stored) if stored.shape == () and stored.dtype.kind in "iu" else None


def columns_of(
    record: StudyRecord,
    task: TaskInfo,
    arrays: Mapping[str, Values],
    styles: Mapping[str, NetworkStyle],
) -> list[Column]:
    """Choose the columns: image, truth, baselines, and trials from cheap to expensive."""
    gflops = {trial.name: trial.gflops for trial in record.trials}
    suffix = f".{task.name}"
    labels = [k.removesuffix(suffix) for k in arrays if k.endswith(suffix)]
    named = sorted((k for k in labels if k not in gflops and k != "truth"), key=_order)
    trials = sorted((k for k in labels if k in gflops), key=lambda name: gflops[name])
    kept = named[: max(_COLUMNS - len(trials), 3)]
    truth = arrays.get(f"truth{suffix}")
    columns = [Column("Image", arrays["image"])]
    columns += [Column("Truth", truth)] if truth is not None else []
    for key in [*kept, *pick_evenly(trials, _COLUMNS - len(kept))]:
        title = _title(key)
        columns.append(Column(title, arrays[key + suffix], True, styles.get(title)))
    return columns


def _task_blocks(
    record: StudyRecord, task: TaskInfo, columns: Sequence[Column], seed: int | None
) -> list[Block]:
    """Make the blocks of a task: pictures with their key, and a long legend below them."""
    if task.drawing in OVERLAYS:
        return _overlay_blocks(record, task, columns, seed)
    drawing = DRAWINGS.get(task.drawing)
    if drawing is None:
        raise DataError(
            f"a task's drawing must be one of {', '.join([*DRAWINGS, *ANSWERS])}, found "
            f"{task.drawing}; report with the gatesearch that wrote the store"
        )
    truth = next((c.values for c in columns[1:] if not c.is_predicted), None)
    guesses = [c.values for c in columns if c.is_predicted]
    labels = [column.values for column in columns[1:]]
    try:
        limits = None if drawing.limits is None else shared_limits(drawing, truth, guesses)
        pictures = _draw_columns(columns, drawing, limits)
        entries = _class_entries(task, labels) if task.drawing == "classes" else []
    except (IndexError, TypeError, ValueError) as error:
        raise not_drawable(task, error) from error
    extend = _beyond(limits, [truth] if truth is not None else [], guesses)
    key = _Key(drawing.legend, limits, extend, entries)
    return _picture_blocks(record, task, columns, pictures, key, seed)


def not_drawable(task: TaskInfo, error: Exception) -> DataError:
    """Say that what is stored of a task cannot be shown."""
    return DataError(
        f"predictions of {task.name} cannot be drawn as {task.drawing} ({error}); delete the file: "
        "`gatesearch run` draws them anew"
    )


def _overlay_blocks(
    record: StudyRecord, task: TaskInfo, columns: Sequence[Column], seed: int | None
) -> list[Block]:
    """Make the blocks of a task that is drawn over its images."""
    overlay = OVERLAYS[task.drawing]
    try:
        pictures = _draw_over(columns, overlay)
        count = columns[1].values.shape[1] // ANSWERS[task.drawing].numbers
    except (IndexError, TypeError, ValueError) as error:
        raise not_drawable(task, error) from error
    names = complete_names(output_names(task), count)
    named = [Entry(name, _class_colour(i % _IGNORED)) for i, name in enumerate(names)]
    key = _Key(overlay.legend, None, "neither", named)
    return _picture_blocks(record, task, columns, pictures, key, seed)


def _draw_over(columns: Sequence[Column], overlay: Overlay) -> list[list[Picture]]:
    """Draw each column's values over the images, of large ones every second or third pixel.

    Raises:
        ValueError: Values are not those of the images.
        TypeError: Values are of a type that cannot be drawn.
    """
    images = columns[0].values
    step = -(-images.shape[2] // _PIXELS)
    shown = [np.ascontiguousarray(image[::step, ::step]) for image in images]
    return [shown] + [
        [overlay.paint(values, image) for values, image in zip(column.values, shown, strict=True)]
        for column in columns[1:]
    ]


def _picture_blocks(
    record: StudyRecord,
    task: TaskInfo,
    columns: Sequence[Column],
    pictures: Sequence[Sequence[Picture]],
    key: _Key,
    seed: int | None,
) -> list[Block]:
    """Make blocks of a few frames each; entries for which the key has no room go below them."""
    heads = [_head(record, task, column, seed) for column in columns]
    parts = split_pages(range(len(columns[0].values)), _FRAMES_PER_BLOCK)
    entries = key.entries
    below = len(entries) > _KEY_ENTRIES * len(parts[0])
    key = replace(key, entries=[] if below else entries)
    blocks = [
        _pictures(task, columns, heads, [row[part[0] : part[-1] + 1] for row in pictures], key)
        for part in parts
    ]
    if not below:
        return blocks
    return [*blocks[:-1], replace(blocks[-1], with_next=True), legend_block(entries)]


def _draw_columns(
    columns: Sequence[Column], drawing: Drawing, limits: Limits | None
) -> list[list[Picture]]:
    """Draw each column's frames, of large ones every second or third pixel.

    Raises:
        ValueError: Something else than pictures comes out.
        IndexError: Classes are no numbers of colours.
        TypeError: Values are of a type that cannot be drawn.
    """
    frames, height, width = columns[0].values.shape[:3]
    step = -(-width // _PIXELS)
    pictures = []
    for column in columns:
        values = _raised(column.values, limits) if column.is_predicted else column.values
        parts = [values[frame, ::step, ::step] for frame in range(frames)]
        if column is not columns[0]:
            parts = [drawing.draw(part, limits) for part in parts]
        pictures.append(parts)
        expected = (-(-height // step), -(-width // step), 3)
        odd = [part.shape for part in parts if part.shape != expected]
        if odd:
            raise ValueError(f"{column.title} has the shape {odd[0]}, not {expected}")
    return pictures


def _raised(values: Values, limits: Limits | None) -> Values:
    """Raise predictions below a colour scale to its lower end: only labels can be unknown."""
    if limits is None:
        return values
    return np.where(np.isfinite(values), np.maximum(values, limits[0]), values)


def _head(record: StudyRecord, task: TaskInfo, column: Column, seed: int | None) -> tuple[str, str]:
    """Write a column's name and the metric of its network, empty where there is none."""
    split = shown_split(record)
    values = [
        result.metrics.get(split, {}).get(task.name)
        for result in (*record.baselines, *record.trials)
        if result.state == "complete"
        and _title(result.name) == column.title
        and (seed is None or result.seed == seed or result.trial is not None)
    ]
    if not column.is_predicted or not values or values[0] is None:
        return column.title, ""
    return column.title, f"{style.compact(values[0])} {task.unit}".strip()


def _pictures(
    task: TaskInfo,
    columns: Sequence[Column],
    heads: Sequence[tuple[str, str]],
    pictures: Sequence[Sequence[NDArray[np.uint8]]],
    key: _Key,
) -> Block:
    """Make a block of pictures, a row per frame, with the key at their right."""
    rows = len(pictures[0])
    height, width = columns[0].values.shape[1:3]
    shape = height / width
    room = WIDTH - _KEY_WIDTH - _GAP * len(columns)
    full = min(room / len(columns) * shape, _HIGHEST)
    least = min(full, _LEAST)

    def draw(box: Box) -> None:
        high = (box.height - _FRAME) / rows - _GAP
        wide = high / shape
        unit = f", {task.unit}" if task.unit else ""
        title = f"{task.name} · {task.metric}{unit} {style.arrow(task.higher_is_better)}"
        box.text(0, 0.13, fit(title, WIDTH, 9.5, bold=True), size=9.5, weight="bold")
        # One axes for all pictures: making an axes costs more than drawing the picture.
        axes = _page_axes(box)
        for j, (column, (name, metric)) in enumerate(zip(columns, heads, strict=True)):
            x = j * (wide + _GAP)
            left = x
            if column.network:
                draw_marker(box, column.network, x + 0.05, 0.33)
                left += 0.12
            size = _head_size(name, x + wide - left)
            title = fit(name, x + wide - left, size, bold=True)
            box.text(left, 0.33, title, size=size, weight="bold")
            box.text(left, 0.47, fit(metric, x + wide - left, 7), size=7, color=style.MUTED)
            for i, picture in enumerate(pictures[j]):
                y = _FRAME - 0.07 + i * (high + _GAP)
                axes.imshow(
                    picture, interpolation="nearest", aspect="auto",
                    extent=_extent(box, x, y, wide, high),
                )  # fmt: skip
        x = len(columns) * (wide + _GAP) + 0.08
        _draw_key(box.part(x, _FRAME - 0.07, box.width - x, box.height - _FRAME + 0.07), task, key)

    frame = rows * _GAP + _FRAME
    return Block(frame + rows * least, draw, most=frame + rows * full)


def _head_size(name: str, width: float) -> float:
    """Choose the largest size at which a bold name has room."""
    sizes = (7.5, 7.0, SMALLEST)
    return next((size for size in sizes if text_width(name, size, bold=True) <= width), SMALLEST)


def _draw_key(box: Box, task: TaskInfo, key: _Key) -> None:
    """Draw what colours mean: the scale or the classes, and a sentence."""
    y = 0.0
    width = min(box.width, 1.5 * _KEY_WIDTH)
    if key.limits is not None:
        unit = f"{task.name}, {task.unit}" if task.unit else task.name
        box.text(0, 0.06, fit(unit, width, 7.5), size=7.5)
        _draw_scale(box.part(0, 0.16, width, 0.3), key.limits, key.extend)
        y = 0.46
    elif key.entries:
        y = draw_legend(box.part(0, 0, width, box.height), key.entries) + 0.06
    note = key.note if key.extend == "neither" else f"{key.note} Pointed ends: values beyond."
    draw_lines(box, wrap(note, width, 7), 0, y, size=7, color=style.MUTED)


def _page_axes(box: Box) -> Axes:
    """Make axes over the whole page, whose units are shares of it."""
    axes = box.figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1), autoscale_on=False)
    axes.set_axis_off()
    box.figure.suppressComposite = True
    return axes


def _extent(box: Box, x: float, y: float, width: float, height: float) -> _Extent:
    left, top = (box.left + x) / PAGE_WIDTH, 1 - (box.top + y) / PAGE_HEIGHT
    return left, left + width / PAGE_WIDTH, top - height / PAGE_HEIGHT, top


def _beyond(limits: Limits | None, truths: Sequence[Values], guesses: Sequence[Values]) -> str:
    """Tell at which ends values lie beyond a colour scale, in matplotlib's words."""
    if limits is None:
        return "neither"
    known = [values[np.isfinite(values) & (values > 0)] for values in truths]
    known += [values[np.isfinite(values)] for values in guesses]
    below = any((values < limits[0]).any() for values in known)
    above = any((values > limits[1]).any() for values in known)
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )


def _draw_scale(box: Box, limits: Limits, extend: str) -> None:
    scale = ScalarMappable(Normalize(*limits), colormaps[COLOR_SCALE])
    axes = box.axes(0.05, 0, box.width - 0.15, 0.11)
    bar = box.figure.colorbar(scale, cax=axes, orientation="horizontal", extend=extend)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=SMALLEST, pad=2)
    style.set_ticks(bar.ax.xaxis, box.width - 0.4)


def _class_entries(task: TaskInfo, values: Sequence[Values]) -> list[Entry]:
    """List the classes that occur, the most frequent first, by name or else by number."""
    counts = np.sum([np.bincount(array.ravel(), minlength=256) for array in values], axis=0)
    present = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0]
    return [
        Entry(
            task.class_names[i] if i < len(task.class_names) else f"class {i}",
            _class_colour(i),
        )
        for i in present
        if i != _IGNORED
    ]


def _class_colour(index: int) -> str:
    return "#" + bytes(palette()[index].tolist()).hex()


def _order(name: str) -> tuple[int, str]:
    return (list(NAMES).index(name) if name in NAMES else len(NAMES)), name


def _title(name: str) -> str:
    if name.startswith("trial "):
        return name.capitalize()
    return display_name(*name.partition(" + ")[::2])
