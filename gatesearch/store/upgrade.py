"""Convert a store of gatesearch 0.1.0 to the format of this version.

The converted database is written beside the old one and then replaces it; the old one is kept as
`study.db.0.1.0`, which this version never changes. Unfinished trainings begin anew, because this
version cannot read their checkpoints. Finished networks are not changed, only moved.

| 0.1.0 | this version |
|---|---|
| trials without a budget in the main Optuna study, others beside it | one per method and budget |
| searches `BUDGET`, `one-shot BUDGET` | `METHOD BUDGET`, `one_shot BUDGET` |
| `warmup/SEED`, `supernet_warmup/SEED`, `supernet/SEED` | `start/METHOD/PART/SEED` |
| folders `warmups/`, `supernet_warmups/`, `supernets/` | `starts/METHOD-PART-seedN` |
| results of format 4 | format 5 (`Result.from_json`) |
| tasks without kind and drawing | with both |
"""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from gatesearch.results import Result
from gatesearch.store import names
from gatesearch.store.backup import DATABASE, read_attributes
from gatesearch.study import Study

# Raised by 1 whenever the format of a store changes.
VERSION = 2
OLD_COPY = f"{DATABASE}.0.1.0"

_STARTS = ("warmup", "supernet_warmup", "supernet")
_ONE_SHOT = "one-shot"
_DRAWINGS = {
    "semseg": "classes",
    "depth": "range",
    "normals": "directions",
    "edges": "certainty",
    "saliency": "certainty",
}
# Files that an unfinished training has left in its folder.
_UNFINISHED = (
    "spec.json", "attempts.json", "result.json", "events.jsonl", "checkpoint-*.safetensors"
)  # fmt: skip


def main_study(storage: RDBStorage) -> str:
    """Find the name of the Optuna study that holds a store's attributes; empty without one."""
    # Names of studies have no spaces; those of their searches have.
    return next((n for n in optuna.get_all_study_names(storage) if " " not in n), "")


def upgradable(folder: Path) -> bool:
    """Tell whether a folder holds a store of gatesearch 0.1.0."""
    path = folder / DATABASE
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        attributes = read_attributes(path)
    except (sqlite3.DatabaseError, ValueError):  # Damaged; `open_database` will refuse it.
        return False
    return names.DEFINITION in attributes and names.FORMAT not in attributes


def upgrade(folder: Path) -> None:
    """Convert a store of gatesearch 0.1.0 to this version's format; leave any other as it is.

    Args:
        folder: The store's folder; the caller holds its lock.
    """
    if not upgradable(folder):
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / DATABASE
    converted = folder / f".{DATABASE}.upgrade"
    converted.unlink(missing_ok=True)
    with _storage(path) as old, _storage(converted) as new:
        attributes = _copy(old, new, folder)
    for result in _starts(attributes):
        kind = next(k for k in _STARTS if _is_old_start(result, k))
        source = folder / f"{kind}s" / f"seed{result.seed}"
        target = folder / "starts" / f"{result.method}-{result.part}-seed{result.seed}"
        if source.is_dir():
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
            with contextlib.suppress(OSError):  # It still holds the network of another seed.
                source.parent.rmdir()
    copy = folder / OLD_COPY
    if not copy.exists():
        shutil.copyfile(path, copy)
    converted.replace(path)


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[RDBStorage]:
    import sqlalchemy

    storage = RDBStorage(
        sqlalchemy.URL.create("sqlite", database=str(path.absolute())).render_as_string()
    )
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _copy(old: RDBStorage, new: RDBStorage, folder: Path) -> Mapping[str, Any]:
    """Write everything into the new database; return the attributes of the old store."""
    main = main_study(old)
    studies = {name: optuna.load_study(study_name=name, storage=old) for name in
               sorted(optuna.get_all_study_names(old))}  # fmt: skip
    attributes = studies[main].user_attrs
    searches = {name.removeprefix(main).strip(): study for name, study in studies.items()}
    for name, study in searches.items():
        method = _searched_method(study, folder)
        for kind in (names.PATTERNS, "scalar"):
            if name.startswith(f"{kind} "):
                method = kind
        if method:
            _copy_search(study, new, f"{main} {_new_name(name, method)}", folder)
    target = optuna.create_study(study_name=main, storage=new, directions=studies[main].directions)
    for key, value in attributes.items():
        if key.split("/")[0] in (names.BASELINE, *_STARTS):
            result = Result.from_json(value)
            target.set_user_attr(names.result_key(result), result.to_json())
        elif key == names.DEFINITION:
            target.set_user_attr(key, Study.from_definition(value).definition())
        elif key == "tasks":
            kinds = {n: task["kind"] for n, task in attributes[names.DEFINITION]["tasks"].items()}
            target.set_user_attr(key, [_with_kind(task, kinds[task["name"]]) for task in value])
        else:
            target.set_user_attr(key, value)
    target.set_user_attr(names.FORMAT, VERSION)
    return attributes


def _copy_search(study: optuna.Study, new: RDBStorage, name: str, folder: Path) -> None:
    trials = []
    for trial in study.get_trials(deepcopy=False):
        attrs = dict(trial.user_attrs)
        if "result" in attrs:
            attrs["result"] = Result.from_json(attrs["result"]).to_json()
        elif "trial" in attrs:
            _remove_unfinished(folder / "trials" / f"{attrs['trial']:04d}")
        trials.append(
            create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=attrs,
                system_attrs=trial.system_attrs,
            )
        )
    copy = optuna.create_study(study_name=name, storage=new, directions=study.directions)
    copy.add_trials(trials)


def _remove_unfinished(folder: Path) -> None:
    for pattern in _UNFINISHED:
        for path in folder.glob(pattern):
            path.unlink()


def _searched_method(study: optuna.Study, folder: Path) -> str:
    """Find the method that an old search tuned, in a result or a specification of its trials."""
    for trial in study.get_trials(deepcopy=False):
        if "result" in trial.user_attrs:
            return Result.from_json(trial.user_attrs["result"]).method
        if trial.state == TrialState.RUNNING and "trial" in trial.user_attrs:
            method = _specified_method(trial, folder)
            if method:
                return method
    return ""


def _specified_method(trial: FrozenTrial, folder: Path) -> str:
    path = folder / "trials" / f"{trial.user_attrs['trial']:04d}" / "spec.json"
    try:
        candidate = json.loads(path.read_bytes())["candidate"]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "one_shot" if candidate.get("one_shot") else str(candidate.get("method", ""))


def _new_name(name: str, method: str) -> str:
    """Name an old search as the new store does."""
    if name.startswith(f"{names.PATTERNS} "):
        return name.replace(names.PATTERNS, f"{names.PATTERNS} one_shot", 1)
    if names.searches_weights(name):
        return name
    budget = name.removeprefix(_ONE_SHOT).strip()
    return names.search_name("one_shot" if name.startswith(_ONE_SHOT) else method, budget)


def _starts(attributes: Mapping[str, Any]) -> list[Result]:
    return [Result.from_json(v) for key, v in attributes.items() if key.split("/")[0] in _STARTS]


def _is_old_start(result: Result, kind: str) -> bool:
    """Tell whether 0.1.0 kept this start network in a folder of that kind."""
    if kind == "supernet":
        return result.part == "supernet"
    return result.part != "supernet" and kind.startswith("supernet") == (
        result.method == "one_shot"
    )


def _with_kind(task: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {**task, "kind": kind, "drawing": _DRAWINGS[kind]}
