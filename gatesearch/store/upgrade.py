"""Stores of gatesearch 0.1.0 are brought to the form of this version, once.

The database is written anew beside the old one, and takes its place whole; the old one stays as a
backup that this version does not touch. Trainings that were cut off begin anew, since what they
would go on from was described in another way. Finished networks are not touched.

What 0.1.0 had in another way:

| 0.1.0 | now |
|---|---|
| free trials in the main Optuna study, budgets' beside it | a study per method and budget |
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

# Raised whenever the form of a store changes.
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
# What a training that was cut off has left in its folder.
_IN_WORK = ("spec.json", "attempts.json", "result.json", "events.jsonl", "checkpoint-*.safetensors")


def main_study(storage: RDBStorage) -> str:
    """Name of the Optuna study that holds a store's attributes; empty where there is none."""
    # Names of studies have no spaces, those of their searches do.
    return next((n for n in optuna.get_all_study_names(storage) if " " not in n), "")


def upgradable(folder: Path) -> bool:
    """Whether a folder holds a store of gatesearch 0.1.0."""
    path = folder / DATABASE
    if not path.is_file() or path.stat().st_size == 0:
        return False
    try:
        attributes = read_attributes(path)
    except (sqlite3.DatabaseError, ValueError):  # damaged, which whoever opens it will say
        return False
    return names.DEFINITION in attributes and names.FORMAT not in attributes


def upgrade(folder: Path) -> None:
    """Bring a store of gatesearch 0.1.0 to the form of this version; any other stays as it is.

    Args:
        folder: The store's, which this process holds.
    """
    if not upgradable(folder):
        return
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = folder / DATABASE
    aside = folder / f".{DATABASE}.upgrade"
    aside.unlink(missing_ok=True)
    with _storage(path) as old, _storage(aside) as new:
        attributes = _copy(old, new, folder)
    for result in _starts(attributes):
        kind = next(k for k in _STARTS if _is_old_start(result, k))
        source = folder / f"{kind}s" / f"seed{result.seed}"
        target = folder / "starts" / f"{result.method}-{result.part}-seed{result.seed}"
        if source.is_dir():
            target.parent.mkdir(exist_ok=True)
            source.replace(target)
            with contextlib.suppress(OSError):  # another seed's is still in it
                source.parent.rmdir()
    copy = folder / OLD_COPY
    if not copy.exists():
        shutil.copyfile(path, copy)
    aside.replace(path)


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
    """Write everything into the new database; gives the old store's attributes."""
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
            _forget_work(folder / "trials" / f"{attrs['trial']:04d}")
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


def _forget_work(folder: Path) -> None:
    for pattern in _IN_WORK:
        for path in folder.glob(pattern):
            path.unlink()


def _searched_method(study: optuna.Study, folder: Path) -> str:
    """The method whose trials an old search holds, from a result or a specification."""
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
    """Name of an old search in the new store."""
    if name.startswith(f"{names.PATTERNS} "):
        return name.replace(names.PATTERNS, f"{names.PATTERNS} one_shot", 1)
    if names.searches_weights(name):
        return name
    budget = name.removeprefix(_ONE_SHOT).strip()
    return names.search_name("one_shot" if name.startswith(_ONE_SHOT) else method, budget)


def _starts(attributes: Mapping[str, Any]) -> list[Result]:
    return [Result.from_json(v) for key, v in attributes.items() if key.split("/")[0] in _STARTS]


def _is_old_start(result: Result, kind: str) -> bool:
    """Whether 0.1.0 kept what trials start from in a folder of that kind."""
    if kind == "supernet":
        return result.part == "supernet"
    return result.part != "supernet" and kind.startswith("supernet") == (
        result.method == "one_shot"
    )


def _with_kind(task: Mapping[str, Any], kind: str) -> dict[str, Any]:
    return {**task, "kind": kind, "drawing": _DRAWINGS[kind]}
