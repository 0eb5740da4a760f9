"""A store opened to be written or read: checked against the study, its version, its definition."""

import contextlib
import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage

from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.store import names
from gatesearch.store.backup import DATABASE, damaged
from gatesearch.store.database import (
    check_server,
    close_database,
    damaged_on_server,
    explained,
    open_database,
)
from gatesearch.store.integrity import is_sealed
from gatesearch.store.optuna_trials import GAIN_AND_COST, name_metrics
from gatesearch.store.server import shown
from gatesearch.store.store import Store
from gatesearch.store.tidy import exists
from gatesearch.store.upgrade import upgrade, upgrade_alone
from gatesearch.study import Study, differences


def open_store(
    study: Study,
    *,
    folder: Path,
    tasks: tuple[TaskInfo, ...],
    storage: str = "",
    complete: Callable[[Study], Study] = lambda stored: stored,
    binding: Callable[[Sequence[str], Sequence[str]], Sequence[str]] = lambda given, held: given,
) -> Store:
    """Open a study's store, or make it.

    Args:
        study: The definition.
        folder: The store's folder. It holds the files of all jobs, and `study.db` where the
            database is not on a server.
        tasks: Descriptions of the tasks for reports; written into a new store.
        storage: `postgresql://...` of a server; empty for SQLite in the folder.
        complete: Validates a stored definition as `study` was validated, so that the two can be
            compared.
        binding: (methods whose options differ, methods with results) -> those of the former whose
            options the results depend on.

    Raises:
        StudyRefusedError: Results of the store were made with another definition (the error names
            the differences), or it is damaged. It is not changed.
        DataError: The folder cannot be written, or the server cannot be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with explained(folder, storage):
            if not storage:
                upgrade(folder)
            opened = open_database(folder, storage)
            # Unless the store is returned: then the caller closes it.
            stack.callback(close_database, opened)
            held = "" if storage else _main_study(opened)
            if held and held != study.name:
                raise StudyRefusedError(
                    f"{folder} must hold study '{study.name}', found '{held}', whose networks lie "
                    "in the same folders; name another folder with --out"
                )
            handle = optuna.create_study(
                study_name=study.name,
                storage=opened,
                directions=list(GAIN_AND_COST),
                load_if_exists=True,
            )
            store = Store(folder, handle, opened)
            _check_version(store, folder, storage)
            stored = store.attribute(names.DEFINITION)
            if stored is None:
                name_metrics(handle)
                store.keep("name", study.name)
                store.keep(names.IDENTITY, uuid.uuid4().hex)
                store.keep("tasks", [vars(task) for task in tasks])
                store.keep(names.FORMAT, names.VERSION)
                store.keep_definition(study)
        if store.attribute(names.FINGERPRINT) != study.fingerprint:
            lines = _binding_differences(study, stored, store, complete, binding)
            if not lines:
                store.keep_definition(study)
            elif store.methods() or store.numbers:
                raise _other_definition(study, store, lines)
            else:
                begin_anew(store, study, tasks)
        stack.pop_all()
    return store


def _other_definition(study: Study, store: Store, lines: Sequence[str]) -> StudyRefusedError:
    return StudyRefusedError(
        f"{store.folder} was made with another definition (fingerprint "
        f"{store.attribute(names.FINGERPRINT)}, now {study.fingerprint}); results would not be "
        "comparable. What differs (store -> now):\n  "
        + "\n  ".join(lines)
        + "\nName another folder with --out, where --reuse with this one takes over baselines "
        "that would be trained the same; or go back to the old definition."
    )


def begin_anew(store: Store, study: Study, tasks: tuple[TaskInfo, ...]) -> None:
    """Give a store without any result a new definition.

    Trainings that were begun under the old one are moved aside, not removed: a checkpoint can hold
    hours of work. What was chosen with the old definition, data and runtime, is chosen anew.
    """
    aside = store.folder / f"unfinished-{store.attribute(names.FINGERPRINT)}"
    for name in names.JOB_FOLDERS:
        begun = store.folder / name
        if begun.is_dir():
            aside.mkdir(exist_ok=True)
            begun.rename(_free_name(aside / name))
    store.keep("tasks", [vars(task) for task in tasks])
    store.keep("data", {})
    store.keep("runtime", {})
    store.keep_definition(study)


def _free_name(path: Path) -> Path:
    """Return the path, or if it is taken the first of `PATH-2`, `PATH-3`, ... that is not."""
    paths = itertools.chain(
        [path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    )
    return next(candidate for candidate in paths if not candidate.exists())


def _binding_differences(
    study: Study,
    stored: Mapping[str, Any],
    store: Store,
    complete: Callable[[Study], Study],
    binding: Callable[[Sequence[str], Sequence[str]], Sequence[str]],
) -> list[str]:
    """List the differences to the stored definition that the store's results depend on."""
    try:
        completed = complete(Study.from_definition(stored)).definition()
    except UsageError:  # Another version wrote keys or values that this one does not accept.
        completed = dict(stored)
    completed["results_version"] = stored.get("results_version")
    lines = differences(study.definition(), completed)
    changed = sorted({line.split(".")[1] for line in lines if line.startswith("options.")})
    bound = binding(changed, sorted(store.methods()))
    return [
        line for line in lines if not line.startswith("options.") or line.split(".")[1] in bound
    ]


def _check_version(store: Store, folder: Path, storage: str) -> None:
    """Refuse a store of another format.

    Raises:
        StudyRefusedError: Another version of gatesearch wrote it.
    """
    attributes = store.handle.user_attrs
    stored = attributes.get(names.FORMAT)
    version = stored["value"] if stored is not None and is_sealed(stored) else stored
    if version != names.VERSION and names.DEFINITION in attributes:
        raise StudyRefusedError(
            f"{shown(storage) if storage else folder} was written by another version of gatesearch "
            f"(store format {version or 1}, this version reads {names.VERSION}); go on with that "
            "version, or name another " + ("--storage" if storage else "--out")
        )
    if storage:
        check_server(store.storage, store.handle.study_name, storage)


def read_store(folder: Path, *, storage: str = "", name: str = "") -> StudyRecord:
    """Read everything in a store, for reports.

    Args:
        folder: The store's folder. A store of gatesearch 0.1.0 is first converted to this version's
            format.
        storage: `postgresql://...` of a server; empty for SQLite in the folder.
        name: Name of the study, where a server holds several.

    Raises:
        UsageError: There is no store in that folder.
        StudyRefusedError: The database is damaged, or no run finished setting it up.
    """
    if not storage and not exists(folder / DATABASE):
        raise UsageError(f"no store in {folder}; run the study first, or name another with --out")
    with explained(folder, storage), contextlib.ExitStack() as stack:
        if not storage:
            upgrade_alone(folder)
        try:
            opened = open_database(folder, storage)
            stack.callback(close_database, opened)
            handle = optuna.load_study(study_name=name or _main_study(opened), storage=opened)
            store = Store(folder, handle, opened)
            _check_version(store, folder, storage)
            return store.record()
        except KeyError as error:
            raise StudyRefusedError(
                f"{shown(storage) if storage else folder / DATABASE} holds no finished set-up of a "
                f"study ({error} is missing); run the study again, or name another "
                + ("--storage" if storage else "--out")
            ) from error
        except (ValueError, TypeError, AssertionError) as error:
            # What no checksum covers, such as times, keeps Optuna from reading its tables.
            if storage:
                raise damaged_on_server(storage, str(error)) from error
            raise damaged(folder / DATABASE, str(error)) from error


def _main_study(storage: RDBStorage) -> str:
    """Name of the Optuna study with a store's attributes; empty where there is none."""
    # Names of studies have no spaces, those of their searches do.
    return next((n for n in optuna.get_all_study_names(storage) if " " not in n), "")
