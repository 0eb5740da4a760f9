"""`gatesearch predict`: draw what an exported network predicts for images."""

import os
from collections.abc import Collection
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
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures go.")],
    plugin: PluginOption = None,
) -> None:
    """Draw every task on every image: NAME.TASK.png as large as the image, and NAME.values.npz.

    The network gets each image at the size it was trained on, and the .npz holds what it predicts
    there, without loss. Depth has a colour bar below its picture. If some images of a folder cannot
    be read, the others are drawn and the exit code is 3.
    """
    if not image.exists():
        raise DataError(f"no file or folder {image}; name an image or a folder of images")
    files = [image]
    if image.is_dir():
        files = sorted(path for path in image.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files:
        raise DataError(f"no images in {image}; they must end in {', '.join(_ENDINGS)}")
    by_stem: dict[str, Path] = {}
    for path in files:
        if (other := by_stem.setdefault(path.stem, path)) is not path:
            raise DataError(
                f"images must differ in their names before the ending, found {other} and "
                f"{path.name}, whose pictures would have the same name; rename one"
            )

    from gatesearch.export import read_model
    from gatesearch.export.draw import draw_predictions

    use_plugins(plugin)
    network = read_model(model)
    _refuse_overwriting(files, network.card.tasks, to)
    to.mkdir(parents=True, exist_ok=True)
    errors = []
    for path in files:
        try:
            for written in draw_predictions(network, path, to):
                scale = f" (colours from {written.scale})" if written.scale else ""
                console.print(f"{written.path}{scale}", markup=False, soft_wrap=True)
        except DataError as error:
            errors.append(str(error))
        except OSError as error:  # such as a name that gets too long
            reason = error.strerror or str(error)
            errors.append(f"cannot write the pictures of {path} to {to}: {reason}")
    if errors:
        rest = len(errors) - _ERRORS_SHOWN
        more = [f"and {rest} more"] if rest > 0 else []
        raise DataError("\n".join(errors[:_ERRORS_SHOWN] + more))


def _refuse_overwriting(files: Collection[Path], tasks: Collection[str], to: Path) -> None:
    """Refuse a folder in which a picture would replace one of the images.

    Raises:
        UsageError: It is refused.
    """
    folder = os.path.realpath(to)
    images = {path.name for path in files if os.path.realpath(path.parent) == folder}
    for path in files:
        for task in tasks:
            if (name := f"{path.stem}.{task}.png") in images:
                raise UsageError(
                    f"pictures must not replace images, found that of {task} on {path.name} to be "
                    f"{to / name}, one of the images; name another folder with --to"
                )
