"""Doctests as examples: Markdown would take the `>>>` of a docstring for a quotation."""

import re
import textwrap
from typing import Any

import griffe


def as_examples(docstring: str) -> str:
    r"""Move each doctest of a docstring into a section `Examples:`.

    >>> as_examples("Add one.\n\n>>> add(1)\n2")
    'Add one.\n\nExamples:\n    >>> add(1)\n    2'
    """
    return re.sub(
        r"^>>> .*(?:\n.+)*",
        lambda block: "Examples:\n" + textwrap.indent(block[0], "    "),
        docstring,
        flags=re.MULTILINE,
    )


class Doctests(griffe.Extension):
    """Rewrites the docstrings that mkdocstrings reads."""

    def on_object(self, *, obj: griffe.Object, **further: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = as_examples(obj.docstring.value)
