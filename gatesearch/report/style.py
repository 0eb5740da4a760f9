"""Colours, fonts, number formats and page layout that all pages of the report share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

A4_LANDSCAPE = (11.69, 8.27)  # inches
LEFT, RIGHT, TOP, BOTTOM = 0.06, 0.94, 0.845, 0.10  # of the page; where content goes

INK, MUTED, FAINT, PAPER = "#16202b", "#64707d", "#d5dae0", "#f4f6f8"
ACCENT, ALARM = "#0b7a75", "#b42318"
CATEGORIES = (
    "#3056a0",
    "#c2571a",
    "#7a3e9d",
    "#2f7d32",
    "#b0204f",
    "#8a6d00",
    "#0086a8",
    "#555f6b",
    "#d0568f",
    "#6b8e23",
    "#1d4e4a",
    "#a0522d",
)
SHARING = LinearSegmentedColormap.from_list("sharing", ["#edf3f3", "#7fc1b9", ACCENT, "#053b3a"])
NETWORKS = LinearSegmentedColormap.from_list("networks", ["#8fd0c5", ACCENT, "#06302f"])

_MARKERS = {"stl": "s", "mtl": "D", "cross_stitch": "^", "mtan": "v"}
_COLOURS = {"stl": INK, "mtl": "#c2571a", "cross_stitch": "#3056a0", "mtan": "#7a3e9d"}

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    # Names and reasons come from outside and may hold a $.
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#e8ebee",
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    # Text of the PDF can be searched and copied.
    "pdf.fonttype": 42,
}


def page(title: str, subtitle: str) -> Figure:
    """Make an empty page with its heading."""
    figure = Figure(figsize=A4_LANDSCAPE)
    figure.text(LEFT, 0.925, clip(title, 62), size=19, weight="bold", va="baseline")
    figure.text(LEFT, 0.893, clip(subtitle, 150), size=9.5, color=MUTED, va="baseline")
    _rule(figure, 0.876, color=INK, width=1.1)
    return figure


def footer(figure: Figure, text: str, number: str) -> None:
    """Write a rule, the source and the page number at the foot of a page."""
    _rule(figure, 0.052, color=FAINT, width=0.8)
    figure.text(LEFT, 0.034, clip(text, 150), size=7, color=MUTED, va="center")
    figure.text(RIGHT, 0.034, number, size=7, color=MUTED, va="center", ha="right")


def note(figure: Figure, text: str) -> None:
    """Write small print just above the footer; the caller breaks the lines."""
    figure.text(LEFT, 0.062, printable(text), size=7, color=MUTED, va="bottom", linespacing=1.45)


def colour(style_key: str, index: int) -> str:
    """Choose a network's colour: its method's fixed one, else one by its index on the page."""
    return _COLOURS.get(style_key, CATEGORIES[(index + 3) % len(CATEGORIES)])


def marker(style_key: str, index: int) -> str:
    """Choose a network's marker: its method's fixed one, else one by its index on the page."""
    return _MARKERS.get(style_key, "PX<>ph*"[index % 7])


def printable(text: str) -> str:
    """Replace every character that the report's font cannot draw by `?`."""
    known = _glyphs()
    return "".join(c if c == "\n" or ord(c) in known else "?" for c in str(text))


def clip(text: str, length: int) -> str:
    """Cut text to one printable line of at most `length` characters, ending in an ellipsis."""
    line = printable(" ".join(str(text).split()))
    return line if len(line) <= length else line[: max(length - 1, 1)].rstrip() + "…"


def signed(value: float, decimals: int = 2) -> str:
    """Write a number with its sign, as `+1.25` or `−0.50`; an en dash if it is not finite."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{decimals}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else '−'}{text}"


def number(value: float, decimals: int) -> str:
    """Write a number with fixed decimals; an en dash if it is not finite."""
    return (
        f"{value:,.{decimals}f}".replace(",", " ").replace("-", "−")
        if math.isfinite(value)
        else "–"
    )


def decimals(values: Sequence[float], digits: int = 3) -> int:
    """Count the decimals that show a column of numbers with about `digits` significant digits."""
    magnitudes = sorted(abs(v) for v in values if math.isfinite(v) and v != 0)
    if not magnitudes:
        return 0
    median = magnitudes[len(magnitudes) // 2]
    return min(max(digits - 1 - math.floor(math.log10(median)), 0), 6)


def compact(value: float) -> str:
    """Write a positive number with three significant digits, as `893`, `31.2` or `0.0412`."""
    return number(value, decimals([value]))


@dataclass(frozen=True)
class PointLabel:
    """A label beside a point of a chart.

    Attributes:
        x: The point, data coordinates.
        y: The point, data coordinates.
        text: What is written.
        color: Of the text.
        size: Of the text, points of 1/72 inch.
        weight: `normal` or `bold`.
        needed: Whether it is written even where it covers something; others are left out there.
    """

    x: float
    y: float
    text: str
    color: str = INK
    size: float = 8.0
    weight: str = "normal"
    needed: bool = True


def use_plain_log_ticks(axis: Axis) -> None:
    """Write plain numbers at the powers of ten of a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def place_labels(
    axes: Axes, labels: Sequence[PointLabel], obstacles: Sequence[tuple[float, float]]
) -> None:
    """Write labels beside their points so that none covers another, or a point.

    Places are tried nearest first, all in points of 1/72 inch; limits of the axes must be final.
    A needed label without a free place goes where it covers least.

    Args:
        axes: The chart.
        labels: Those that come first choose their place first.
        obstacles: Points in data coordinates that labels keep clear of.
    """
    scale = 72.0 / axes.figure.dpi
    frame = axes.get_window_extent()
    inside = np.array([[frame.x0, frame.y0, frame.x1, frame.y1]]) * scale
    points = axes.transData.transform(np.array(obstacles, float).reshape(-1, 2)) * scale
    taken = np.hstack([points - 3.0, points + 3.0])
    for label in labels:
        x, y = axes.transData.transform((label.x, label.y)) * scale
        width, height = _extent(label.text, label.size, label.weight)
        options: list[tuple[float, int, float, float, tuple[float, float, float, float]]] = []
        for dx, dy in _offsets(width, height):
            box = (x + dx, y + dy, x + dx + width, y + dy + height)
            overlap = _overlap(box, taken)
            outside = width * height - _overlap(box, inside)
            options.append((round(overlap + 4 * outside, 3), len(options), dx, dy, box))
        cost, _, dx, dy, box = min(options)
        if cost > 0 and not label.needed:
            continue
        taken = np.vstack([taken, box])
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(dx, dy),
            textcoords="offset points",
            size=label.size,
            color=label.color,
            weight=label.weight,
            zorder=6,
        )


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


def is_crowded(points: Sequence[object]) -> bool:
    """Tell whether so many points are drawn as pixels, which a PDF reader opens faster."""
    return len(points) > 1000


def _overlap(box: Sequence[float], others: NDArray[np.float64]) -> float:
    """Sum the areas of a box that others cover; boxes are (left, bottom, right, top)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((width.clip(min=0.0) * height.clip(min=0.0)).sum())


def _extent(text: str, size: float, weight: str) -> tuple[float, float]:
    font = FontProperties(family="DejaVu Sans", weight=weight)
    box = TextPath((0, 0), text or " ", size=size, prop=font).get_extents()
    return float(box.width) + 1.5, size * 0.95


def _rule(figure: Figure, y: float, *, color: str, width: float) -> None:
    figure.add_artist(Line2D([LEFT, RIGHT], [y, y], color=color, linewidth=width))


@cache
def _glyphs() -> frozenset[int]:
    families = ("DejaVu Sans", "DejaVu Sans Mono")
    maps = [get_font(findfont(family)).get_charmap() for family in families]
    return frozenset.intersection(*(frozenset(chars) for chars in maps))
