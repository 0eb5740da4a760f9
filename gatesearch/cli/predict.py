"""`gatesearch predict`: draw what an exported network predicts for images."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from gatesearch.cli.console import out as console
from gatesearch.cli.options import PluginOption, use_plugins
from gatesearch.errors import DataError, UsageError

EXAMPLES = """Examples:

gatesearch predict --model network.onnx --image photo.jpg --to drawn

gatesearch predict --model network.safetensors --image photos --to drawn"""

# Number of errors that are printed, so that they fit on a screen.
_ERRORS_SHOWN = 10
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(
    model: Annotated[Path, typer.Option(metavar="FILE", help="An exported .onnx or .safetensors.")],
    image: Annotated[Path, typer.Option(metavar="PATH", help="An image, or a folder of images.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures and the table.")],
    plugin: PluginOption = None,
) -> None:
    """Draw what an exported network predicts for your images, and keep the predicted values.

    For each image there are NAME.TASK.png, as large as the image, and NAME.values.npz with the
    values per pixel. Classes, attributes, numbers and points of all images are in predictions.csv,
    a row per image; names and probabilities of classes are columns. The network gets the image at
    the size it was trained on; the .npz holds what it predicts there, exactly. Depth has a colour
    bar below its picture. If some images of a folder cannot be read, the others are predicted and
    the exit code is 3.
    """
    if not image.exists():
        raise DataError(f"no file or folder {image}; name an image or a folder of images")
    files = [image]
    if image.is_dir():
        files = sorted(path for path in image.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files:
        raise DataError(f"no images in {image}; they must end in {', '.join(_ENDINGS)}")

    from gatesearch.answers import ANSWERS
    from gatesearch.drawing import DRAWINGS, OVERLAYS
    from gatesearch.export import read_model
    from gatesearch.export.draw import draw_predictions, predict_file
    from gatesearch.export.table import PREDICTIONS, PredictionTable

    use_plugins(plugin)
    network = read_model(model)
    tasks = {name: card.task for name, card in network.card.tasks.items()}
    drawn = [n for n, t in tasks.items() if t.drawing in DRAWINGS or t.drawing in OVERLAYS]
    if drawn:
        _refuse_equal_names(files)
    table_name = PREDICTIONS if any(t.drawing in ANSWERS for t in tasks.values()) else ""
    _refuse_overwriting(files, drawn, table_name, to)
    to.mkdir(parents=True, exist_ok=True)
    errors = []
    with PredictionTable(to / PREDICTIONS, tasks) as table:
        for path in files:
            try:
                prediction = predict_file(network, path)
            except (DataError, OSError) as error:
                errors.append(str(error))
                continue
            with _explained(table.path):
                table.add(path, prediction.values, prediction.size)
            try:
                for written in draw_predictions(network.card, prediction, to):
                    scale = f" (colours from {written.scale})" if written.scale else ""
                    console.print(f"{written.path}{scale}", markup=False, soft_wrap=True)
            except OSError as error:  # such as a name that gets too long
                reason = error.strerror or str(error)
                errors.append(f"cannot write the pictures of {path} to {to}: {reason}")
        with _explained(table.path):
            if table.close():
                console.print(str(table.path), markup=False, soft_wrap=True)
    if errors:
        rest = len(errors) - _ERRORS_SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        raise DataError("\n".join(errors[:_ERRORS_SHOWN] + more))


@contextlib.contextmanager
def _explained(table: Path) -> Iterator[None]:
    """Turn a failure to write the table into one line.

    Raises:
        DataError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write {table}: {reason}; an earlier one is as it was: free space, or name "
            "another folder with --to"
        ) from error


def _refuse_equal_names(files: Sequence[Path]) -> None:
    """Refuse images whose pictures would have the same name.

    Raises:
        DataError: There are two.
    """
    by_stem: dict[str, Path] = {}
    for path in files:
        if (other := by_stem.setdefault(path.stem, path)) is not path:
            raise DataError(
                f"images must differ in their names before the ending, found {other} and "
                f"{path.name}, whose pictures would have the same name; rename one"
            )


def _refuse_overwriting(
    files: Collection[Path], tasks: Collection[str], table: str, to: Path
) -> None:
    """Refuse a folder in which a picture or the table would replace one of the images.

    Args:
        files: The images.
        tasks: Tasks that have a picture.
        table: Name of the table; empty if none is written.
        to: The folder.

    Raises:
        UsageError: It is refused.
    """
    folder = os.path.realpath(to)
    images = {path.name for path in files if os.path.realpath(path.parent) == folder}
    if table in images:
        raise UsageError(
            f"the table must not replace an image, found {to / table} to be one of the images; "
            "name another folder with --to"
        )
    for path in files:
        for task in tasks:
            if (name := f"{path.stem}.{task}.png") in images:
                raise UsageError(
                    f"pictures must not replace images, found that of {task} on {path.name} to be "
                    f"{to / name}, one of the images; name another folder with --to"
                )
