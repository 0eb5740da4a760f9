"""`gatesearch data`: describe a data set's source, prepare it, and check what was prepared."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.cli.options import PluginOption, use_plugins
from gatesearch.errors import DataError, UsageError, shell_command, unknown

if TYPE_CHECKING:
    from gatesearch.datasets import Dataset, Pack

app = typer.Typer(
    no_args_is_help=True,
    help="Get, prepare and check data sets.",
    epilog="Example: gatesearch data info nyud",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set: scenes, nyud.")]
Data = Annotated[
    Path,
    typer.Option(
        "--data", metavar="DIR", envvar="GATESEARCH_DATA", help="Folder of prepared packs."
    ),
]


@app.command(epilog="Example: gatesearch data info nyud")
def info(name: Name, plugin: PluginOption = None) -> None:
    """Say where a data set comes from, which layouts are read, and the command that prepares it."""
    print(_dataset(name, plugin).info())


@app.command(
    epilog="Examples:\n\ngatesearch data prepare nyud --source NYUD_MT.tgz --data data\n\n"
    "gatesearch data prepare scenes --size 64 64"
)
def prepare(
    name: Name,
    source: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="The release: a folder, .tgz, .tar.gz, .tar or .zip."),
    ] = None,
    data: Data = Path("data"),
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(metavar="H W", help="Store frames at this size instead of their own."),
    ] = None,
    note: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What readers of results should know; repeatable."),
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Turn a data set into a pack for training; an old pack stays until the new one is whole."""
    from gatesearch.cli.progress import emitter
    from gatesearch.datasets import PackRequest
    from gatesearch.datasets.label_checks import MAX_PIXELS
    from gatesearch.datasets.pack_writer import add_notes

    dataset = _dataset(name, plugin)
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
    with emitter(log=None) as emit:
        request = PackRequest(size=size)
        folder = dataset.prepare(folder=data, source=source, request=request, emit=emit)
    print(_summary(add_notes(folder, note or [])))


@app.command(epilog="Example: gatesearch data check nyud --data data")
def check(name: Name, data: Data = Path("data"), plugin: PluginOption = None) -> None:
    """Compare every prepared file of a data set with the sums taken when it was written."""
    from gatesearch.datasets import check_pack
    from gatesearch.datasets.scratch import remove_leftovers

    dataset = _dataset(name, plugin)
    remove_leftovers(data)
    folders = sorted(path for path in data.glob(f"{name}-*") if path.is_dir())
    if not folders:
        source = [] if dataset.automatic else ["--source", "PATH"]
        raise DataError(
            f"no pack of {name} in {data}; make one with: "
            + shell_command("gatesearch", "data", "prepare", name, *source, "--data", str(data))
        )
    for folder in folders:
        print(f"whole: {_summary(check_pack(folder))}")


def _dataset(name: str, plugins: list[str] | None) -> "Dataset":
    from gatesearch.datasets import DATASETS

    use_plugins(plugins)

    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    return DATASETS[name]


def _summary(pack: "Pack") -> str:
    frames = f"{pack.frames('train')} train + {pack.frames('test')} test frames"
    lines = [
        f"{pack.folder}: {frames}, {pack.size[0]}x{pack.size[1]}, {', '.join(pack.fields)}, "
        f"sha256 {pack.digest[:12]}"
    ]
    return "\n  ".join([*lines, *(f"note: {note}" for note in pack.manifest.notes)])
