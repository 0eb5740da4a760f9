"""Stored results of older formats: pure functions of their JSON values."""

import json
from collections.abc import Mapping
from typing import Any

from gatesearch.errors import StudyRefusedError

# Format -> what later formats added to it; format 4 has other keys (`from_format_4`).
LATER = {8: {"task_gflops"}}
LATER[7] = {*LATER[8], "control", "of", "width", "gates"}
LATER[6] = {*LATER[7], "details"}

# `role` of a format-4 record -> `part` of a format-6 one.
PARTS_OF_ROLES = {
    "network": "", "warmup": "warm-up", "supernet_warmup": "warm-up", "supernet": "supernet",
}  # fmt: skip


def from_format_4(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the JSON of a format-4 record to format 6, which has no further figures.

    Format 4 called the state of a stopped trial `pruned`, had `role` instead of `part`, and gave
    results of the method `one_shot` the name of the method that it is built on.

    Raises:
        StudyRefusedError: The role is missing or unknown.
    """
    values: dict[str, Any] = {**stored, "files": {}}
    role, params = values.pop("role", None), values.get("params")
    if not isinstance(role, str) or role not in PARTS_OF_ROLES:
        raise StudyRefusedError(
            f"a stored result of format 4 must have a role of {', '.join(PARTS_OF_ROLES)}, found "
            f"{role!r}; the store is damaged: start a new --out folder"
        )
    values["part"] = PARTS_OF_ROLES[role]
    if values.get("state") == "pruned":
        values["state"] = "stopped"
    named = params if isinstance(params, Mapping) else {}
    if role.startswith("supernet") or any(name.startswith("share.") for name in named):
        values["method"] = "one_shot"
    return values


def of_older_format(text: str) -> dict[str, Any] | None:
    """Parse the text of a record if it is of an older format; None for anything else."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) and stored.get("format") in LATER else None
