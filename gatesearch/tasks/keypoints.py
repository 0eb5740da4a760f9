"""Keypoints: places of named points in an image, predicted as heat maps."""

import math
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from gatesearch.tasks.class_scores import per_class
from gatesearch.tasks.columns import Columns
from gatesearch.tasks.labels import Size, Storage
from gatesearch.tasks.table_cells import number_of, read_cells, shown
from gatesearch.tasks.task import Meter, Warp

# A point is found if it is predicted at most this share of the reference length away.
FOUND, FOUND_CLOSE = 0.1, 0.05


class Keypoints(Columns):
    """Squared error of heat maps; the share of points that are found (PCK@0.1) in percent.

    Target: (B, K, 3) float32 per image: x and y in -1..1 from border to border of the frame, x to
    the right and y down; then 1 for a point that is in the frame, 0 for one that is known not to
    be (x and y are NaN), NaN for one of which nothing is known.

    The head predicts one map per point. It learns a Gaussian of height 1 around the point, and 0
    everywhere for a point that is not in the frame. The loss is the squared error summed over a
    map, divided by that of an empty map where there is a point, so that it does not depend on the
    size of the maps. A point is predicted at the highest pixel of its map, moved a quarter of a
    pixel towards the higher neighbours (Newell et al., 2016).

    A point is found if it is predicted at most 0.1 times the reference length away (Yang and
    Ramanan, 2013). Further figures: PCK@0.05, the mean distance in pixels of the frame, and PCK@0.1
    of each point.

    A row of a table has two cells per point, x and y, or three, x, y and visibility, in pixels of
    the image: the centre of its first pixel is (0, 0). A point without a label has empty cells, or
    -1 and -1, or the visibility 0.

    Attributes:
        count: Number K of points, in their order; the number of names if these are given.
        names: Names of the points; empty for numbers from 0.
        sigma: Standard deviation of the Gaussian, as a share of the frame's diagonal.
        reference: Reference length of PCK: `frame` is the frame's diagonal, `box` the longer side
            of the box around an image's points; images with fewer than two points have none.
        flip_pairs: Pairs of points, by name or number, that swap when an image is mirrored, as
            left and right eye.
    """

    metric: ClassVar[str] = "PCK@0.1"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    dense: ClassVar[bool] = True
    unknown_value: ClassVar[float] = math.nan
    drawing: ClassVar[str] = "points"
    output_meaning: ClassVar[str] = "a heat map per point; the point is where its map is highest"

    sigma: float = Field(default=0.02, ge=0.001, le=0.5)
    reference: Literal["frame", "box"] = "frame"
    flip_pairs: tuple[tuple[int | str, int | str], ...] = ()

    @model_validator(mode="after")
    def _known_pairs(self) -> Self:
        paired = [self._number_of(point) for pair in self.flip_pairs for point in pair]
        if len(set(paired)) < len(paired):
            raise ValueError("a point must be in one pair of flip_pairs at most, found one in two")
        return self

    @property
    def storage(self) -> Storage:
        """Place and visibility per point."""
        return Storage("<f4", (self.count, 3), dense=False)

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Squared error over the map of each known point, mean over these points."""
        known = target[..., 2].isfinite()
        wanted = heat_maps(target, (prediction.shape[2], prediction.shape[3]), self.sigma)
        seen = torch.where(known[..., None, None], prediction, 0)
        squares = (seen - wanted.to(prediction.dtype)).square().sum((2, 3))
        return squares.sum() / self._area(prediction) / known.sum().clamp(min=1)

    def distillation_loss(self, prediction: Tensor, teacher: Tensor) -> Tensor:
        """Squared error between maps, scaled as the loss."""
        return (prediction - teacher).square().sum((2, 3)).mean() / self._area(prediction)

    def meter(self, *, details: bool = True) -> Meter:
        """Share of the points in all frames of the part that are found."""
        from gatesearch.tasks.meters import MetricOfSums

        counts = torch.zeros(self.count).long()
        return MetricOfSums(
            (counts, counts, counts, torch.zeros(self.count, dtype=torch.float64), counts),
            measure=partial(point_sums, in_box=self.reference == "box"),
            value=share_found,
            details=partial(_details, names=self.name_list),
        )

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        """Points move with their pixels; one that leaves the frame is not in it.

        In mirrored frames the points of each pair change places.
        """
        linear, shift = warp.matrix[:, :, :2], warp.matrix[:, :, 2]
        places = target[..., :2] @ linear.mT + shift[:, None]
        visible = target[..., 2].clone()
        inside = (places.abs() <= 1).all(-1)  # no unknown place is
        visible[(visible == 1) & ~inside] = 0
        places = torch.where(visible[..., None] == 1, places, math.nan)
        moved = torch.cat([places, visible[..., None]], -1)
        order = list(range(self.count))
        for pair in self.flip_pairs:
            left, right = map(self._number_of, pair)
            order[left], order[right] = right, left
        return torch.where(warp.flip[:, None, None], moved[:, order], moved)

    def decode(self, prediction: Tensor) -> Tensor:
        """Place of each point and height of its map there, (B, K, 3)."""
        return highest_places(prediction)

    def encode(self, raw: NDArray[Any], *, size: Size | None = None) -> NDArray[Any]:
        """Places and visibility, (K, 3); NaN where there is no label."""
        if size is None:
            raise ValueError("places of points need the size of their image, found none")
        columns = 3 if np.size(raw) == 3 * self.count else 2
        cells = read_cells(raw, columns * self.count, what="cells, x and y per point")
        points = np.full((self.count, 3), math.nan, np.float32)
        for index, name in enumerate(self.name_list):
            try:
                place = self._place(cells[columns * index : columns * (index + 1)], size)
            except ValueError as error:
                raise ValueError(f"point {name}: {error}") from None
            if place is not None:
                points[index] = (*place, 1)
        return points

    def _place(self, cells: list[str], size: Size) -> tuple[float, float] | None:
        """Place of one point, in -1..1; None for one without a label.

        Raises:
            ValueError: A cell is no number, only one is empty, or the place is not in the image.
        """
        x, y, *visibility = map(number_of, cells)
        if visibility and visibility[0] == 0:
            return None
        if math.isnan(x) != math.isnan(y):
            raise ValueError("x and y must both be given or both be empty, found one of them")
        if math.isnan(x) or (x, y) == (-1, -1):
            return None
        place = []
        for axis, value, length in (("x", x, size[1]), ("y", y, size[0])):
            # One pixel more, for files that count from 1.
            if not -0.5 <= value <= length:
                raise ValueError(
                    f"{axis} must be within the image, 0 to {length - 1} pixels, found {value:g}; "
                    "leave the cells of a point outside of it empty"
                )
            place.append(min((2 * value + 1) / length - 1, 1.0))
        return place[0], place[1]

    def _number_of(self, point: int | str) -> int:
        """Index of a point, given by name or index.

        Raises:
            ValueError: There is no such point.
        """
        if point in self.names:
            return self.names.index(str(point))
        if isinstance(point, int) and 0 <= point < self.count:
            return point
        listed = shown(self.names) if self.names else f"0 to {self.count - 1}"
        raise ValueError(f"a point of flip_pairs must be one of {listed}, found {point}")

    def _area(self, prediction: Tensor) -> float:
        """Sum of the squares of a Gaussian over the pixels of a map, but for its border."""
        sigma = self.sigma * math.hypot(*prediction.shape[2:])
        return math.pi * sigma**2


def heat_maps(target: Tensor, size: Size, sigma: float) -> Tensor:
    """Maps (B, K, H, W) with a Gaussian of height 1 at each visible point, 0 for all others.

    Args:
        target: (B, K, 3) as `Keypoints` has them.
        size: Height and width of the maps.
        sigma: Standard deviation, as a share of the diagonal.
    """
    height, width = size
    visible = target[..., 2] == 1
    x, y = torch.where(visible[..., None], target[..., :2], 0).unbind(-1)
    columns = torch.arange(width, device=target.device)
    rows = torch.arange(height, device=target.device)
    # In pixels, where the centre of the first is at 0.
    dx = columns - ((x + 1) * width / 2 - 0.5)[..., None]
    dy = rows - ((y + 1) * height / 2 - 0.5)[..., None]
    scale = -0.5 / (sigma * math.hypot(height, width)) ** 2
    bell_x, bell_y = ((d.square() * scale).exp() for d in (dx, dy))
    return bell_y[..., :, None] * (bell_x * visible[..., None])[..., None, :]


def highest_places(maps: Tensor) -> Tensor:
    """Place and height of the highest pixel of maps (B, K, H, W), (B, K, 3).

    Places are in -1..1, moved a quarter of a pixel towards the higher neighbour along each axis.
    """
    maps = maps.nan_to_num(nan=-math.inf)
    height, width = maps.shape[2:]
    flat = maps.flatten(2)
    score, index = flat.max(2)
    row, column = index // width, index % width
    x = column + _towards_higher(flat, index, column, 1, width)
    y = row + _towards_higher(flat, index, row, width, height)
    return torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1, score], -1)


def _towards_higher(maps: Tensor, index: Tensor, place: Tensor, step: int, length: int) -> Tensor:
    """A quarter of a pixel towards the higher neighbour along an axis, 0 at the frame's border.

    Args:
        maps: (B, K, H W).
        index: (B, K) index of the highest pixel.
        place: (B, K) row or column of it.
        step: Distance of neighbours in `maps`.
        length: Number of rows or columns.
    """
    inner = (place > 0) & (place < length - 1)
    before, after = (
        maps.gather(2, torch.where(inner, index + d, index)[..., None])[..., 0]
        for d in (-step, step)
    )
    return 0.25 * (after > before).float() - 0.25 * (after < before).float()


def point_sums(
    prediction: Tensor, target: Tensor, *, in_box: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sum over the visible points of a batch, (K,) each.

    Args:
        prediction: (B, K, H, W) maps.
        target: (B, K, 3).
        in_box: Whether the reference length is the longer side of the box around the points.

    Returns:
        Points found within 0.1 and within 0.05 reference lengths, points that have a reference
        length, distances in pixels, and points.
    """
    height, width = prediction.shape[2:]
    visible = target[..., 2] == 1
    half = torch.tensor([width / 2, height / 2], dtype=torch.float64, device=target.device)
    truth = torch.where(visible[..., None], target[..., :2].double(), 0)
    guess = highest_places(prediction)[..., :2].double()
    distance = torch.where(visible, ((guess - truth) * half).square().sum(-1).sqrt(), 0)
    reference = torch.full_like(distance[:, :1], math.hypot(height, width))
    if in_box:
        reference = _box_sides(truth * half, visible)
    counted = visible & (reference > 0)
    within = [(counted & (distance <= share * reference)).sum(0) for share in (FOUND, FOUND_CLOSE)]
    return within[0], within[1], counted.sum(0), distance.sum(0), visible.sum(0)


def _box_sides(places: Tensor, visible: Tensor) -> Tensor:
    """Longer side of the box around the visible points of each image, (B, 1); 0 without two."""
    seen = visible[..., None]
    lowest = torch.where(seen, places, math.inf).amin(1)
    highest = torch.where(seen, places, -math.inf).amax(1)
    return (highest - lowest).amax(1, keepdim=True).clamp(min=0)


def share_found(
    found: Tensor, found_close: Tensor, counted: Tensor, distance: Tensor, visible: Tensor
) -> Tensor:
    """Share of all points that are found, percent; NaN when there are none."""
    return 100.0 * found.sum().double() / counted.sum()


def _details(
    found: Tensor,
    found_close: Tensor,
    counted: Tensor,
    distance: Tensor,
    visible: Tensor,
    *,
    names: tuple[str, ...],
) -> dict[str, float]:
    return {
        f"PCK@{FOUND_CLOSE:g}": float(100.0 * found_close.sum().double() / counted.sum()),
        "mean distance in pixels": float(distance.sum() / visible.sum()),
        **per_class(f"PCK@{FOUND:g}", 100.0 * found.double() / counted, names),
    }
