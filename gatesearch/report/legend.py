"""Legends: rows of swatches with names, laid out by the measured width of the names."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from gatesearch.report.layout import PAGE_HEIGHT, PAGE_WIDTH, WIDTH, Block, Box
from gatesearch.report.network_styles import Dash, NetworkStyle
from gatesearch.report.text import fit, line_height, text_width

_SIZE = 7.5
_SWATCH, _GAP = 0.30, 0.18  # before a name and after it, inches
_ROW = line_height(_SIZE) + 0.02


@dataclass(frozen=True)
class Entry:
    """What a name of a legend stands for.

    Attributes:
        label: The name.
        colour: Of the swatch.
        marker: matplotlib's letter of a marker; empty without one.
        dash: matplotlib's style of a line; empty without one.
        hollow: Whether the marker is an outline.
    """

    label: str
    colour: str
    marker: str = ""
    dash: Dash = ""
    hollow: bool = False


def legend_height(entries: Sequence[Entry], width: float) -> float:
    """Height of a legend of that width, inches."""
    return -(-len(entries) // _columns(entries, width)) * _ROW if entries else 0.0


def legend_block(entries: Sequence[Entry]) -> Block:
    """Make a block of a legend over the whole width."""

    def draw(box: Box) -> None:
        draw_legend(box, entries, 0.06)

    return Block(legend_height(entries, WIDTH) + 0.06, draw)


def draw_legend(box: Box, entries: Sequence[Entry], y: float = 0.0) -> float:
    """Draw a legend in equal columns from the height `y` of a box on; return where it ends.

    Entries for which there is no room are counted in its last line.
    """
    columns = _columns(entries, box.width) if entries else 1
    room = max(int((box.height - y + 1e-6) / _ROW), 1)
    if len(entries) > room * columns:
        shown = list(entries[: room * columns - 1])
        rest = f"and {len(entries) - len(shown)} more, in the table"
        shown.append(Entry(rest, "none"))
    else:
        shown = list(entries)
    rows = -(-len(shown) // columns)
    step = box.width / columns
    for i, entry in enumerate(shown):
        x, middle = (i // rows) * step, y + (i % rows + 0.5) * _ROW
        _draw_swatch(box, entry, x, middle)
        name = fit(entry.label, step - _SWATCH - 0.04, _SIZE)
        box.text(x + _SWATCH, middle, name, size=_SIZE)
    return y + rows * _ROW


def _columns(entries: Sequence[Entry], width: float) -> int:
    widest = max(text_width(entry.label, _SIZE) for entry in entries)
    return max(int(width / min(_SWATCH + widest + _GAP, width)), 1)


def draw_marker(box: Box, style: NetworkStyle, x: float, y: float) -> None:
    """Draw a network's marker with its middle at (x, y) of a box."""
    left, bottom = (box.left + x) / PAGE_WIDTH, 1 - (box.top + y) / PAGE_HEIGHT
    _add_marker(box, left, bottom, style.colour, style.marker, hollow=False)


def _draw_swatch(box: Box, entry: Entry, x: float, middle: float) -> None:
    if entry.colour == "none":
        return
    left, y = (box.left + x) / PAGE_WIDTH, 1 - (box.top + middle) / PAGE_HEIGHT
    width = 0.22 / PAGE_WIDTH
    if entry.dash:
        box.figure.add_artist(
            Line2D(
                [left, left + width], [y, y], color=entry.colour, linestyle=entry.dash,
                linewidth=1.4,
            )
        )  # fmt: skip
    if entry.marker:
        _add_marker(box, left + width / 2, y, entry.colour, entry.marker, hollow=entry.hollow)
    if not entry.marker and not entry.dash:
        height = 0.10 / PAGE_HEIGHT
        corner = (left, y - height / 2)
        box.figure.add_artist(Rectangle(corner, width, height, color=entry.colour, linewidth=0))


def _add_marker(box: Box, x: float, y: float, colour: str, marker: str, *, hollow: bool) -> None:
    box.figure.add_artist(
        Line2D(
            [x], [y], marker=marker, markersize=6.5, linestyle="none",
            markerfacecolor="none" if hollow else colour,
            markeredgecolor=colour if hollow or marker == "x" else "white",
        )
    )  # fmt: skip
