"""F-measure of edges that may lie a little off: odsF and oisF.

The measure of Martin, Fowlkes and Malik ("Learning to detect natural image boundaries using local
brightness, color, and texture cues", 2004), by which multi-task learning compares edges
(Maninis et al., 2019; Vandenhende et al., 2021):

1. The predicted probability is thinned to lines one pixel wide.
2. At each of K thresholds, predicted pixels are matched with true ones, one to one, at a distance
   of at most `tolerance` times the diagonal of the frame (published: 0.0075 on PASCAL-Context,
   0.011 on NYUD).
3. F = 2 M / (P + T), from the numbers of matched, predicted and true pixels over all frames. odsF
   is the best F at one threshold for all frames, oisF the F at each frame's best threshold.

The MATLAB code behind published figures is Dollár and Zitnick's toolbox of structured edges
(https://github.com/pdollar/edges: `edgesNms`, `edgesEvalImg`, `edgesEvalDir`), with
`correspondPixels` of the BSDS benchmark. Where ours differs:

- Thinning. Both compare a pixel with its two neighbours across the edge, one pixel away. Our
  direction across is that of the greatest curvature of the smoothed map; theirs comes from a ratio
  of second derivatives, and is wrong on exactly horizontal lines. Theirs keeps pixels up to 1 %
  lower than a neighbour, and thins the rest at each threshold; ours keeps none of these, and
  decides ties by the smoothed map, then by place, so that one thin map serves all thresholds.
  Theirs fades the five pixels along the frame's border; ours does not.
- Matching. Ours is the largest. Theirs has the smallest sum of distances, in which a pixel without
  a partner costs a hundred times the tolerance; it looks at a few partners per pixel, drawn at
  random. Both match the same number of pixels but in contrived cases.
- F is taken at the K thresholds alone; their odsF is interpolated between them. Of thresholds
  equally good for a frame, ours takes the highest, which predicts fewest pixels, theirs the lowest.
- Unlabelled pixels take no part.

True lines are not thinned. Where they are thicker than one pixel, no prediction matches all of it.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.tasks.labels import IGNORE

THRESHOLDS = 99
TOLERANCE = 0.0075

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Radius of the triangle filter that smooths a map before its curvature is taken, pixels.
_SMOOTHING = 4
_TRIANGLE = [
    min(i, 2 * _SMOOTHING + 2 - i) / (_SMOOTHING + 1) ** 2 for i in range(1, 2 * _SMOOTHING + 2)
]
_DIFFERENCE = (-0.5, 0.0, 0.5)
# Weights of the smoothed map and of the place where probabilities tie.
_SMOOTHED, _PLACE = 1e-6, 1e-8
# Differences that are rounding errors.
_ROUNDING = 1e-12


def edge_counts(
    probability: Tensor,
    target: Tensor,
    *,
    thresholds: int = THRESHOLDS,
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Count matched, predicted and true edge pixels of a batch; counts of batches are added up.

    Args:
        probability: (B, H, W) probability of an edge.
        target: (B, H, W) 1 on edges, 0 elsewhere, 255 = ignore.
        thresholds: K; the thresholds are k / (K + 1), k = 1..K.
        tolerance: Longest distance between matched pixels, as a share of the frame's diagonal.

    Returns:
        Whole numbers: matched pixels (K,), predicted pixels (K,), true pixels (), and at each
        frame's best threshold, matched pixels () and predicted pixels ().
    """
    levels = np.arange(1, thresholds + 1) / (thresholds + 1)
    maps = np.nan_to_num(probability.detach().double().cpu().numpy())
    thin = thin_edges(maps, at_least=levels[0])
    labels = target.cpu().numpy()
    matched, predicted = torch.zeros((2, thresholds), dtype=torch.int64)
    true, best_matched, best_predicted = torch.zeros(3, dtype=torch.int64)
    for frame, label in zip(thin, labels, strict=True):
        frame[label == IGNORE] = 0
        per_level = _counts_of_frame(frame, label == 1, levels, tolerance)
        frame_matched, frame_predicted = (torch.from_numpy(counts) for counts in per_level)
        frame_true = torch.tensor(int((label == 1).sum()))
        scores = f_measure(frame_matched, frame_predicted, frame_true)
        best = thresholds - 1 - scores.flip(0).argmax()  # the highest one among equals
        matched += frame_matched
        predicted += frame_predicted
        true += frame_true
        best_matched += frame_matched[best]
        best_predicted += frame_predicted[best]
    device = probability.device
    return (
        matched.to(device),
        predicted.to(device),
        true.to(device),
        best_matched.to(device),
        best_predicted.to(device),
    )


def ods_ois(
    matched: Tensor, predicted: Tensor, true: Tensor, best_matched: Tensor, best_predicted: Tensor
) -> tuple[Tensor, Tensor]:
    """Return odsF and oisF, 0 to 1, of the sums of `edge_counts` over all batches.

    Both are NaN when no labelled pixel is an edge, as there is nothing to find.

    >>> counts = [torch.tensor(c) for c in ([6, 4], [12, 4], 8, 5, 5)]
    >>> [round(f.item(), 3) for f in ods_ois(*counts)]
    [0.667, 0.769]
    """
    defined = torch.where(true > 0, 1.0, math.nan)
    ods = f_measure(matched, predicted, true).max()
    return ods * defined, f_measure(best_matched, best_predicted, true) * defined


def f_measure(matched: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """Return 2 M / (P + T), the harmonic mean of precision M / P and recall M / T; 0 if M is 0."""
    return 2 * matched.double() / (predicted + true).clamp(min=1)


def thin_edges(probability: Floats, *, at_least: float = 0.0) -> Floats:
    """Keep the pixels of maps (B, H, W) that no neighbour across the edge exceeds; others become 0.

    Args:
        probability: The maps.
        at_least: Pixels below this value become 0 too.
    """
    height, width = probability.shape[-2:]
    # Frames are mirrored at their borders; two pixels of the margin are left to differentiate.
    margin = _SMOOTHING + 2
    mirrored = np.pad(probability, [(0, 0), (margin, margin), (margin, margin)], mode="symmetric")
    smooth = _filtered(_filtered(mirrored, 1, _TRIANGLE), 2, _TRIANGLE)
    slope_y, slope_x = (_filtered(smooth, axis, _DIFFERENCE) for axis in (1, 2))
    xx = _filtered(slope_x, 2, _DIFFERENCE)[:, 2:-2]
    yy = _filtered(slope_y, 1, _DIFFERENCE)[:, :, 2:-2]
    xy = _filtered(slope_x, 1, _DIFFERENCE)[:, 1:-1, 1:-1]
    smooth = smooth[:, 2:-2, 2:-2]
    place = np.arange(height)[:, None] + 0.3 * np.arange(width)
    ranked = probability + _SMOOTHED * smooth + _PLACE / (height + width) * place

    frame, y, x = np.nonzero((probability > 0) & (probability >= at_least))
    # Rounded, so that no direction comes from the rounding errors of a flat part (nor from -0).
    xx, xy, yy = (np.round(part[frame, y, x], 9) + 0.0 for part in (xx, xy, yy))
    # Eigenvector of the Hessian matrix with the eigenvalue of greatest magnitude.
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.where(xx + yy < 0, math.pi / 2, 0)
    # Rounded, so that along an axis the neighbour is a pixel: at the border, this one itself.
    across_x, across_y = (np.asarray(np.round(f(angle), 12), np.float64) for f in (np.cos, np.sin))
    here = ranked[frame, y, x]
    highest = np.ones(len(here), bool)
    for sign in (-1, 1):
        there = _interpolated(ranked, frame, y + sign * across_y, x + sign * across_x)
        highest &= there <= here + _ROUNDING
    thin = np.zeros_like(probability)
    kept = frame[highest], y[highest], x[highest]
    thin[kept] = probability[kept]
    return thin


def _filtered(maps: Floats, axis: int, weights: Sequence[float]) -> Floats:
    """Correlate maps with weights along an axis, which loses what they reach beyond its ends."""
    along = np.moveaxis(maps, axis, 0)
    length = len(along) - len(weights) + 1
    total = sum(w * along[i : i + length] for i, w in enumerate(weights) if w)
    return np.moveaxis(np.asarray(total), 0, axis)


def _interpolated(maps: Floats, frame: Ints, y: Floats, x: Floats) -> Floats:
    """Read maps (B, H, W) bilinearly at places in pixels, moved into the frame."""
    height, width = maps.shape[1:]
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    top, left = y.astype(np.int64), x.astype(np.int64)
    down, right = y - top, x - left
    flat, below = maps.reshape(-1), np.where(top < height - 1, width, 0)
    beside = (left < width - 1).astype(np.int64)
    corner = (frame * height + top) * width + left
    upper = flat[corner] * (1 - right) + flat[corner + beside] * right
    corner += below
    lower = flat[corner] * (1 - right) + flat[corner + beside] * right
    return np.asarray(upper * (1 - down) + lower * down)


def _counts_of_frame(
    thin: Floats, true: NDArray[np.bool_], levels: Floats, tolerance: float
) -> tuple[Ints, Ints]:
    """Count matched and predicted pixels (K,) of one frame at ascending thresholds (K,).

    Pixels enter the matching in descending order of their probability, each by a path that leaves
    all earlier ones matched. One that finds no path never will, so the matching is the largest at
    every threshold on the way (matched sets are the independent sets of a transversal matroid).
    """
    y, x = np.nonzero(thin >= levels[0])
    level = np.searchsorted(levels, thin[y, x], side="right")  # number of thresholds it reaches
    order = np.argsort(-level, kind="stable")
    y, x, level = y[order], x[order], level[order]
    partners = _partners(y, x, true, tolerance * math.hypot(*true.shape))
    success = _matchable(partners, count=int(true.sum()))

    def reaching(levels_of: Ints) -> Ints:
        per_level = np.bincount(levels_of, minlength=len(levels) + 1)[1:]
        return np.asarray(per_level[::-1].cumsum()[::-1].copy())

    return reaching(level[success]), reaching(level)


def _partners(y: Ints, x: Ints, true: NDArray[np.bool_], distance: float) -> list[list[int]]:
    """List the numbers of the true pixels within a distance of each place, nearest first."""
    reach = int(distance + 1e-9)
    steps = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    squares = (steps**2).sum(0)
    nearest = np.argsort(squares, kind="stable")
    steps = steps[:, nearest[squares[nearest] <= (distance + 1e-9) ** 2]]
    numbers = np.full(true.shape, -1)
    numbers[true] = np.arange(true.sum())
    numbers = np.pad(numbers, reach, constant_values=-1)
    near = numbers[y[:, None] + steps[0] + reach, x[:, None] + steps[1] + reach]
    there = near >= 0
    flat, ends = near[there].tolist(), there.sum(1).cumsum().tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _matchable(partners: list[list[int]], *, count: int) -> NDArray[np.bool_]:
    """Find which predicted pixels can be matched, each beside those before it.

    Args:
        partners: Predicted pixel -> numbers of the true pixels that it may be matched with.
        count: Number of true pixels.
    """
    held_by = [-1] * count  # true pixel -> its predicted pixel, or -1
    holds = [-1] * len(partners)  # predicted pixel -> its true pixel, or -1
    # True pixels from which no free one can be reached, neither now nor later.
    closed: set[int] = set()
    return np.array(
        [bool(near) and _match(i, partners, held_by, holds, closed)
         for i, near in enumerate(partners)], bool
    )  # fmt: skip


def _match(
    start: int,
    partners: list[list[int]],
    held_by: list[int],
    holds: list[int],
    closed: set[int],
) -> bool:
    """Match one more predicted pixel along the shortest augmenting path, if there is one."""
    came_from: dict[int, int] = {}  # true pixel -> predicted pixel
    queue = [start]
    for predicted in queue:
        for pixel in partners[predicted]:
            if pixel in came_from or pixel in closed:
                continue
            came_from[pixel] = predicted
            if held_by[pixel] < 0:
                while pixel >= 0:
                    giver = came_from[pixel]
                    held_by[pixel] = giver
                    holds[giver], pixel = pixel, holds[giver]
                return True
            queue.append(held_by[pixel])
    closed.update(came_from)
    return False
