"""`gatesearch export`: write a network of a store as a file that runs without gatesearch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.cli.console import out as console
from gatesearch.cli.console import print_json, warn
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    PluginOption,
    StorageFileOption,
    StorageOption,
    StoreOption,
    TasksOption,
    check_names,
    names,
    record_of,
    storage_url,
    use_plugins,
)
from gatesearch.errors import UsageError

if TYPE_CHECKING:
    from gatesearch.export import Card
    from gatesearch.export.reader import Pixels
    from gatesearch.results import StudyRecord

EXAMPLES = """Examples:

gatesearch export --study nyud-small --to network.onnx

gatesearch export --study nyud-small --trial 3 --to trial3.pt2

gatesearch export --study nyud-small --tasks depth,normals --to two.onnx

gatesearch export --study nyud-small --trial mtl --to mtl.onnx"""


def export(
    study: StoreOption,
    to: Annotated[
        Path,
        typer.Option(metavar="FILE", help="File to write; it ends in .safetensors, .pt2 or .onnx."),
    ],
    trial: Annotated[
        str,
        typer.Option(
            metavar="best|N|NAME",
            help="Network: the best on validation, a trial by its number, or a baseline or control "
            "by its name, as 'mtl' or 'mtl@B of trial 3'.",
        ),
    ] = "best",
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="safetensors, pt2 or onnx. Default: as the file's name ends.",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="B", help="Choose the best of the trials that had this budget.")
    ] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="S", help="Seed of a baseline or control. Default: the store's first."
        ),
    ] = None,
    tasks: TasksOption = None,
    out: OutOption = None,
    storage: StorageOption = "",
    storage_file: StorageFileOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Write a trained network into a file that runs elsewhere.

    The file has the normalisation of images, names of outputs and a card of the tasks; batch size
    stays open, and so do height and width where the network takes others. It is checked against
    PyTorch on the study's frames, or on noise where there are none, before it is put in place.
    """
    check_names(to=to)
    store, record = record_of(study, out, storage_url(storage, storage_file))
    use_plugins(plugin, store=store)

    from gatesearch.export import card_of, choose, cut_to_tasks, ship
    from gatesearch.methods import at_width
    from gatesearch.study import Study
    from gatesearch.trials.kept_networks import as_compact, kept_network

    form = form_of(to, format_)
    result = choose(record, trial, budget=budget, seed=seed)
    card = card_of(record, result)
    definition = Study.from_definition(record.definition)
    network = kept_network(result, definition, out=store)
    network = as_compact(network, result.method, at_width(definition, result.width))
    part = network
    if tasks:
        part, card = cut_to_tasks(network, card, names(tasks, "--tasks"))
    frames = study_frames(record, card)
    difference = ship(part, card, to, form=form, frames=frames, whole=network)
    if json:
        described = {"file": str(to), "parity": difference, "card": card.model_dump(mode="json")}
        print_json(described | ({"tasks": list(card.tasks)} if tasks else {}))
        return
    console.print(
        f"{to}: {card.network} of {card.study}, {card.gflops:.4g} GFLOPs, {card.params_m:.4g} M "
        f"parameters; within {difference:.1e} of PyTorch",
        markup=False,
        soft_wrap=True,
    )


def form_of(to: Path, format_: str | None = None) -> str:
    """Return the format of a file to write.

    Args:
        to: The file.
        format_: Name of the format; None for the ending of the file's name.

    Raises:
        UsageError: There is no such format.
    """
    from gatesearch.export import FORMATS

    form = format_ or to.suffix.removeprefix(".")
    if form not in FORMATS:
        raise UsageError(
            f"--to must end in {', '.join(f'.{name}' for name in FORMATS)}, or --format name one "
            f"of them; found '{format_ or to.name}'"
        )
    return form


def study_frames(record: "StudyRecord", card: "Card") -> "Pixels | None":
    """Read the study's frames; None without them, with a warning where they are damaged."""
    import numpy as np

    from gatesearch.errors import DataError
    from gatesearch.store.predictions import read_predictions

    path = record.predictions
    if path is None:
        return None
    try:
        images = read_predictions(path)["image"]
        if not len(images) or images.shape[1:3] != card.size:
            raise DataError(f"{path} must hold frames of {card.size} pixels")
    except (DataError, OSError) as error:
        warn(f"{error}; the exported file is checked on noise instead of the study's frames")
        return None
    return images.transpose(0, 3, 1, 2).astype(np.float32)
