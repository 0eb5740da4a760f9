"""Two consoles: standard output for results, standard error for everything else."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

# Width in columns where output is no terminal. It is large, because a wrapped table is unreadable.
WIDE = 160


def _width(stream: TextIO | None) -> int | None:
    """Width of a console; None for that of the terminal. A closed stream is None."""
    return None if stream is not None and stream.isatty() else WIDE


out = Console(width=_width(sys.stdout), highlight=False)
err = Console(stderr=True, width=_width(sys.stderr), highlight=False, soft_wrap=True)


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
        words = [word for text in (heading, *(row[index] for row in rows)) for word in text.split()]
        table.add_column(
            heading,
            justify="right" if index >= numbers_from else "left",
            no_wrap=index >= numbers_from,
            min_width=max(map(len, words), default=0) if index < numbers_from else None,
        )
    for row in rows:
        table.add_row(*row)
    if title:
        out.print(f"{title}\n", markup=False)
    out.print(table, markup=False)
