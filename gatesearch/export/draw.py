"""Predict for image files; draw predictions as pictures, and keep their values."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatesearch.datasets.folder.fit import Placement, place
from gatesearch.datasets.image_files import convert_to_rgb, read_image
from gatesearch.datasets.orientation import orientation_of, turn_upright
from gatesearch.drawing import DRAWINGS, OVERLAYS
from gatesearch.export.colour_bar import add_colour_bar
from gatesearch.export.reader import Model, Pixels
from gatesearch.export.shipped import Card
from gatesearch.files import write_atomic

Values = NDArray[np.generic]

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
        values: Task -> decoded prediction at the size that the network was trained on; places of
            points are those in the image.
        placement: Where the image lies in what the network saw.
    """

    path: Path
    image: Image.Image
    values: Mapping[str, Values]
    placement: Placement

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
    image, card = _read_upright(path), model.card
    placement = place((image.height, image.width), card.size, card.fit)
    shown = _placed(image, placement)
    pixels: Pixels = np.ascontiguousarray(np.asarray(shown, np.float32).transpose(2, 0, 1)[None])
    values = {name: labels[0] for name, labels in model.predict(pixels).items()}
    for name, labels in values.items():
        if card.tasks[name].task.drawing in OVERLAYS:
            values[name] = _in_image(labels, placement)
    return Prediction(path, image, values, placement)


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
            picture = _on_image(picture, prediction.placement)
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
    return turn_upright(convert_to_rgb(image, path), orientation_of(image))


def _placed(image: Image.Image, placement: Placement) -> Image.Image:
    """Place an image as training frames were; what is padded gets its mean colour."""
    (height, width), (top, left) = placement.window, (placement.top, placement.left)
    box = (left, top, left + width, top + height)
    shown = image.resize(placement.shown[::-1], Image.Resampling.BILINEAR, box=box)
    if placement.shown == placement.size:
        return shown
    mean = np.asarray(shown, np.float64).mean((0, 1)).round().astype(int).tolist()
    canvas = Image.new("RGB", placement.size[::-1], tuple(mean))
    canvas.paste(shown, (placement.right, placement.down))
    return canvas


def _on_image(picture: Image.Image, placement: Placement) -> Image.Image:
    """Bring a picture of a prediction to the image; what the network did not see is black."""
    (height, width), (top, left) = placement.window, (placement.top, placement.left)
    shown_height, shown_width = placement.shown
    box = (
        placement.right,
        placement.down,
        placement.right + shown_width,
        placement.down + shown_height,
    )
    seen = picture.resize((width, height), Image.Resampling.NEAREST, box=box)
    if placement.window == placement.frame:
        return seen
    canvas = Image.new("RGB", placement.frame[::-1])
    canvas.paste(seen, (left, top))
    return canvas


def _in_image(points: Values, placement: Placement) -> Values:
    """Turn places (K, 3) in what the network saw, -1..1 and a score, into those in the image."""
    matrix = placement.warp.matrix[0].double().numpy()
    places = np.array(points, np.float64)
    places[:, :2] = (places[:, :2] - matrix[:, 2]) / matrix[:, :2].diagonal()
    return places.astype(points.dtype)


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
