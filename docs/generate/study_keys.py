"""The reference of a study's keys: types, bounds and defaults from the schema, meanings from code.

Types and bounds are those of the JSON schema that pydantic derives from the classes which read a
study; meanings are the attributes that the docstrings of these classes list.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .text import attributes_of, table, text_of

_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true` or `false`",
    "null": "nothing",
    "object": "table",
}

# Tables of the package -> the section of names.md that lists what they hold.
_LISTS = {
    "BACKBONES": "backbones",
    "DATASETS": "data sets",
    "HEADS": "heads",
    "METHODS": "methods",
    "TASKS": "kinds of task",
    "WEIGHTINGS": "weightings",
}


def study_keys() -> str:
    """Describe every table of a study's file."""
    from gatesearch.study import Study

    return "\n\n".join(
        f"## {_heading(path)}\n\n{_linked(text_of(model))}\n\n{keys(model, path)}"
        for path, model in _tables(Study, "")
    )


def keys(model: type[BaseModel], path: str | None = None) -> str:
    """List the keys of one table.

    Args:
        model: The class that reads the table.
        path: Where the table is in a study, on the page that has a section for every table: keys
            that are tables then link to theirs. If None, they are followed by their own keys.
    """
    return table(["key", "type", "default", "meaning"], _rows(model, path, ""))


def _rows(model: type[BaseModel], path: str | None, prefix: str) -> Iterator[list[str]]:
    schema = model.model_json_schema()
    meanings = attributes_of(model)
    required = schema.get("required", [])
    for name, entry in schema.get("properties", {}).items():
        field = model.model_fields[name]
        inner = next(iter(_models_of(field)), None)
        linked = inner is not None and path is not None
        yield [
            f"`{prefix}{name}`",
            _link(_path_of(path or "", name, field))
            if linked
            else kind_of_value(entry, schema.get("$defs", {})),
            "required" if name in required else _default(entry),
            _linked(meanings.get(name) or (text_of(inner) if inner else "")),
        ]
        if inner is not None and not linked:
            yield from _rows(inner, path, f"{prefix}{name}.")


def kind_of_value(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    """Say in words what values an entry of a JSON schema allows.

    >>> kind_of_value({"type": "integer", "minimum": 1, "maximum": 255}, {})
    'whole number, 1 to 255'
    >>> kind_of_value({"type": "number", "exclusiveMinimum": 0}, {})
    'number > 0'
    >>> kind_of_value({"type": "array", "items": {"type": "string"}}, {})
    'list of text'
    >>> kind_of_value({"enum": ["nchw", "nhwc"]}, {})
    '`nchw`, `nhwc`'
    """
    if "$ref" in entry:
        return kind_of_value(definitions[entry["$ref"].rpartition("/")[2]], definitions)
    if "allOf" in entry:
        return kind_of_value(entry["allOf"][0], definitions)
    if "anyOf" in entry or "oneOf" in entry:
        variants = entry.get("anyOf") or entry["oneOf"]
        words = [kind_of_value(variant, definitions) for variant in variants]
        return " or ".join(dict.fromkeys(word for word in words if word != _WORDS["null"]))
    if "enum" in entry or "const" in entry:
        return ", ".join(f"`{value}`" if value != "" else "empty" for value in _words_of(entry))
    if entry.get("type") == "array":
        return _list(entry, definitions)
    if entry.get("type") == "object":
        inner = entry.get("additionalProperties")
        if isinstance(inner, dict) and inner:
            return f"table (name → {kind_of_value(inner, definitions)})"
        return _WORDS["object"]
    return _WORDS.get(entry.get("type", ""), "any value") + _bounds(entry)


def _words_of(entry: dict[str, Any]) -> list[Any]:
    return entry["enum"] if "enum" in entry else [entry["const"]]


def _list(entry: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "prefixItems" in entry:
        words = [kind_of_value(item, definitions) for item in entry["prefixItems"]]
        return f"list of {len(words)}: " + "; ".join(dict.fromkeys(words))
    least = f", at least {entry['minItems']}" if "minItems" in entry else ""
    return f"list of {kind_of_value(entry.get('items', {}), definitions)}{least}"


def _bounds(entry: dict[str, Any]) -> str:
    low, high = entry.get("minimum"), entry.get("maximum")
    above, below = entry.get("exclusiveMinimum"), entry.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f", {_figure(low)} to {_figure(high)}"
    bounds = [(">", above), ("≥", low), ("<", below), ("≤", high)]
    shown = " and ".join(f"{sign} {_figure(bound)}" for sign, bound in bounds if bound is not None)
    return f" {shown}" if shown else ""


def _figure(value: float) -> str:
    """Write large bounds as powers: nobody reads 9223372036854775807.

    >>> _figure(255), _figure(2**63 - 1), _figure(10**9)
    ('255', '2⁶³ − 1', '10⁹')
    """
    if isinstance(value, float) and not value.is_integer():
        return f"{value:g}"
    whole = int(value)
    digits = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
    if whole == 2**63 - 1 or whole == -(2**63):
        return "2⁶³ − 1" if whole > 0 else "−2⁶³"
    if re.fullmatch(r"10{5,}", str(whole)):
        return "10" + str(len(str(whole)) - 1).translate(digits)
    return str(whole)


def _default(entry: dict[str, Any]) -> str:
    value = entry.get("default")
    if value is None:
        return "not given"
    if isinstance(value, dict):
        return "as in its table" if value else "empty"
    if value in ("", []):
        return "empty"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _tables(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Walk through the tables of a study, each with its path, such as `training.augment`."""
    yield path, model
    for name, field in model.model_fields.items():
        for inner in _models_of(field):
            yield from _tables(inner, _path_of(path, name, field))


def _path_of(path: str, name: str, field: FieldInfo) -> str:
    """Return the path of a field's tables; those of a dictionary have names of their own."""
    keyed = "dict" in str(field.annotation)
    return ".".join(filter(None, [path, name, "NAME" if keyed else ""]))


def _link(path: str) -> str:
    """Link the section of a table, by the anchor that mkdocs gives its heading."""
    named = "name → " if path.endswith(".NAME") else ""
    return f"{named}[table](#{path.replace('.', '').lower()})"


def _linked(text: str) -> str:
    """Link tables of the package, such as `gatesearch.tasks.TASKS`, to what they hold."""
    named = "|".join(_LISTS)
    return re.sub(
        rf"`(?:gatesearch\.[\w.]+\.)?({named})`",
        lambda name: (
            f"the list of [{_LISTS[name[1]]}](names.md#{_LISTS[name[1]].replace(' ', '-')})"
        ),
        text,
    )


def _models_of(field: FieldInfo) -> list[type[BaseModel]]:
    """Find the classes of tables inside a field's type, such as `dict[str, TaskSpec]`."""
    found: list[type[BaseModel]] = []
    left: list[Any] = [field.annotation]
    while left:
        item = left.pop()
        if isinstance(item, type) and issubclass(item, BaseModel) and item not in found:
            found.append(item)
        left += get_args(item)
    return found


def _heading(path: str) -> str:
    return f"`[{path}]`" if path else "Top of the file"
