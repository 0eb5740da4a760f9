"""Labels beside the points of a chart, placed so that none covers another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gatesearch.report.style import INK
from gatesearch.report.text import text_width

_Rectangle = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class PointLabel:
    """A label beside a point of a chart.

    Attributes:
        x: The point, data coordinates.
        y: The point, data coordinates.
        text: What is written.
        color: Of the text.
        size: Of the text, points of 1/72 inch.
        bold: Whether the text is bold.
        needed: Whether it is written even where it covers points; others are left out there.
    """

    x: float
    y: float
    text: str
    color: str = INK
    size: float = 8.0
    bold: bool = True
    needed: bool = True


def place_labels(
    axes: Axes, labels: Sequence[PointLabel], obstacles: Sequence[tuple[float, float]]
) -> list[PointLabel]:
    """Write labels beside their points; limits of the axes must be final.

    Places are tried nearest first, all in points of 1/72 inch. A label never covers another or
    leaves the axes: one without such a place is left out. A needed label goes where it covers the
    fewest obstacles, others only where they cover none.

    Args:
        axes: The chart.
        labels: Those that come first choose their place first.
        obstacles: Points in data coordinates that labels keep clear of.

    Returns:
        The labels that were left out.
    """
    scale = 72.0 / axes.figure.dpi
    frame = axes.get_window_extent()
    inside = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    points = axes.transData.transform(np.array(obstacles, float).reshape(-1, 2)) * scale
    covered = np.hstack([points - 3.0, points + 3.0])
    written = np.empty((0, 4))
    left_out = []
    for label in labels:
        x, y = axes.transData.transform((label.x, label.y)) * scale
        width = 72 * text_width(label.text, label.size, bold=label.bold) + 2
        height = label.size * 1.2
        options: list[tuple[float, int, float, float, _Rectangle]] = []
        for dx, dy in _offsets(width, height):
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            is_inside = (
                box[0] >= inside[0]
                and box[1] >= inside[1]
                and box[2] <= inside[2]
                and box[3] <= inside[3]
            )
            if is_inside and _overlap(box, written) == 0:
                options.append((round(_overlap(box, covered), 3), len(options), dx, dy, box))
        cost, _, dx, dy, box = min(options, default=(np.inf, 0, 0.0, 0.0, (0.0,) * 4))
        if not options or (cost > 0 and not label.needed):
            left_out.append(label)
            continue
        written = np.vstack([written, box])
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx + 1, dy + height / 2),
            textcoords="offset points",
            va="center",
            size=label.size,
            color=label.color,
            weight="bold" if label.bold else "normal",
            zorder=6,
        )
    return left_out


def _offsets(width: float, height: float) -> list[tuple[float, float]]:
    """List places for a label's lower left corner relative to its point, nearest first."""
    corners = []
    for gap in (5.0, 8.0, 12.0, 17.0, 24.0):
        flat = gap * 0.6
        corners += [
            (gap, -height / 2),
            (-width / 2, gap),
            (-width / 2, -gap - height),
            (-gap - width, -height / 2),
            (flat, flat),
            (-flat - width, flat),
            (flat, -flat - height),
            (-flat - width, -flat - height),
        ]
    return corners


def _overlap(box: Sequence[float], others: NDArray[np.float64]) -> float:
    """Sum the areas of a box that others cover; boxes are (left, bottom, right, top)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((width.clip(min=0.0) * height.clip(min=0.0)).sum())
