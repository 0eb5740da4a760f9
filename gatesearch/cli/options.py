"""Options that several verbs share."""

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
    """Names given with commas, by repeating the option, or both; each once, in order.

    Raises:
        UsageError: An empty name.

    >>> names(["stl,mtl", "mtan"], "--method")
    ('stl', 'mtl', 'mtan')
    """
    found = [name.strip() for item in items for name in item.split(",")]
    if not all(found):
        raise UsageError(f"{option} takes names with commas between them, found an empty name")
    return tuple(dict.fromkeys(found))


def preferences(items: Iterable[str] | None, tasks: Iterable[str]) -> dict[str, float]:
    """Task -> weight, from `depth=2` items; commas or repetition.

    Raises:
        UsageError: Not of that form, an unknown task, or a weight that is not positive.

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
    """Refuse before hours of training a folder that no report can be written into.

    Raises:
        DataError: It, or what it would be made in, is no folder or cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "is read-only" if there.is_dir() else "is no folder"
        raise DataError(f"cannot write {folder}: {there} {what}; name another with --reports")


@contextmanager
def writing(reports: Path, study: str) -> Iterator[None]:
    """Explain a report that cannot be written; all results are in the store by then.

    Raises:
        DataError: With the command that writes the report later.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the report into {reports}: {error.strerror or error}; make room or name "
            f"another folder: gatesearch report --study {study} --reports DIR"
        ) from error


def record_of(study: str, out: Path | None, storage: str = "") -> "tuple[Path, StudyRecord]":
    """A study's store, and everything in it.

    Raises:
        UsageError: There is none, or it is another study's.
    """
    from gatesearch.store.store import read_store
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
    """Folder of a study's store."""
    return Path("runs") / study.name if out is None else out
