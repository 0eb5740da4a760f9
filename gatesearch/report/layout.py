"""Pages filled from top to bottom: sections of blocks, which say how high they are.

A module of the report yields sections; `lay_out` puts them on pages one below the other, as many on
a page as fit, and lets blocks grow where room is left. All lengths are inches.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from gatesearch.report.style import FAINT, INK, MUTED
from gatesearch.report.text import fit, line_height, printable, wrap

PAGE_WIDTH, PAGE_HEIGHT = 11.69, 8.27  # A4, landscape
MARGIN = 0.70  # left and right
WIDTH = PAGE_WIDTH - 2 * MARGIN
_TOP, _BOTTOM = 0.40, 7.66  # where content begins and ends, from the top of the page
HEIGHT = _BOTTOM - _TOP

_TITLE, _SUBTITLE, _NOTE = 16.0, 9.0, 7.0  # sizes of text, points
_GAP = 0.30  # between sections
COLUMN_GAP = 0.30  # between columns of a section


@dataclass(frozen=True)
class Box:
    """A rectangle of a page to draw into; positions are from its upper left corner.

    Attributes:
        figure: The page.
        left: Distance from the left edge of the page.
        top: Distance from the top of the page.
        width: Its width.
        height: Its height.
    """

    figure: Figure
    left: float
    top: float
    width: float
    height: float

    def text(self, x: float, y: float, text: str, *, size: float, **options: Any) -> Text:
        """Write one line, whose middle is at the height `y`; options are matplotlib's."""
        options = {"va": "center", "color": INK} | options
        left, bottom = self._place(x, y)
        return self.figure.text(left, bottom, printable(text), size=size, **options)

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Make axes of that size with their upper left corner at (x, y)."""
        left, bottom = self._place(x, y + height)
        return self.figure.add_axes((left, bottom, width / PAGE_WIDTH, height / PAGE_HEIGHT))

    def rule(self, y: float, *, color: str = INK, width: float = 0.8, to: float = 0.0) -> None:
        """Draw a horizontal line from the left edge to `to`, or to the right edge."""
        (x0, bottom), (x1, _) = self._place(0, y), self._place(to or self.width, y)
        self.figure.add_artist(Line2D([x0, x1], [bottom, bottom], color=color, linewidth=width))

    def part(self, x: float, y: float, width: float, height: float) -> "Box":
        """Make a box inside this one."""
        return Box(self.figure, self.left + x, self.top + y, width, height)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Convert a position to shares of the page, from its lower left corner."""
        return (self.left + x) / PAGE_WIDTH, 1 - (self.top + y) / PAGE_HEIGHT


@dataclass(frozen=True)
class Block:
    """Something that is never split over two pages.

    Attributes:
        height: What it needs.
        draw: Draws it into a box that is at least as high.
        most: Height up to which it makes use of room that is left; 0 for a block that does not.
        with_next: Whether it stays on the page of the block that follows, as a heading does.
        shrinks: Whether it may be drawn up to an eighth lower where that saves a page.
    """

    height: float
    draw: Callable[[Box], None]
    most: float = 0.0
    with_next: bool = False
    shrinks: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with what belongs below it.

    Attributes:
        title: Of the heading.
        subtitle: A line below it; longer text is broken into several.
        blocks: From top to bottom.
        note: Small print below the blocks, repeated on every page of the section.
        head: Repeated above the blocks on every page of the section, as the head of a table.
        columns: Number of columns of blocks beside each other.
        keep: Blocks that the first page of the section has at least.
    """

    title: str
    subtitle: str
    blocks: Sequence[Block]
    note: str = ""
    head: Block | None = None
    columns: int = 1
    keep: int = 1


@dataclass
class _Part:
    """The part of a section that is on one page."""

    section: Section
    continued: bool
    columns: list[list[Block]]
    height: float  # of the blocks
    extra: float = 0.0  # share of their growth that blocks get
    blocks: list[Block] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.blocks = [block for column in self.columns for block in column]

    @property
    def growth(self) -> float:
        """Room that its blocks could still use."""
        if self.section.columns > 1:
            return 0.0
        return sum(max(block.most - block.height, 0.0) for block in self.blocks)


def lay_out(sections: Iterable[Section]) -> list[Figure]:
    """Draw sections on as few pages as their order allows."""
    planned = list(sections)
    # Charts that are a little lower may save a page of a few lines, or fill one that was left.
    plans = [_split_into_pages(planned, squeeze) for squeeze in (1.0, 0.94, 0.88)]
    best = min(plans, key=lambda pages: (len(pages), round(sum(map(_waste, pages[:-1])), 1)))
    return [_draw_page(parts) for parts in best]


def paragraph(text: str, *, size: float = 9.0, bold: bool = False, color: str = INK) -> Block:
    """Make a block of text over the whole width."""
    lines = wrap(text, WIDTH, size, bold=bold)
    step = line_height(size)

    def draw(box: Box) -> None:
        for i, line in enumerate(lines):
            weight = "bold" if bold else "normal"
            box.text(0, step * (i + 0.5), line, size=size, weight=weight, color=color)

    return Block(step * len(lines), draw)


def _split_into_pages(sections: Iterable[Section], squeeze: float) -> list[list[_Part]]:
    """Divide sections over pages; blocks that may shrink need only a share of their height."""
    pages: list[list[_Part]] = []
    room = 0.0  # that is left on the last page
    for section in sections:
        blocks = [
            replace(block, height=block.height * squeeze) if block.shrinks else block
            for block in section.blocks
        ]
        continued = False
        while blocks:
            above = _GAP if pages and pages[-1] else 0.0
            frame = above + _frame_height(section, continued)
            columns = _fill(blocks, section.columns, room - frame)
            count = sum(map(len, columns))
            needed = 1 if continued else min(max(section.keep, 1), len(blocks))
            if count < needed and not (pages and not pages[-1]):
                pages.append([])
                room = HEIGHT
                continue
            if count == 0:  # Higher than a page: drawn all the same, at the height of a page.
                columns = [[blocks[0]]]
                count = 1
            if count == len(blocks):
                columns = _balance(blocks, section.columns)
            height = max(sum(block.height for block in column) for column in columns)
            pages[-1].append(_Part(section, continued, columns, height))
            room -= frame + height
            blocks, continued = blocks[count:], True
            if blocks:
                pages.append([])
                room = HEIGHT
        if pages and not pages[-1]:
            pages.pop()
    for parts in pages:
        _grow(parts)
    return pages


def _fill(blocks: Sequence[Block], count: int, height: float) -> list[list[Block]]:
    """Fill columns of a height one after the other, as far as blocks fit."""
    columns: list[list[Block]] = []
    i = 0
    for _ in range(count):
        column: list[Block] = []
        used = 0.0
        while i < len(blocks):
            group = [blocks[i]]
            while group[-1].with_next and i + len(group) < len(blocks):
                group.append(blocks[i + len(group)])
            size = sum(block.height for block in group)
            if used + size > height + 1e-9:
                break
            column += group
            used += size
            i += len(group)
        columns.append(column)
    return columns


def _balance(blocks: Sequence[Block], count: int) -> list[list[Block]]:
    """Divide blocks into columns of about equal height."""
    total = sum(block.height for block in blocks)
    height = total / count
    while sum(map(len, columns := _fill(blocks, count, height))) < len(blocks):
        height += 0.02
    return columns


def _waste(parts: Sequence[_Part]) -> float:
    """Height of a page that nothing makes use of."""
    return max(_room(parts) - sum(part.growth for part in parts), 0.0)


def _room(parts: Sequence[_Part]) -> float:
    """Height of a page that is left where no block grows."""
    return HEIGHT - sum(
        _frame_height(part.section, part.continued) + part.height for part in parts
    ) - _GAP * (len(parts) - 1)  # fmt: skip


def _grow(parts: Sequence[_Part]) -> None:
    """Let the blocks of a page have the room that is left."""
    room, growth = _room(parts), sum(part.growth for part in parts)
    for part in parts:
        part.extra = min(max(room, 0.0) / growth, 1.0) if growth > 0 else 0.0


def _frame_height(section: Section, continued: bool) -> float:
    """Height of all that is repeated on every page of a section."""
    head = section.head.height if section.head else 0.0
    note = line_height(_NOTE) * len(_note_lines(section)) + (0.12 if section.note else 0.0)
    subtitle = 0 if continued else len(_subtitle_lines(section))
    return line_height(_TITLE) + line_height(_SUBTITLE) * subtitle + 0.18 + head + note


def _subtitle_lines(section: Section) -> list[str]:
    return wrap(section.subtitle, WIDTH, _SUBTITLE) if section.subtitle else []


def _note_lines(section: Section) -> list[str]:
    return wrap(section.note, WIDTH, _NOTE) if section.note else []


def _draw_page(parts: Sequence[_Part]) -> Figure:
    figure = Figure(figsize=(PAGE_WIDTH, PAGE_HEIGHT))
    y = _TOP
    for i, part in enumerate(parts):
        y += _GAP if i else 0.0
        y = _draw_part(figure, part, y)
    return figure


def _draw_part(figure: Figure, part: _Part, y: float) -> float:
    """Draw a part of a section at a height of the page; return where it ends."""
    section = part.section
    step = line_height(_TITLE)
    box = Box(figure, MARGIN, y, WIDTH, step)
    title = section.title + (" (continued)" if part.continued else "")
    box.text(0, step / 2, fit(title, WIDTH, _TITLE, bold=True), size=_TITLE, weight="bold")
    y += step
    for line in [] if part.continued else _subtitle_lines(section):
        step = line_height(_SUBTITLE)
        Box(figure, MARGIN, y, WIDTH, step).text(0, step / 2, line, size=_SUBTITLE, color=MUTED)
        y += step
    Box(figure, MARGIN, y, WIDTH, 0).rule(0.05, width=1.1)
    y += 0.18
    if section.head:
        section.head.draw(Box(figure, MARGIN, y, WIDTH, section.head.height))
        y += section.head.height
    width = (WIDTH - COLUMN_GAP * (section.columns - 1)) / section.columns
    end = y
    for i, column in enumerate(part.columns):
        end = max(end, _draw_column(figure, part, column, i * (width + COLUMN_GAP), y, width))
    y = end + (0.12 if section.note else 0.0)
    for line in _note_lines(section):
        step = line_height(_NOTE)
        Box(figure, MARGIN, y, WIDTH, step).text(0, step / 2, line, size=_NOTE, color=MUTED)
        y += step
    return y


def _draw_column(
    figure: Figure, part: _Part, blocks: Iterable[Block], x: float, y: float, width: float
) -> float:
    for block in blocks:
        height = block.height + part.extra * max(block.most - block.height, 0.0)
        height = min(height, HEIGHT)
        block.draw(Box(figure, MARGIN + x, y, width, height))
        y += height
    return y


def draw_lines(
    box: Box, lines: Iterable[str], x: float, y: float, *, size: float, **options: Any
) -> float:
    """Write lines below each other from the height `y` on; return where they end."""
    step = line_height(size)
    for line in lines:
        box.text(x, y + step / 2, line, size=size, **options)
        y += step
    return y


def number_pages(figures: Sequence[Figure], source: str) -> None:
    """Write the foot of every page."""
    for number, figure in enumerate(figures, start=1):
        _draw_footer(figure, source, f"{number} / {len(figures)}")


def _draw_footer(figure: Figure, source: str, number: str) -> None:
    box = Box(figure, MARGIN, _BOTTOM + 0.10, WIDTH, 0.3)
    box.rule(0, color=FAINT)
    box.text(0, 0.15, fit(source, WIDTH - 1.0, _NOTE), size=_NOTE, color=MUTED)
    box.text(WIDTH, 0.15, number, size=_NOTE, color=MUTED, ha="right")
