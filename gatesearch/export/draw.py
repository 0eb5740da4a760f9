"""Predict for image files; draw predictions as pictures, and keep their values."""

import io
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from gatesearch.datasets.image_files import convert_to_rgb, read_image
from gatesearch.drawing import DRAWINGS, OVERLAYS
from gatesearch.export.colour_bar import add_colour_bar
from gatesearch.export.reader import Model, Pixels
from gatesearch.export.shipped import Card
from gatesearch.files import write_atomic

Values = NDArray[np.generic]

# Value of a camera's orientation -> how the stored image is turned upright (EXIF 2.32, 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_LONGEST_UNIT = 40  # characters


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        path: The file.
        scale: Values at both ends of its colour scale, with their unit; empty without a scale.
    """

    path: Path
    scale: str = ""


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for an image file.

    Attributes:
        path: The file.
        image: The image, upright, at its size.
        values: Task -> decoded prediction at the size that the network was trained on.
    """

    path: Path
    image: Image.Image
    values: Mapping[str, Values]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image, pixels."""
        return self.image.height, self.image.width


def predict_file(model: Model, path: Path) -> Prediction:
    """Predict all tasks of an image file.

    Args:
        model: The network.
        path: An image of 8 bits per channel: grey or colour, with or without transparency. If the
            camera stored a rotation, the image is first rotated upright.

    Raises:
        DataError: The image cannot be read.
    """
    image = _read_upright(path)
    height, width = model.card.size
    shown = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: Pixels = np.ascontiguousarray(np.asarray(shown, np.float32).transpose(2, 0, 1)[None])
    values = {name: labels[0] for name, labels in model.predict(pixels).items()}
    return Prediction(path, image, values)


def draw_predictions(card: Card, prediction: Prediction, to: Path) -> Iterator[Written]:
    """Write a picture per task that has one, and the predicted values per pixel; yield each file.

    `<name>.<task>.png` is the prediction in the size of the image. Each kind of task has its
    drawing (`gatesearch.drawing`). One with a colour scale has a colour bar below the picture; the
    scale of depth runs from 0 to 10 m, or to 20, 50, 100 ... m where much of the image is further
    away. Points are drawn over the image.

    `<name>.values.npz` holds predictions per pixel, without loss: task -> array (H, W), or
    (H, W, 3) for normals, at the size that the network was trained on, in the encoding of the
    task's labels (metres, class indices, probabilities). There is none without such tasks.

    Args:
        card: The network's card.
        prediction: What it predicts.
        to: Folder of the files.
    """
    path, image = prediction.path, prediction.image
    for name, values in prediction.values.items():
        task = card.tasks[name]
        kind = task.task.drawing
        scale = ""
        if kind in OVERLAYS:
            picture = Image.fromarray(OVERLAYS[kind].paint(values, np.asarray(image)))
        elif kind in DRAWINGS:
            drawing = DRAWINGS[kind]
            limits = drawing.limits_that_cover(values)
            picture = Image.fromarray(drawing.draw(values, limits))
            picture = picture.resize(image.size, Image.Resampling.NEAREST)
            if limits is not None:
                unit = "".join(c for c in task.values if c.isprintable())[:_LONGEST_UNIT]
                scale = f"{limits[0]:g} to {limits[1]:g} {unit}".strip()
                picture = add_colour_bar(picture, drawing, limits, unit=unit)
        else:
            continue
        target = to / f"{path.stem}.{name}.png"
        write_atomic(target, _png(picture))
        yield Written(target, scale)
    dense = {n: v for n, v in prediction.values.items() if card.tasks[n].task.drawing in DRAWINGS}
    if dense:
        target = to / f"{path.stem}.values.npz"
        write_atomic(target, _npz(dense))
        yield Written(target)


def _read_upright(path: Path) -> Image.Image:
    """Read an image as RGB, rotated as the camera says; a damaged rotation is left out."""
    image = read_image(path)
    with warnings.catch_warnings(action="ignore"):  # about damaged metadata
        try:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
        except Exception:  # what Pillow raises on damaged metadata is an open set
            orientation = None
    rgb = convert_to_rgb(image, path)
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _npz(arrays: Mapping[str, Values]) -> bytes:
    """Make an .npz file of arrays of any name (numpy's own function cannot name one `file`)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, array in arrays.items():
            with zipped.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()
