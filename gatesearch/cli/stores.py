"""Find the store that `--study` and `--out` name."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gatesearch.errors import UsageError, nearest

RUNS = Path("runs")


@dataclass(frozen=True)
class NamedStore:
    """The store that a command line names.

    Attributes:
        folder: Its folder.
        study: Name of the study that it must hold; empty where the folder alone was named.
        defined: Whether `--study` names a definition, which `run` needs.
    """

    folder: Path
    study: str
    defined: bool


def find_store(study: str, out: Path | None) -> NamedStore:
    """Find the store that a command line names; whether there is one is seen when it is read.

    Args:
        study: Value of `--study`: a built-in study, a TOML file, the name of a store under `runs/`,
            or the path of a store's folder, in this order. With `out`, the name of its study.
        out: Value of `--out`; None for `runs/STUDY`.

    Raises:
        UsageError: `study` is none of these.
    """
    from gatesearch.store.status import holds_store
    from gatesearch.study import builtin_studies, load_study

    builtin = builtin_studies()
    if study in builtin or (Path(study).suffix == ".toml" and Path(study).is_file()):
        name = load_study(study).name
        return NamedStore(RUNS / name if out is None else out, name, defined=True)
    if out is not None:
        return NamedStore(out, study, defined=False)
    for folder in (RUNS / study, Path(study)):
        if study and holds_store(folder):
            return NamedStore(folder, "", defined=False)
    if Path(study).suffix == ".toml":
        load_study(study)  # says that there is no such file
    stores = list(_names_of_stores())
    raise UsageError(
        f"unknown study or store '{study}'{nearest(study, [*builtin, *stores])} "
        f"(studies: {', '.join(builtin)}; stores in {RUNS}: {', '.join(stores) or 'none'}); a file "
        "of your own must end in .toml"
    )


def run_place(study: str, out: Path | None, name: str) -> tuple[str, Path | None]:
    """Return the values of `--study` and `--out` with which `run` goes on with a store.

    `run` needs the definition; where only the store was named, the user has to name its file.

    Args:
        study: Value of `--study`, which may name a store.
        out: Value of `--out`; None without it.
        name: Name of the study that the store holds.
    """
    from gatesearch.study import builtin_studies

    named = find_store(study, out)
    if named.defined:
        return study, out
    return name if name in builtin_studies() else "FILE.toml", named.folder


def _names_of_stores() -> Iterator[str]:
    from gatesearch.store.status import holds_store

    with suppress(OSError):
        for folder in sorted(RUNS.iterdir()):
            if holds_store(folder):
                yield folder.name
