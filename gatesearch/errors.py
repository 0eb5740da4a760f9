"""What can go wrong for a user, each with the exit code of the command line.

A message says the rule, the value found and the cure.
"""

import difflib
from collections.abc import Iterable


class GatesearchError(Exception):
    """A failure that the user can mend; the command line prints its text, exits with `code`."""

    code = 1


class UsageError(GatesearchError):
    """Wrong use or definition: an unknown study, key, method or value."""

    code = 2


def unknown(what: str, word: str, known: Iterable[str]) -> UsageError:
    """`unknown <what> '<word>'`, with the nearest of the known words and all of them.

    >>> print(unknown("head", "lihgt", ["deeplabv3", "light"]))
    unknown head 'lihgt'; did you mean 'light'? (known: deeplabv3, light)
    """
    names = list(known)
    listed = ", ".join(names) or "none"
    return UsageError(f"unknown {what} '{word}'{nearest(word, names)} (known: {listed})")


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """`; did you mean 'x'?` for the nearest known word, or an empty string.

    Args:
        word: What was written.
        known: What could have been meant.
        cutoff: Similarity in [0, 1] that the nearest must have at least.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


class DataError(GatesearchError):
    """Data missing, damaged or not as the study expects it."""

    code = 3


class StudyRefusedError(GatesearchError):
    """The store belongs to another definition, or another process holds it."""

    code = 4
