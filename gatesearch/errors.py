"""Errors that a user can cure, each with the exit code of the command line.

A message states the rule, the value found, and the cure.
"""

import difflib
import os
import shlex
from collections.abc import Iterable


class GatesearchError(Exception):
    """An error that the user can cure; the command line prints it and exits with `code`."""

    code = 1


class UsageError(GatesearchError):
    """Wrong use or definition: an unknown study, key, method or value."""

    code = 2


def shell_command(*words: str) -> str:
    r"""Spell a command for messages: it works as it stands in a shell, whatever its words hold.

    A word with a character that no terminal shows is written in the form of bash and zsh that has
    escapes, so that the command stays on one line.

    >>> print(shell_command("gatesearch", "report", "--study", "my study.toml"))
    gatesearch report --study 'my study.toml'
    >>> print(shell_command("cd", "it's\ntwo\x1b lines"))
    cd $'it\'s\x0atwo\x1b lines'
    """
    return " ".join(shlex.quote(word) if word.isprintable() else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    return f"$'{''.join(map(_escape, word))}'"


def _escape(character: str) -> str:
    if not character.isprintable():
        return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
    return f"\\{character}" if character in "\\'" else character


def unknown(what: str, word: str, known: Iterable[str]) -> UsageError:
    """Make the error for an unknown word, which names the nearest known word and lists all.

    Args:
        what: Kind of word, as `head`.
        word: The word as the user wrote it.
        known: All known words.

    >>> print(unknown("head", "lihgt", ["deeplabv3", "light"]))
    unknown head 'lihgt'; did you mean 'light'? (known: deeplabv3, light)
    """
    names = list(known)
    listed = ", ".join(names) or "none"
    return UsageError(f"unknown {what} '{word}'{nearest(word, names)} (known: {listed})")


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return `; did you mean 'x'?` with the nearest known word; empty if none is near.

    Args:
        word: The word as the user wrote it.
        known: All known words.
        cutoff: Minimum similarity of the nearest word, in [0, 1].
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


def one_line(error: BaseException) -> str:
    """Shorten the message of another library's error to one line of at most 200 characters.

    Returns:
        The message, or the name of the error's type where it has none.

    >>> one_line(ValueError("cut  short "))
    'cut short'
    >>> one_line(EOFError())
    'EOFError'
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type where it has none.

    >>> first_line(RuntimeError())
    'RuntimeError'
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


class DataError(GatesearchError):
    """Data are missing, damaged or not as the study expects, or a file cannot be written."""

    code = 3


class StudyRefusedError(GatesearchError):
    """The store belongs to another definition, is damaged, or is held by another process."""

    code = 4
