"""Options that several commands share."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.errors import DataError, UsageError, unknown

if TYPE_CHECKING:
    from gatesearch.results import StudyRecord
    from gatesearch.study import Study

StudyOption = Annotated[
    str,
    typer.Option("--study", metavar="NAME|FILE", help="A built-in study, or a TOML file."),
]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="The study's store. Default: runs/STUDY."),
]
StorageOption = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="postgresql://... of a server that keeps the store. Default: SQLite in --out.",
    ),
]
ReportsOption = Annotated[
    Path, typer.Option("--reports", metavar="DIR", help="Where the report goes.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the definition, as training.epochs=20 or preset=quick. Repeatable.",
    ),
]
PreferOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prefer",
        metavar="TASK=WEIGHT",
        help="How much a task's gain matters, as depth=2; 1 by default. Repeatable.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")
]


def names(items: Iterable[str], option: str) -> tuple[str, ...]:
    """Split the values of an option into names, which are separated by commas or repeated options.

    Args:
        items: Values of the option.
        option: The option's name for the error.

    Returns:
        Each name once, in order.

    Raises:
        UsageError: A name is empty.

    >>> names(["stl,mtl", "mtan"], "--method")
    ('stl', 'mtl', 'mtan')
    """
    split = [name.strip() for item in items for name in item.split(",")]
    if not all(split):
        raise UsageError(f"{option} takes names with commas between them, found an empty name")
    return tuple(dict.fromkeys(split))


def preferences(items: Iterable[str] | None, tasks: Iterable[str]) -> dict[str, float]:
    """Read the values of `--prefer`, such as `depth=2`, separated by commas or repeated.

    Args:
        items: Values of the option; None without it.
        tasks: Names of the study's tasks.

    Returns:
        Task -> weight.

    Raises:
        UsageError: A value of another form, an unknown task, or a weight that is not positive.

    >>> preferences(["depth=2,semseg=0.5"], ["semseg", "depth"])
    {'depth': 2.0, 'semseg': 0.5}
    """
    weights = {}
    for item in names(items, "--prefer") if items else ():
        task, _, text = item.partition("=")
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise UsageError(
                f"--prefer takes a task and a positive weight, such as depth=2; found '{item}'"
            )
        known = list(tasks)
        if task not in known:
            raise unknown("task", task, known)
        weights[task] = weight
    return weights


def check_reports(folder: Path) -> None:
    """Refuse a folder that no report can be written into, before hours of training.

    Raises:
        DataError: The folder, or the one in which it would be made, is no folder or cannot be
            written.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        fault = "is read-only" if existing.is_dir() else "is no folder"
        raise DataError(f"cannot write {folder}: {existing} {fault}; name another with --reports")


@contextmanager
def writing(reports: Path, command: str) -> Iterator[None]:
    """Turn errors of writing a report into one that names the command which writes it later.

    By then all results are in the store.

    Args:
        reports: Folder of the report.
        command: `gatesearch report` with the options that name the store.

    Raises:
        DataError: The report cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the report into {reports}: {error.strerror or error}; make room or name "
            f"another folder: {command} --reports DIR"
        ) from error


def record_of(study: str, out: Path | None, storage: str = "") -> "tuple[Path, StudyRecord]":
    """Find the folder of a study's store, and read everything in the store.

    Args:
        study: Value of `--study`.
        out: Value of `--out`; None for the default folder.
        storage: Value of `--storage`; empty for SQLite in the folder.

    Raises:
        UsageError: There is no store, or it is another study's.
    """
    from gatesearch.store.opening import read_store
    from gatesearch.study import load_study

    definition = load_study(study)
    store = store_of(definition, out)
    record = read_store(store, storage=storage, name=definition.name if storage else "")
    if record.name != definition.name:
        raise UsageError(
            f"{store} must hold study '{definition.name}', found '{record.name}'; "
            f"use --study {record.name} or another --out"
        )
    return store, record


def store_of(study: "Study", out: Path | None) -> Path:
    """Return the folder of a study's store: `out`, or by default `runs/STUDY`."""
    return Path("runs") / study.name if out is None else out
