"""Ways to draw labels and predictions as pictures.

A kind of task names its drawing (`Task.drawing`), which the report and `gatesearch predict` look up
in `DRAWINGS`, for values per pixel, or in `OVERLAYS`, for what is drawn over the image. Nothing
here needs torch, since the report must not load it.
"""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]
Picture = NDArray[np.uint8]
Limits = tuple[float, float]

COLOR_SCALE = "viridis"  # matplotlib's name


@dataclass(frozen=True)
class Drawing:
    """A way to turn labels or predictions into colours.

    Attributes:
        legend: What the colours mean.
        paint: Values (H, W) or (H, W, 3) -> picture (H, W, 3). A drawing with limits paints values
            scaled to 0..1, NaN where unknown.
        limits: Values at both ends of the colour scale where no truth sets them; None for a drawing
            without a scale.
    """

    legend: str
    paint: Callable[[Values], Picture]
    limits: Limits | None = None

    def draw(self, values: Values, limits: Limits | None = None) -> Picture:
        """Draw one label map or prediction; unknown and ignored pixels are black.

        Args:
            values: (H, W), or (H, W, 3) for vectors.
            limits: Values at both ends of the colour scale; those of the drawing by default.

        Returns:
            (H, W, 3).
        """
        if self.limits is not None:
            values = _scale_to_unit_range(values, limits or self.limits)
        return self.paint(values)

    def limits_of(self, truth: Values) -> Limits | None:
        """Limits that show the known values of `truth` well; None for a drawing without a scale.

        They are the 2nd and 98th percentile, so that a few outliers do not darken the rest.
        """
        if self.limits is None:
            return None
        known = truth[np.isfinite(truth) & (truth > 0)]
        if known.size == 0:
            return 0.0, 1.0
        low, high = np.percentile(known, [2, 98])
        return float(low), float(max(high, low + 1e-3))

    def limits_that_cover(self, values: Values) -> Limits | None:
        """Limits that show a prediction without truth; None for a drawing without a scale.

        They are those of the drawing, so that pictures can be compared. The upper one is changed to
        1, 2 or 5 times a power of ten where that of the drawing shows little: where less than 98 %
        of the known values are below it, or 98 % are below a tenth of it.
        """
        if self.limits is None:
            return None
        low, high = self.limits
        known = values[np.isfinite(values) & (values > 0)]
        if known.size == 0:
            return low, high
        most = float(np.percentile(known, 98))
        if not high / 10 <= most <= high:
            power = 10.0 ** math.floor(math.log10(most))
            high = next(step * power for step in (1, 2, 5, 10, 20) if step * power >= most)
        return low, high


@dataclass(frozen=True)
class Overlay:
    """A way to draw labels or predictions over the image that they are of.

    Attributes:
        legend: What the drawing means.
        paint: (values of an image, image (H, W, 3)) -> picture (H, W, 3).
    """

    legend: str
    paint: Callable[[Values, Picture], Picture]


def draw_classes(values: Values) -> Picture:
    """Draw class indices (H, W), uint8; 255 is ignored."""
    return palette()[values]


def draw_range(values: Values) -> Picture:
    """Draw shares (H, W) of a colour scale; below 0 and above 1 its ends, NaN is unknown."""
    # Imported here: matplotlib takes a while, and the other drawings do without.
    from matplotlib import colormaps

    return _as_bytes(
        colormaps[COLOR_SCALE](np.clip(values, 0, 1))[..., :3] * 255, ~np.isnan(values)
    )


def draw_directions(values: Values) -> Picture:
    """Draw vectors (H, W, 3) of any length; the zero vector and what is not finite are unknown."""
    vectors = values.astype(np.float64)
    vectors = np.where(np.isfinite(vectors).all(-1, keepdims=True), vectors, 0)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return _as_bytes((vectors / np.maximum(length, 1e-6) + 1) * 127.5, length[..., 0] > 1e-6)


def draw_certainty(values: Values) -> Picture:
    """Draw probabilities, or 0 and 1, (H, W); what is not within 0..1 is unknown."""
    known = (values >= 0) & (values <= 1)
    share = np.where(known, values, 0).astype(np.float32)[..., None]
    return _as_bytes(255 - share * np.array([200.0, 200.0, 200.0]), known)


def draw_points(values: Values, image: Picture) -> Picture:
    """Draw points over an image, each in the colour of its number, with a black and a white ring.

    Args:
        values: (K, 3) or (3 K): x and y in -1..1 from border to border, and a third number. Points
            without a place are left out.
        image: (H, W, 3).
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    height, width = image.shape[:2]
    radius = max(2.0, math.hypot(height, width) / 80)
    ring = max(1.0, radius / 4)
    pen = ImageDraw.Draw(picture)
    colors = palette().tolist()
    for i, (x, y, _) in enumerate(values.reshape(-1, 3).astype(np.float64).tolist()):
        if not (abs(x) <= 1 and abs(y) <= 1):  # nor NaN
            continue
        at = (x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5
        pen.circle(at, radius + 2 * ring, fill=(255, 255, 255))
        pen.circle(at, radius + ring, fill=(0, 0, 0))
        pen.circle(at, radius, fill=tuple(colors[i % 255]))
    return np.array(picture)


@cache
def palette() -> Picture:
    """(256, 3) colours of the classes; black, the last, is left to what is ignored."""
    colors = np.zeros((256, 3))
    for i in range(255):
        # Hue steps of an irrational turn, three lightnesses, two saturations: found by trying,
        # the first 40 classes are as far apart in RGB as any such rule kept them.
        hue = (i * 0.5698402909) % 1.0
        colors[i] = colorsys.hls_to_rgb(hue, (0.65, 0.55, 0.43)[i % 3], (0.86, 0.55)[i // 3 % 2])
    drawn = np.rint(colors * 255).astype(np.uint8)
    drawn.flags.writeable = False  # the cache gives the same array to every caller
    return drawn


def _scale_to_unit_range(values: Values, limits: Limits) -> Values:
    """Positive values as shares of the way from one limit to the other; NaN where unknown."""
    known = np.isfinite(values) & (values > 0)
    low, high = limits
    scaled = (np.nan_to_num(values) - low) / max(high - low, 1e-6)
    return np.where(known, scaled, np.nan)


def _as_bytes(rgb: Values, known: NDArray[np.bool_]) -> Picture:
    return np.where(known[..., None], np.rint(rgb), 0).astype(np.uint8)


DRAWINGS: dict[str, Drawing] = {
    "classes": Drawing(
        "One colour a class, the same on every page. Black: ignored by loss and metric.",
        draw_classes,
    ),
    "range": Drawing(
        "One colour scale for labels and predictions. Black: unknown.",
        draw_range,
        # Metres that a room's depth spans.
        limits=(0.0, 10.0),
    ),
    "directions": Drawing(
        "Normals as colours: red to the right, green down, blue away from the camera. "
        "Black: unknown.",
        draw_directions,
    ),
    "certainty": Drawing(
        "The darker, the more certain. Black: ignored by loss and metric.", draw_certainty
    ),
}

OVERLAYS: dict[str, Overlay] = {
    "points": Overlay(
        "One colour per point. Left out: points that are not in the image.", draw_points
    ),
}
