"""Read studies from files: built-in ones, and those of users."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError, unknown
from gatesearch.study.definition import Study
from gatesearch.study.validation import merged, validated


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
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    presets = raw.pop("presets", {})
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set takes key=value, found '{item}'")
        if key.strip() == "preset":
            if text not in presets:
                raise unknown("preset", text, presets)
            raw = merged(raw, presets[text])
        else:
            raw = merged(raw, _nested(key.strip().split("."), _value(text)))
    study: Study = validated(Study, raw, where=str(path))
    for method in study.options:
        study.training_of(method)  # refuses bad values
    return study


def _find(name_or_path: str | Path) -> Path:
    builtin = builtin_studies()
    if str(name_or_path) in builtin:
        return builtin[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"no study file {path}")
        return path
    hint = unknown("study", str(name_or_path), builtin)
    raise UsageError(f"{hint}; a file of your own must end in .toml")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)
