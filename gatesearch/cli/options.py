"""Options that several commands share."""

import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.cli.console import err
from gatesearch.cli.stores import find_store
from gatesearch.errors import DataError, UsageError, shell_command, unknown
from gatesearch.files import MIB, read_text
from gatesearch.store.server import hides_something, masked, shown

if TYPE_CHECKING:
    from gatesearch.results import StudyRecord

StudyOption = Annotated[
    str,
    typer.Option(
        "--study",
        metavar="NAME|FILE",
        help="A built-in study (`gatesearch studies`), or a TOML file.",
    ),
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--study",
        metavar="NAME|FILE|STORE",
        help="A built-in study, a TOML file, or a store: its name under runs/ or its folder.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the store, which keeps all that is trained. Default: runs/STUDY.",
    ),
]
StorageOption = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Keep the store on a server, postgresql://USER@HOST/DATABASE; the password comes from "
        "PGPASSWORD or ~/.pgpass. Default: SQLite in --out.",
    ),
]
StorageFileOption = Annotated[
    Path | None,
    typer.Option(
        "--storage-file",
        metavar="FILE",
        help="File that holds the URL of --storage, with a password or without; nobody but you may "
        "be able to read it.",
    ),
]
ReportsOption = Annotated[
    Path, typer.Option("--reports", metavar="DIR", help="Folder for the report.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a key of the study, as training.epochs=20 or preset=quick. Repeatable.",
    ),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE.py|MODULE",
        help="Load a plugin, which adds methods, kinds, heads, ... Repeatable.",
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
TasksOption = Annotated[
    list[str] | None,
    typer.Option(
        "--tasks",
        metavar="A,B",
        help="Only what the outputs of these tasks need; with commas or repeated. Default: all.",
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


def use_plugins(given: Sequence[str] | None, *, store: Path | None = None) -> None:
    """Load the plugins of installed distributions, and those that the user names.

    Args:
        given: Values of `--plugin`.
        store: Folder of the store that the command works on, whose plugins must be among them.

    Raises:
        UsageError: One cannot be loaded, or one of the store is missing.
    """
    from gatesearch.plugins import check_plugins, load_plugins

    load_plugins(given or ())
    if store is not None:
        check_plugins(store)


def settings(items: Sequence[str] | None) -> Sequence[str]:
    """Return the values of `--set`.

    Raises:
        UsageError: One holds bytes that are no text.
    """
    for item in items or ():
        if not _is_text(item):
            raise UsageError(f"--set takes {_TEXT}, found {item!a}; {_TEXT_CURE}")
    return items or ()


def check_names(**paths: Path | None) -> None:
    """Refuse names of files and folders that are no text, which some libraries cannot open.

    Args:
        paths: Option without its hyphens -> its value; None without it.

    Raises:
        UsageError: One is not; nothing was trained yet.
    """
    for option, path in paths.items():
        if path is not None and not _is_text(str(path)):
            raise UsageError(f"--{option} takes {_TEXT}, found {str(path)!a}; {_TEXT_CURE}")


_TEXT = f"text in the encoding of file names here, {sys.getfilesystemencoding()}"
_TEXT_CURE = "write it in that encoding, or set another by LC_ALL, such as C.UTF-8"


def _is_text(argument: str) -> bool:
    """Tell whether an argument is text; Python keeps bytes that are none as surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in argument)


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


def storage_url(storage: str, file: Path | None) -> str:
    """Return the URL that `--storage` or `--storage-file` gives; empty without either.

    Raises:
        UsageError: Both are given, or the URL is not one of a server.
        DataError: The file is not what it must be, or others than its owner can read it.
    """
    if file is None:
        if storage and hides_something(shown(storage)):
            err.print(
                "warning: other users of this machine see what --storage says, in the list of "
                "processes; give a password by --storage-file, PGPASSWORD or ~/.pgpass",
                style="yellow",
            )
        return storage
    if storage:
        raise UsageError("--storage and --storage-file both name the server; give one of them")
    path = file.resolve()  # a link is followed here, since the user named it
    text = read_text(path, limit=MIB).strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise DataError(
            f"{file} must be readable by its owner alone, found mode {mode:o}; change it: "
            f"{shell_command('chmod', '600', str(file))}"
        )
    shown(text)  # refuses what is no URL
    return text


def store_options(
    study: str, out: Path | None, storage: str = "", storage_file: Path | None = None
) -> list[str]:
    """List the options that name a store again in another command, without a password."""
    options = ["--study", study, *(["--out", str(out)] if out else [])]
    if storage_file is not None:
        return [*options, "--storage-file", str(storage_file)]
    return options + (shown_storage_options(shown(storage)) if storage else [])


def shown_command(verb: str, *options: str, store: Sequence[str]) -> str:
    """Spell a command as messages print it: it works as it stands, whatever its names hold.

    Args:
        verb: The subcommand, as `report`.
        options: Further words of the command.
        store: Options that name the store; see `store_options`.

    >>> shown_command("export", "--trial", "mtl + pcgrad", store=["--study", "my study.toml"])
    "gatesearch export --study 'my study.toml' --trial 'mtl + pcgrad'"
    """
    return shell_command("gatesearch", verb, *store, *options)


def shown_storage_options(shown_url: str) -> list[str]:
    """List the options that name a server, of which a file must take over what is not shown."""
    if hides_something(shown_url):
        return ["--storage-file", "FILE"]
    return ["--storage", shown_url]


def record_of(study: str, out: Path | None, storage: str = "") -> "tuple[Path, StudyRecord]":
    """Find the folder of a store, and read everything in the store.

    Args:
        study: Value of `--study`.
        out: Value of `--out`; None for the default folder.
        storage: URL of the server that keeps the store; empty for SQLite in the folder.

    Raises:
        UsageError: There is no store, or it is another study's.
    """
    from gatesearch.store.backup import DATABASE
    from gatesearch.store.opening import read_store
    from gatesearch.store.status import holds_store, read_status

    named = find_store(study, out)
    folder, name = named.folder, named.study
    if not (folder / DATABASE).is_file() and holds_store(folder):
        status = read_status(folder)
        name = name or status["study"]
        if status["storage"] and not storage:
            again = shell_command(*shown_storage_options(masked(status["storage"])))
            raise UsageError(f"{folder} has its store on a server; name it: {again}")
    record = read_store(folder, storage=storage, name=name if storage else "")
    if name not in ("", record.name):
        raise UsageError(
            f"{folder} must hold study '{name}', found '{record.name}'; "
            f"use --study {record.name} or another --out"
        )
    return folder, record
