"""Markdown out of docstrings: their text, their list of attributes, and tables."""

import inspect
import re
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Write a Markdown table.

    >>> print(table(["key", "type"], [["size", "a | b"]]))
    | key | type |
    |---|---|
    | size | a \| b |
    >>> print(table(["command"], [["`a|b`"]]))
    | command |
    |---|
    | `a|b` |
    """
    return "\n".join([_row(header), "|---" * len(header) + "|", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    shown = [_outside_code(text.replace("\n", " "), {"|": r"\|"}) for text in cells]
    return f"| {' | '.join(shown)} |"


def prose(text: str) -> str:
    """Keep `<` and `*` of a docstring's text from being read as Markdown; code stays as it is.

    >>> prose("NAME.<task> of `a<b`")
    'NAME.&lt;task> of `a<b`'
    """
    return _outside_code(text, {"<": "&lt;", "*": r"\*"})


def _outside_code(text: str, replaced: dict[str, str]) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    for i in range(0, len(parts), 2):  # what lies between two pieces of code
        for old, new in replaced.items():
            parts[i] = parts[i].replace(old, new)
    return "".join(parts)


def text_of(documented: object) -> str:
    """Return the docstring of an object up to its first section, such as `Attributes:`."""
    doc = inspect.getdoc(documented) or ""
    return prose(re.split(r"\n(?=[A-Z]\w+:\n)|\n>>> ", doc)[0].strip())


def attributes_of(documented: type) -> dict[str, str]:
    """Read the sections `Attributes:` of a class and of those it builds on, name -> meaning.

    >>> class Box:
    ...     '''A box.
    ...
    ...     Attributes:
    ...         width: Its width,
    ...             pixels.
    ...     '''
    >>> attributes_of(Box)
    {'width': 'Its width, pixels.'}
    """
    meanings: dict[str, str] = {}
    package = documented.__module__.partition(".")[0]
    for ancestor in reversed(documented.__mro__):
        if ancestor.__module__.partition(".")[0] != package:
            continue
        doc = inspect.cleandoc(ancestor.__doc__ or "")
        section = re.search(r"^Attributes:\n((?:[ \n].*\n?)*)", doc, re.MULTILINE)
        entries = section[1] if section else ""
        for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", entries, re.MULTILINE):
            meanings[name] = prose(" ".join(text.split()))
    return meanings
