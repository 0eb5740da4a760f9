"""Text measured in the report's fonts, and wrapped or shortened to a width."""

import re
from functools import cache

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import LoadFlags

SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
SMALLEST = 6.5  # points of 1/72 inch; nothing in the report is smaller
LEADING = 1.4  # distance of lines, of the size of the text

_AHEAD = 1.02  # renderers differ by a little from the measure taken here


def text_width(text: str, size: float, *, bold: bool = False, mono: bool = False) -> float:
    """Measure a line of text, as `printable` makes it.

    Args:
        text: One line.
        size: In points of 1/72 inch.
        bold: Whether it is bold.
        mono: Whether it is in the monospaced font.

    Returns:
        Inches.
    """
    family = MONO if mono else SANS
    return sum(_advance(c, family, bold) for c in printable(text)) * size / 72 * _AHEAD


def line_height(size: float) -> float:
    """Height of a line of text, inches, with the space to the next."""
    return size * LEADING / 72


def fit(text: str, width: float, size: float, *, bold: bool = False, mono: bool = False) -> str:
    """Shorten text to one printable line of at most `width` inches.

    What is left out is in the middle, since the names of a study often begin alike.
    """
    line = printable(" ".join(str(text).split()))
    if text_width(line, size, bold=bold, mono=mono) <= width:
        return line
    for kept in range(len(line) - 1, 0, -1):
        end = kept // 2
        short = line[: kept - end].rstrip() + "…" + (line[-end:].lstrip() if end else "")
        if text_width(short, size, bold=bold, mono=mono) <= width:
            return short
    return "…"


def wrap(
    text: str,
    width: float,
    size: float,
    *,
    lines: int = 0,
    bold: bool = False,
    mono: bool = False,
) -> list[str]:
    """Break text into printable lines of at most `width` inches, the fewest that do.

    Breaks are at spaces, and inside a word that is wider than a line: after a sign such as `_`,
    `.` or `/` where there is one.

    Args:
        text: Line breaks in it are kept.
        width: Inches.
        size: In points of 1/72 inch.
        lines: At most so many, the last one shortened; 0 for as many as it takes.
        bold: Whether it is bold.
        mono: Whether it is in the monospaced font.
    """

    def fits(line: str) -> bool:
        return text_width(line, size, bold=bold, mono=mono) <= width

    done: list[str] = []
    for paragraph in printable(str(text)).split("\n"):
        line = ""
        for word in _words(paragraph):
            if fits(f"{line} {word}".strip()):
                line = f"{line} {word}".strip()
                continue
            if line:
                done.append(line)
            line = word
            while not fits(line) and len(line) > 1:
                count = max(n for n in range(1, len(line)) if n == 1 or fits(line[:n]))
                signs = [m.end() for m in re.finditer(r"[^A-Za-z0-9]", line[:count])]
                count = signs[-1] if signs and signs[-1] > count // 2 else count
                done.append(line[:count])
                line = line[count:]
        done.append(line)
    if lines and len(done) > lines:
        rest = " ".join(done[lines - 1 :])
        return [*done[: lines - 1], fit(rest, width, size, bold=bold, mono=mono)]
    return done


def _words(paragraph: str) -> list[str]:
    """Split at spaces, but not before a sign that belongs to a number or name, as `%` and `↑`."""
    words: list[str] = []
    for word in paragraph.split():
        if words and word.strip(".;:,)") in ("%", "↑", "↓"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def printable(text: str) -> str:
    """Replace every character that the report's fonts cannot draw by `?`."""
    known = _glyphs()
    return "".join(c if c == "\n" or ord(c) in known else "?" for c in str(text))


@cache
def _advance(character: str, family: str, bold: bool) -> float:
    """Width of a character as a share of the text's size."""
    weight = "bold" if bold else "normal"
    font = get_font(findfont(FontProperties(family=family, weight=weight)))
    font.set_size(100, 72)
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_HINTING)
    return float(glyph.linearHoriAdvance) / 65536 / 100


@cache
def _glyphs() -> frozenset[int]:
    maps = [
        get_font(findfont(FontProperties(family=family, weight=weight))).get_charmap()
        for family in (SANS, MONO)
        for weight in ("normal", "bold")
    ]
    return frozenset.intersection(*(frozenset(chars) for chars in maps))
