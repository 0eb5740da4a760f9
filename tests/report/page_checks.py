"""Faults in the look of a page that can be measured: text that is cut, covered or too small."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.style import context
from matplotlib.text import Text
from numpy.typing import NDArray

from gatesearch.report import document, style

SMALLEST = 6.0  # points of 1/72 inch
_DPI = 144
_TOUCH = 0.8  # points by which boxes of text, which have air in them, may reach into another
_MARGIN = 0.25  # inches that stay free at the edges of a page


def page_faults(study) -> list[str]:
    """Draw all pages of a study's report and list their faults."""
    pages = document.draw_pages(study)
    faults = []
    with context(style.RC, after_reset=True):
        for number, figure in enumerate(pages, start=1):
            page = _draw(figure)
            found = _faults(page)
            shown = [text.get_text() for text in figure.texts]
            found += [f"{text!r} is shortened" for text in shown if "…" in text]
            if number < len(pages) and (share := _filled_share(page)) < 0.55:
                found.append(f"only {100 * share:.0f} % of the page's height are used")
            faults += [f"page {number}: {fault}" for fault in found]
    return faults


def figure_faults(figure: Figure) -> list[str]:
    """List the faults of one page."""
    return _faults(_draw(figure))


def filled_share(figure: Figure) -> float:
    """Measure how far down text, pictures and charts reach, of the height above the foot."""
    return _filled_share(_draw(figure))


@dataclass(frozen=True)
class _Page:
    """A page as it was drawn: its N texts, and their boxes, (N, 4) pixels x0, y0, x1, y1."""

    figure: Figure
    renderer: RendererAgg
    texts: list[Text]
    boxes: NDArray[np.float64]


def _draw(figure: Figure) -> _Page:
    """Draw a page and find the texts that matplotlib really drew on it, ticks included."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    with _recorded() as drawn:
        canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in drawn if text.get_visible() and text.get_text().strip()]
    boxes = [text.get_window_extent(renderer).extents for text in texts]
    return _Page(figure, renderer, texts, np.reshape(boxes, (-1, 4)))


def _faults(page: _Page) -> list[str]:
    names = [repr(text.get_text()) for text in page.texts]
    x0, y0, x1, y1 = page.boxes.T
    width, height = (inches * _DPI for inches in page.figure.get_size_inches())
    margin = _MARGIN * _DPI
    faults = [
        f"{name} is of {text.get_size():g} points"
        for name, text in zip(names, page.texts, strict=True)
        if text.get_size() < SMALLEST
    ]
    outside = (x0 < margin) | (x1 > width - margin) | (y0 < margin) | (y1 > height - margin)
    faults += [f"{names[i]} leaves the page" for i in np.flatnonzero(outside)]
    across = np.minimum.outer(x1, x1) - np.maximum.outer(x0, x0)
    down = np.minimum.outer(y1, y1) - np.maximum.outer(y0, y0)
    touching = np.triu(np.minimum(across, down) > _TOUCH * _DPI / 72, k=1)
    faults += [f"{names[i]} and {names[j]} overlap" for i, j in np.argwhere(touching)]
    for tile in page.figure.findobj(FancyBboxPatch):
        left, bottom, right, top = tile.get_window_extent(page.renderer).extents
        overlaps = (x0 < right) & (x1 > left) & (y0 < top) & (y1 > bottom)
        contained = (x0 >= left) & (x1 <= right) & (y0 >= bottom) & (y1 <= top)
        faults += [f"{names[i]} leaves its tile" for i in np.flatnonzero(overlaps & ~contained)]
    return faults


def _filled_share(page: _Page) -> float:
    height = page.figure.get_size_inches()[1] * _DPI
    foot = 0.07 * height
    bottoms = page.boxes[:, 1]
    lowest = bottoms[bottoms > foot].min(initial=height)
    return float((height - lowest) / (height - foot))


@contextmanager
def _recorded() -> Iterator[list[Text]]:
    texts: list[Text] = []
    draw = Text.draw

    def record(self, renderer, *args, **kwargs):
        texts.append(self)
        return draw(self, renderer, *args, **kwargs)

    Text.draw = record
    try:
        yield texts
    finally:
        Text.draw = draw
