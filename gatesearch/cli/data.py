"""`gatesearch data`: describe a data set's source, prepare it, and check what was prepared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.cli.options import JsonOption, PluginOption, use_plugins
from gatesearch.errors import DataError, UsageError, shell_command, unknown

if TYPE_CHECKING:
    from gatesearch.datasets import Dataset, Pack
    from gatesearch.study import Study

app = typer.Typer(
    no_args_is_help=True,
    help="Get, prepare and check data sets.",
    epilog="Example: gatesearch data info nyud",
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A data set: scenes, nyud, pascal, celeba, utkface, folder; or a study's TOML file.",
    ),
]
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar="GATESEARCH_DATA", help="Folder of prepared data sets."
    ),
]


@app.command(epilog="Examples:\n\ngatesearch data info nyud\n\ngatesearch data info parts.toml")
def info(name: Name, plugin: PluginOption = None) -> None:
    """Say where a data set comes from, which layouts are read, and the command that prepares it.

    Of a study of your own files: how many frames and labels each part has.
    """
    for dataset, study in _sources(name, plugin):
        if study is None or dataset.files is None:
            print(dataset.info())
        else:
            print(dataset.files.describe(study))


@app.command(
    epilog="Examples:\n\ngatesearch data prepare nyud --source NYUD_MT.tgz --data data\n\n"
    "gatesearch data prepare scenes --size 64 64\n\ngatesearch data prepare parts.toml"
)
def prepare(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Data set as downloaded: a folder, .tgz, .tar.gz, .tar or .zip."
        ),
    ] = None,
    data: Data = Path("data"),
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Store frames at this size instead of their own."),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Remark that readers of results should see; repeatable."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Prepare a data set for training; an older one stays in place until the new one is whole."""
    from gatesearch.cli.progress import emitter
    from gatesearch.datasets import PackRequest
    from gatesearch.datasets.label_checks import MAX_PIXELS
    from gatesearch.datasets.pack_writer import add_notes

    sources = _sources(name, plugin)
    for text in note or []:
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise UsageError(
                f"--note takes text in the encoding of file names here, found {text[:100]!a}; "
                "write it in that encoding, or set another by LC_ALL, such as C.UTF-8"
            )
    if size is not None and size[0] * size[1] > MAX_PIXELS:
        raise UsageError(
            f"--size must have at most {MAX_PIXELS / 1e6:.0f} million pixels, found {size[0]} x "
            f"{size[1]}; name a smaller one"
        )
    if size is not None and any(study is not None and set_.automatic for set_, study in sources):
        raise UsageError("--size is that of the study's file; leave it out, or change it there")
    for dataset, study in sources:
        request = PackRequest(size=size)
        if study is not None and dataset.automatic:
            request = PackRequest.of(study)
        with emitter(log=None) as emit:
            folder = dataset.prepare(folder=data, source=source, request=request, emit=emit)
        print(_summary(add_notes(folder, note or [])))


@app.command(
    epilog="Examples:\n\ngatesearch data check nyud --data data\n\ngatesearch data check parts.toml"
)
def check(
    name: Name,
    data: Data = Path("data"),
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Compare every prepared file of a data set with the sums taken when it was written.

    Of a study of your own files: read all of them, and list everything that is wrong with any.
    """
    from gatesearch.cli.console import print_json
    from gatesearch.datasets import PackRequest, check_pack

    sources = _sources(name, plugin)
    _check_files(sources, as_json=json)
    folders: list[Path] = []
    for dataset, study in sources:
        if study is not None and dataset.files is not None:
            folder = data / dataset.pack_name(PackRequest.of(study))
            folders += [folder] if folder.is_dir() else []
        else:
            folders += _packs(dataset, data)
    packs = [check_pack(folder) for folder in folders]
    for pack in packs:
        print(f"whole: {_summary(pack)}")
    if json:
        print_json({"faults": [], "packs": {str(p.folder): p.digest for p in packs}})


def _packs(dataset: "Dataset", data: Path) -> list[Path]:
    """List the packs of a data set.

    Raises:
        DataError: There is none.
    """
    from gatesearch.datasets.scratch import remove_leftovers

    remove_leftovers(data)
    folders = sorted(path for path in data.glob(f"{dataset.name}-*") if path.is_dir())
    if not folders:
        source = [] if dataset.automatic else ["--source", "PATH"]
        words = ("data", "prepare", dataset.name, *source, "--data", str(data))
        cure = dataset.made_by or f"Make one with: {shell_command('gatesearch', *words)}"
        raise DataError(f"no pack of {dataset.name} in {data}. {cure}")
    return folders


def _check_files(sources: "list[tuple[Dataset, Study | None]]", *, as_json: bool) -> None:
    """Read all files that a study names.

    Raises:
        FaultyDataError: Some have faults; the message is the table of all of them.
    """
    from gatesearch.cli.console import print_json, warn
    from gatesearch.cli.progress import emitter
    from gatesearch.datasets.faults import FaultyDataError, fault_table

    asked = [(s.files, study) for s, study in sources if s.files is not None and study is not None]
    if not asked:
        return
    where = asked[0][1].name
    with emitter(log=None) as emit:
        faults = [fault for files, study in asked for fault in files.check(study, emit)]
    if any(not fault.is_warning for fault in faults):
        if as_json:
            print_json({"faults": [fault.to_json() for fault in faults], "packs": {}})
        raise FaultyDataError(faults, where=where)
    if faults:
        warn(fault_table(faults, where=where))
    for files, study in asked:
        print(f"all files can be used: {files.describe(study)}")


def _sources(name: str, plugins: list[str] | None) -> "list[tuple[Dataset, Study | None]]":
    """Find a data set by its name, or those of a study by its file, each with its part of it."""
    from gatesearch.datasets import DATASETS
    from gatesearch.datasets.dataset import check_options
    from gatesearch.study import load_study

    use_plugins(plugins)
    if not name.endswith(".toml"):
        if name not in DATASETS:
            raise unknown("data set", name, DATASETS)
        return [(DATASETS[name], None)]
    sources: list[tuple[Dataset, Study | None]] = []
    for study in load_study(name).sources:
        if study.data.dataset not in DATASETS:
            raise unknown("data set", study.data.dataset, DATASETS)
        check_options(DATASETS[study.data.dataset], study)
        sources.append((DATASETS[study.data.dataset], study))
    return sources


def _summary(pack: "Pack") -> str:
    frames = " + ".join(f"{pack.frames(split)} {split}" for split in pack.splits) + " frames"
    lines = [
        f"{pack.folder}: {frames}, {pack.size[0]}x{pack.size[1]}, {', '.join(pack.fields)}, "
        f"sha256 {pack.digest[:12]}"
    ]
    return "\n  ".join([*lines, *(f"note: {note}" for note in pack.manifest.notes)])
