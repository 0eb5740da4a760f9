"""Validate the values of tables, and explain errors in terms of their keys."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from gatesearch.errors import UsageError, nearest


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of tables; values of `over` replace those of `base`."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


def validated(model: type[BaseModel], raw: Mapping[str, Any], *, where: str) -> Any:
    """Validate values by a pydantic model.

    Args:
        model: Type of the table.
        raw: Key -> value.
        where: Place of the table, which the error states first.

    Returns:
        The instance of `model`.

    Raises:
        UsageError: Unknown or missing keys, or bad values; a line for each.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise refused(model, error, where=where) from error


def refused(model: type[BaseModel], error: ValidationError, *, where: str) -> UsageError:
    """Make the error that explains why values were refused; as for `validated`."""
    lines = [_explain(model, item) for item in error.errors()]
    return UsageError(f"{where}:\n  " + "\n  ".join(lines))


def _explain(model: type[BaseModel], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{nearest(path[-1], _keys_at(model, path[:-1]))}"
    if item["type"] == "missing":
        return f"missing key '{dotted}'"
    if item["type"] == "value_error":
        return f"{dotted}: {item['ctx']['error']}".removeprefix(": ")  # of the whole table
    return f"{dotted}: {item['msg']}, found {item['input']!r}"


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *_arguments(field.annotation)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            model = models[0]
        elif field is not None:
            return []
    return list(model.model_fields)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ()))
