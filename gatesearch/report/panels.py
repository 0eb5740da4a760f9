"""Small charts beside each other, each with its title above it instead of beside its ticks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from gatesearch.report.layout import Block, Box
from gatesearch.report.style import INK, MUTED
from gatesearch.report.text import SMALLEST, fit, text_width

LEFT, BELOW = 0.52, 0.20  # room for the numbers of the ticks, inches
_TITLE, _LABEL = 0.24, 0.14


@dataclass(frozen=True)
class Panel:
    """A small chart.

    Attributes:
        title: Above it, with the unit of its vertical axis.
        draw: Draws into axes whose width and height, inches, it is given too.
        xlabel: Below it.
        remark: In small print at the right of the title.
        strong: Whether the remark is bold.
    """

    title: str
    draw: Callable[[Axes, float, float], None]
    xlabel: str = ""
    remark: str = ""
    strong: bool = False


def panel_row(
    panels: Sequence[Panel], *, columns: int, least: float = 1.15, most: float = 2.6
) -> Block:
    """Make a block of panels beside each other.

    Args:
        panels: At most `columns`.
        columns: Number of columns into which the page is divided.
        least: Least height of the charts themselves, inches.
        most: Height up to which they grow.
    """
    below = BELOW + (_LABEL if any(panel.xlabel for panel in panels) else 0.0)
    frame = _TITLE + below + 0.08

    def draw(box: Box) -> None:
        width = box.width / columns
        height = box.height - frame
        for i, panel in enumerate(panels):
            _draw(box.part(i * width, 0, width, box.height), panel, width - LEFT - 0.1, height)

    return Block(frame + least, draw, most=frame + most, shrinks=True)


def _draw(box: Box, panel: Panel, width: float, height: float) -> None:
    remark = fit(panel.remark, width * 0.5, 7, bold=panel.strong) if panel.remark else ""
    room = width - 0.1 - text_width(remark, 7, bold=panel.strong)
    title = fit(panel.title, room, 8, bold=True)
    box.text(LEFT, _TITLE / 2, title, size=8, weight="bold")
    if remark:
        box.text(
            LEFT + width, _TITLE / 2, remark, size=7, ha="right",
            color=INK if panel.strong else MUTED, weight="bold" if panel.strong else "normal",
        )  # fmt: skip
    axes = box.axes(LEFT, _TITLE, width, height)
    axes.tick_params(labelsize=SMALLEST, pad=2.5)
    panel.draw(axes, width, height)
    if panel.xlabel:
        text = fit(panel.xlabel, width, 7)
        y = _TITLE + height + BELOW + _LABEL / 2
        box.text(LEFT + width / 2, y, text, size=7, ha="center")
