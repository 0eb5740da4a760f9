"""Read studies from files: built-in ones, and those of users."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError, unknown
from gatesearch.files import FileRefusedError, read_bytes
from gatesearch.study.definition import Study
from gatesearch.study.validation import merged, validated

# Bytes; built-in studies have some thousands.
_LARGEST_STUDY = 2**17
# tomllib takes memory and time that grow with the square of the parts of a key, `a.b.c`, which lies
# on one line.
_MOST_DOTS = 1000
# Larger whole numbers can be written in hexadecimal, but Python cannot print them in an error.
_LARGEST_INTEGER = 10**100
# Levels of tables and lists; the built-in studies have up to 4.
_DEEPEST = 20
_SHOWN = 100  # characters


def studies_folder() -> Path:
    """Find the folder of the built-in studies: inside the wheel, or `studies/` of a checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "builtin_studies"
    return packaged if packaged.is_dir() else package.parent / "studies"


def builtin_studies() -> dict[str, Path]:
    """List the built-in studies, name -> file."""
    return {path.stem: path for path in sorted(studies_folder().glob("*.toml"))}


def load_study(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study.

    Args:
        name_or_path: A built-in study's name, or a TOML file.
        overrides: Items `a.b=value`, with values written as in TOML (a bare word is a string), that
            replace values of the file, in order. `preset=NAME` replaces those in the file's table
            `[presets.NAME]`.

    Raises:
        UsageError: Unknown study, unknown key (the error names the nearest known one), or a bad
            value. Options of methods are checked later, by `gatesearch.methods.check_study`.
    """
    path = _find(name_or_path)
    try:
        text = read_bytes(Path(os.path.realpath(path)), limit=_LARGEST_STUDY).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except FileRefusedError as error:
        raise UsageError(f"{path} {error.fault}") from error
    raw = _parse(text, where=str(path))
    presets = raw.pop("presets", {})
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set takes key=value, found '{_shortened(item)}'")
        if key.strip() == "preset":
            raw = merged(raw, _preset(presets, text))
        else:
            raw = merged(raw, _nested(key.strip(), _value(text, item)))
    study: Study = validated(Study, raw, where=str(path))
    for method in study.options:
        study.training_of(method)  # refuses bad values
    return study.placed(path.absolute().parent)


def _find(name_or_path: str | Path) -> Path:
    builtin = builtin_studies()
    if str(name_or_path) in builtin:
        return builtin[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not os.path.exists(path):
            raise UsageError(f"no study file {path}")
        return path
    hint = unknown("study", str(name_or_path), builtin)
    raise UsageError(f"{hint}; a file of your own must end in .toml")


def _parse(text: str, *, where: str) -> dict[str, Any]:
    """Parse TOML within bounds of depth.

    Raises:
        UsageError: It is no TOML, is nested deeper than any study, or has huge numbers.
    """
    try:
        raw = _loads(text)
    except ValueError as error:  # also of integers with thousands of digits
        raise UsageError(f"{where} is not valid TOML: {_shortened(str(error))}") from error
    if raw is None:
        raise UsageError(
            f"{where}: tables and lists may be nested {_DEEPEST} deep, found more; write it flatter"
        )
    return raw


def _loads(text: str) -> dict[str, Any] | None:
    """Parse TOML within bounds of time and memory.

    Returns:
        Its values; None if it is nested deeper than any study.

    Raises:
        ValueError: It is no TOML, or holds a huge whole number.
    """
    if max(line.count(".") for line in text.split("\n")) > _MOST_DOTS:
        return None
    try:
        raw = tomllib.loads(text)
    except RecursionError:
        return None
    level: list[object] = [raw]
    for _ in range(_DEEPEST + 1):
        if any(isinstance(v, int) and abs(v) >= _LARGEST_INTEGER for v in level):
            raise ValueError("whole numbers must be below 1e100 in size, found a larger one")
        nested = [v for v in level if isinstance(v, dict | list)]
        level = [v for part in nested for v in (part.values() if isinstance(part, dict) else part)]
    return None if level else raw


def _preset(presets: object, name: str) -> dict[str, Any]:
    known = presets if isinstance(presets, dict) else {}
    if name not in known:
        raise unknown("preset", _shortened(name), known)
    preset = known[name]
    if not isinstance(preset, dict):
        raise UsageError(f"preset '{name}' must be a table, found {_shortened(repr(preset))}")
    return preset


def _value(text: str, item: str) -> Any:
    """Read a value as in TOML; text that is no TOML value is a string, as a bare word."""
    try:
        parsed = _loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text.strip()
    except ValueError as error:
        raise UsageError(
            f"--set takes whole numbers below 1e100 in size, found '{_shortened(item)}'"
        ) from error
    if parsed is None or set(parsed) != {"value"}:
        raise UsageError(
            f"--set takes one value, nested {_DEEPEST} deep at most, found '{_shortened(item)}'"
        )
    return parsed["value"]


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    keys = dotted.split(".")
    if len(keys) > _DEEPEST:
        raise UsageError(
            f"--set takes a key of {_DEEPEST} parts at most, found '{_shortened(dotted)}'"
        )
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _shortened(text: str) -> str:
    """Shorten text for an error, to one line."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
