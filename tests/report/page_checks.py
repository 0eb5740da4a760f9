"""Faults in the look of a page that can be measured: text that is cut, covered or too small."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.style import context
from matplotlib.text import Text
from matplotlib.transforms import Bbox

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
            found = figure_faults(figure)
            if number < len(pages) and (share := filled_share(figure)) < 0.55:
                found.append(f"only {100 * share:.0f} % of the page's height are used")
            faults += [f"page {number}: {fault}" for fault in found]
    return faults


def figure_faults(figure: Figure) -> list[str]:
    """List the faults of one page."""
    texts, canvas = _drawn_texts(figure)
    renderer = canvas.get_renderer()
    boxes = [(text, text.get_window_extent(renderer)) for text in texts]
    scale = _DPI / 72
    width, height = (inches * _DPI for inches in figure.get_size_inches())
    margin = _MARGIN * _DPI
    faults = []
    for text, box in boxes:
        name = repr(text.get_text())
        if text.get_size() < SMALLEST:
            faults.append(f"{name} is of {text.get_size():g} points")
        inside = (
            box.x0 >= margin and box.x1 <= width - margin
            and box.y0 >= margin and box.y1 <= height - margin
        )  # fmt: skip
        if not inside:
            faults.append(f"{name} leaves the page")
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        across = min(box_a.x1, box_b.x1) - max(box_a.x0, box_b.x0)
        down = min(box_a.y1, box_b.y1) - max(box_a.y0, box_b.y0)
        if min(across, down) > _TOUCH * scale:
            faults.append(f"{a.get_text()!r} and {b.get_text()!r} overlap")
    for tile in figure.findobj(FancyBboxPatch):
        frame = tile.get_window_extent(renderer)
        for text, box in boxes:
            if _overlap(frame, box) and not _contains(frame, box):
                faults.append(f"{text.get_text()!r} leaves its tile")
    return faults


def filled_share(figure: Figure) -> float:
    """Measure how far down text, pictures and charts reach, of the height above the foot."""
    texts, canvas = _drawn_texts(figure)
    renderer = canvas.get_renderer()
    height = figure.get_size_inches()[1] * _DPI
    foot = 0.07 * height
    bottoms = [text.get_window_extent(renderer).y0 for text in texts]
    lowest = min((bottom for bottom in bottoms if bottom > foot), default=height)
    return (height - lowest) / (height - foot)


def _drawn_texts(figure: Figure) -> tuple[list[Text], FigureCanvasAgg]:
    """Draw a page and list the texts that matplotlib really drew on it, ticks included."""
    figure.set_dpi(_DPI)
    canvas = FigureCanvasAgg(figure)
    with _recorded() as texts:
        canvas.draw()
    return [text for text in texts if text.get_visible() and text.get_text().strip()], canvas


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


def _overlap(a: Bbox, b: Bbox) -> bool:
    return min(a.x1, b.x1) > max(a.x0, b.x0) and min(a.y1, b.y1) > max(a.y0, b.y0)


def _contains(outer: Bbox, inner: Bbox) -> bool:
    return (
        inner.x0 >= outer.x0 and inner.x1 <= outer.x1
        and inner.y0 >= outer.y0 and inner.y1 <= outer.y1
    )  # fmt: skip
