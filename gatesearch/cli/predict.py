"""`gatesearch predict`: draw what an exported network sees."""

from pathlib import Path
from typing import Annotated

import typer

from gatesearch.cli.console import out as console
from gatesearch.errors import DataError

EXAMPLES = """Examples:

gatesearch predict --model network.onnx --image photo.jpg --to drawn

gatesearch predict --model network.safetensors --image photos --to drawn"""

_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def predict(
    model: Annotated[Path, typer.Option(metavar="FILE", help="An exported .onnx or .safetensors.")],
    image: Annotated[Path, typer.Option(metavar="PATH", help="An image, or a folder of images.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Where pictures go.")],
) -> None:
    """Write one picture a task and image, NAME.TASK.png, as large as the image.

    Images are shown to the network at the size it was trained on.
    """
    files = [image]
    if image.is_dir():
        files = sorted(path for path in image.iterdir() if path.suffix.lower() in _ENDINGS)
    if not files or not image.exists():
        raise DataError(f"no images in {image}; they must end in {', '.join(_ENDINGS)}")

    from gatesearch.export import read_model
    from gatesearch.export.draw import draw_predictions

    network = read_model(model)
    to.mkdir(parents=True, exist_ok=True)
    for path in files:
        for written in draw_predictions(network, path, to):
            console.print(str(written), markup=False, soft_wrap=True)
