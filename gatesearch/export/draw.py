"""Draw the predictions of an exported network as pictures."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gatesearch.drawing import DRAWINGS
from gatesearch.errors import DataError
from gatesearch.export.reader import Model, Pixels
from gatesearch.files import write_atomic
from gatesearch.tasks import TASKS


def draw_predictions(model: Model, path: Path, to: Path) -> Iterator[Path]:
    """Write `<name>.<task>.png` for every task, in the size of the image, and yield each path.

    Each kind of task has its drawing (`gatesearch.drawing`). Colours of depth always run from 0 to
    10 m, so that pictures of different images can be compared.

    Args:
        model: The network.
        path: An image of 8 bits per channel: grey or colour, with or without transparency. If the
            camera stored a rotation, the image is first rotated upright.
        to: Folder of the pictures.

    Raises:
        DataError: The image cannot be read.
    """
    image = _open(path)
    height, width = model.card.size
    shown = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: Pixels = np.ascontiguousarray(np.asarray(shown, np.float32).transpose(2, 0, 1)[None])
    for name, labels in model.predict(pixels).items():
        drawing = DRAWINGS[TASKS[model.card.tasks[name].kind].drawing]
        drawn = Image.fromarray(drawing.draw(labels[0]))
        buffer = io.BytesIO()
        drawn.resize(image.size, Image.Resampling.NEAREST).save(buffer, format="PNG")
        target = to / f"{path.stem}.{name}.png"
        write_atomic(target, buffer.getvalue())
        yield target


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{path} must have 8 bits a channel, found mode {image.mode}; convert it")
    return ImageOps.exif_transpose(image.convert("RGB"))
