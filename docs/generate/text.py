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
    """
    return "\n".join([_row(header), "|---" * len(header) + "|", *map(_row, rows)])


def _row(cells: Sequence[str]) -> str:
    shown = [text.replace("|", r"\|").replace("\n", " ") for text in cells]
    return f"| {' | '.join(shown)} |"


def prose(text: str) -> str:
    """Keep `<` and `*` of a docstring's text from being read as Markdown; code stays as it is.

    >>> prose("NAME.<task> of `a<b`")
    'NAME.&lt;task> of `a<b`'
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else part.replace("<", "&lt;").replace("*", r"\*")
        for part in parts
    )


def text_of(documented: object) -> str:
    """Return the docstring of an object up to its first section, such as `Attributes:`."""
    doc = inspect.getdoc(documented) or ""
    return prose(re.split(r"\n(?=[A-Z]\w+:\n)|\n>>> ", doc)[0].strip())


def attributes_of(documented: type) -> dict[str, str]:
    """Read the section `Attributes:` of a class's docstring, name -> meaning.

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
    doc = inspect.getdoc(documented) or ""
    section = re.search(r"^Attributes:\n((?:[ \n].*\n?)*)", doc, re.MULTILINE)
    if section is None:
        return {}
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section[1], re.MULTILINE)
    return {name: prose(" ".join(meaning.split())) for name, meaning in entries}
