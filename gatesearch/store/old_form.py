"""Convert values that gatesearch 0.1.0 wrote to this version's form: pure functions of JSON values.

| 0.1.0 | now |
|---|---|
| searches named `BUDGET` (empty for none), `one-shot BUDGET` | `METHOD BUDGET`, `one_shot BUDGET` |
| attributes `warmup/SEED`, `supernet_warmup/SEED`, `supernet/SEED` | `start/METHOD/PART/SEED` |
| results of format 4 | format 7 (`Result.from_json`) |
| `spec.json` with `candidate` and `stl` | with `spec` and `single_task` |
| tasks without kind and drawing | with both |
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gatesearch.results import Result
from gatesearch.results.older_formats import PARTS_OF_ROLES
from gatesearch.store import names
from gatesearch.study import Study

Json = dict[str, Any]

# First parts of the names of attributes that hold start networks; their folders have an `s` more.
STARTS = ("warmup", "supernet_warmup", "supernet")

_ONE_SHOT, _ONE_SHOT_METHOD = "one-shot", "one_shot"
_DRAWINGS = {
    "semseg": "classes",
    "depth": "range",
    "normals": "directions",
    "edges": "certainty",
    "saliency": "certainty",
}


def new_search_name(name: str, method: str) -> str:
    """Return the new name of a search for a method, or of the patterns of a supernet.

    >>> new_search_name("1.3xMTL", "mtan"), new_search_name("one-shot 9G", "one_shot")
    ('mtan 1.3xMTL', 'one_shot 9G')
    """
    if name.startswith(f"{names.PATTERNS} "):
        return name.replace(names.PATTERNS, f"{names.PATTERNS} {_ONE_SHOT_METHOD}", 1)
    if names.searches_weights(name):
        return name
    if _is_one_shot(name):
        return names.search_name(_ONE_SHOT_METHOD, name.removeprefix(_ONE_SHOT).strip())
    return names.search_name(method, name)


def new_attribute(key: str, value: Any, definition: Json) -> tuple[str, Any]:
    """Return the new name and value of an attribute of the main Optuna study.

    Args:
        key: The old name.
        value: The old value.
        definition: The old definition, with the kind of every task.

    Raises:
        StudyRefusedError: A result of another format.
        UsageError: A definition that no gatesearch 0.1.0 wrote.
        KeyError: A task of unknown kind, or a missing key.
    """
    if holds_result(key):
        result = Result.from_json(value)
        return names.result_key(result), result.to_json()
    if key == names.DEFINITION:
        return key, Study.from_definition(value).definition()
    if key == "tasks":
        kinds = {name: task["kind"] for name, task in definition["tasks"].items()}
        return key, [_with_kind(task, kinds[task["name"]]) for task in value]
    return key, value


def holds_result(key: str) -> bool:
    """Tell whether an attribute holds the result of a baseline or of a start network."""
    return key.split("/")[0] in (names.BASELINE, *STARTS)


def is_old_job(job: Mapping[str, Any]) -> bool:
    """Tell whether the contents of `spec.json` have the old form."""
    return "candidate" in job


def new_job(old: Mapping[str, Any]) -> Json:
    """Return the new contents of `spec.json`.

    Raises:
        StudyRefusedError: Its start is a result of another format.
        UsageError: A definition that no gatesearch 0.1.0 wrote.
        KeyError: A missing key.
    """
    candidate, search = old["candidate"], old["search"]
    spec = {key: value for key, value in candidate.items() if key not in ("role", "one_shot")}
    spec["part"] = PARTS_OF_ROLES[candidate["role"]]
    if candidate["one_shot"] or candidate["role"].startswith("supernet"):
        spec["method"] = _ONE_SHOT_METHOD
    is_trial = candidate["trial"] is not None
    kept = {key: value for key, value in old.items() if key not in ("candidate", "stl")}
    return {
        **kept,
        "definition": Study.from_definition(old["definition"]).definition(),
        "spec": spec,
        "start": old["start"] and Result.from_json(old["start"]).to_json(),
        "single_task": old["stl"],
        "search": new_search_name(search, spec["method"]) if is_trial else "",
        # Trials without a budget, and those cut from a supernet, differ in cost.
        "objectives": 2 if is_trial and (not search or _is_one_shot(search)) else 1,
    }


def new_job_result(kept: Mapping[str, Any], job: Mapping[str, Any]) -> Json:
    """Return the new contents of `result.json`, except their checksum.

    Args:
        kept: The old contents.
        job: The new contents of `spec.json`.

    Raises:
        StudyRefusedError: A result of another format.
        KeyError: There is none in it.
    """
    what = [job["store"], job["definition"], job["spec"]]
    identity = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return {"identity": identity, "result": Result.from_json(kept["result"]).to_json()}


def _is_one_shot(name: str) -> bool:
    return name.split(" ")[0] == _ONE_SHOT


def _with_kind(task: Json, kind: str) -> Json:
    return {**task, "kind": kind, "drawing": _DRAWINGS[kind]}
