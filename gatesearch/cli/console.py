"""Two consoles: standard output for results, standard error for everything else."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

# Width in columns where output is no terminal. It is large, because a wrapped table is unreadable.
WIDE = 160
_WIDEST = 10_000  # columns of any table


def _width(stream: TextIO | None) -> int | None:
    """Width of a console; None for that of the terminal. A closed stream is None."""
    return None if stream is not None and stream.isatty() else WIDE


class _PlainConsole(Console):
    """Prints text as it is: `:smile:` in a name is no picture, and no name steers the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        """See `rich.console.Console`."""
        return super().render_str(visible(text), **{**options, "emoji": False})


def visible(text: str) -> str:
    r"""Replace the control characters of a text by their escapes, except line breaks and tabs.

    >>> print(visible("a\x1b[31mb"))
    a\x1b[31mb
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

out = _PlainConsole(width=_width(sys.stdout), highlight=False)
err = _PlainConsole(stderr=True, width=_width(sys.stderr), highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    err.print(f"warning: {message}", style="yellow", markup=False)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object as one line of standard output."""
    print(json.dumps(value, allow_nan=False), flush=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers_from: int, title: str = ""
) -> None:
    """Print rows of text under their headings.

    Args:
        columns: Headings.
        rows: One text per column.
        numbers_from: Index of the first column that is aligned right.
        title: A line above the table.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(columns):
        # A narrow terminal wraps between words, never inside a name or a number.
        is_number = index >= numbers_from
        texts = [heading, *(row[index] for row in rows)]
        unbroken = [t for text in texts for t in (text.splitlines() if is_number else text.split())]
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            no_wrap=is_number,
            min_width=max(map(cell_len, unbroken), default=0),
        )
    for row in rows:
        table.add_row(*row)
    if title:
        out.print(f"{title}\n", markup=False)
    least = Measurement.get(out, out.options.update(width=_WIDEST), table).minimum
    # rich would leave columns out; a terminal breaks the lines that are too long for it.
    wide = out if least <= out.width else _PlainConsole(width=least, highlight=False)
    wide.print(table, markup=False)
