"""The reference of commands, from the parser that the command line itself uses."""

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from .text import prose, table

# Bounds from here on only catch slips of the keyboard, and are not shown.
_CATCHES_SLIPS = 10**6


def commands() -> str:
    """Describe every command: what it does, its arguments, options and examples."""
    from gatesearch.cli import app

    return "\n\n".join(_command(path, command) for path, command in _walk("gatesearch", app))


def exit_codes() -> str:
    """Return the exit codes, which the package of the command line documents."""
    from gatesearch import cli

    doc = inspect.getdoc(cli) or ""
    return "\n".join(line for line in doc.splitlines() if line.startswith("|"))


def _walk(name: str, app: Any) -> Iterator[tuple[str, Any]]:
    """Walk through the commands, a group before what it holds."""
    yield from _walk_command(name, get_command(app))


def _walk_command(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, item in inner.items():
        yield from _walk_command(f"{path} {name}", item)


def _command(path: str, command: Any) -> str:
    taken = [item for item in command.params if item.name != "help"]
    arguments = [item for item in taken if item.param_type_name == "argument"]
    options = [item for item in taken if item.param_type_name == "option"]
    parts = [
        f"## {path.removeprefix('gatesearch ')}",
        f"```text\n{_usage(path, arguments, options)}\n```",
        prose(inspect.cleandoc(command.help or "")),
    ]
    if arguments:
        rows = [[f"`{_metavar(item)}`", prose(item.help or "")] for item in arguments]
        parts.append(table(["argument", "meaning"], rows))
    if options:
        rows = [[_spelled(item), _meaning(item), _default(item)] for item in options]
        parts.append(table(["option", "meaning", "default"], rows))
    if examples := _examples(command.epilog or ""):
        parts.append("```sh\n" + "\n".join(examples) + "\n```")
    return "\n\n".join(parts)


def _usage(path: str, arguments: list[Any], options: list[Any]) -> str:
    needed = [f"{item.opts[0]} {_metavar(item)}" for item in options if item.required]
    optional = ["[OPTIONS]"] if any(not item.required for item in options) else []
    words = [_metavar(item) if item.required else f"[{_metavar(item)}]" for item in arguments]
    return " ".join([path, *words, *needed, *optional])


def _metavar(item: Any) -> str:
    return str(item.metavar or item.name.upper())


def _spelled(item: Any) -> str:
    value = "" if item.is_flag else f" {_metavar(item)}"
    return f"`{', '.join(item.opts)}{value}`"


def _meaning(item: Any) -> str:
    low, high = item.min, item.max
    named = f" Environment: `{item.envvar}`." if item.envvar else ""
    bounds = "" if low is None else f" At least {low:g}."
    if low is not None and high is not None and high < _CATCHES_SLIPS:
        bounds = f" {low:g} to {high:g}."
    return prose(item.help or "") + bounds + named


def _default(item: Any) -> str:
    if item.required:
        return "required"
    if item.default in (None, "", (), []) or item.is_flag or callable(item.default):
        return ""
    return f"`{item.default}`"


def _examples(epilog: str) -> list[str]:
    lines = [line.strip().removeprefix("Example: ") for line in epilog.splitlines()]
    return [line for line in lines if line and line != "Examples:"]
