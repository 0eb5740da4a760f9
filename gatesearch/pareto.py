"""Pareto fronts and hypervolumes, with numpy alone.

`_minimised` turns all objectives into ones to minimise; the private functions after it minimise.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gatesearch.errors import UsageError


def pareto_front(points: ArrayLike, maximize: Sequence[bool]) -> list[int]:
    """Find the points that no other point dominates.

    A point dominates another if it is at least as good in every objective and better in one. So
    equal points do not dominate each other.

    Args:
        points: Shape (n, m), one row per point.
        maximize: For each of the m objectives, whether larger is better.

    Returns:
        Their indices, ascending.

    Raises:
        UsageError: Shapes that do not fit, or a NaN, which is neither better nor worse.

    >>> pareto_front([[3.0, 900.0], [2.0, 900.0], [1.0, 700.0]], [True, False])
    [0, 2]
    """
    costs = _minimised(points, maximize)
    if np.isnan(costs).any():
        raise UsageError(
            f"points must not hold NaN, found {_rows(np.isnan(costs))}; leave them out"
        )
    return _front(costs)


def hypervolume(points: ArrayLike, reference: Sequence[float], maximize: Sequence[bool]) -> float:
    """Compute the volume of the region between the points and the reference that they dominate.

    Exact for any number of objectives: the region is cut into slabs along the last objective, and
    each is a hypervolume of one objective fewer (While et al., "A Faster Algorithm for Calculating
    Hypervolume", 2006). Only points that are better than the reference in every objective count.

    Args:
        points: Shape (n, m), one row per point.
        reference: The m values of a point that is worse than every point of interest.
        maximize: For each of the m objectives, whether larger is better.

    Returns:
        The volume in the product of the objectives' units; 0.0 without points.

    Raises:
        UsageError: Shapes that do not fit, or values that are not finite.

    >>> hypervolume([[2.0, 1.0], [1.0, 2.0]], [0.0, 0.0], [True, True])
    3.0
    """
    costs = _minimised(points, maximize)
    corner = _minimised([list(reference)], maximize)[0]
    if not np.isfinite(costs).all():
        raise UsageError(f"points must be finite, found {_rows(~np.isfinite(costs))}")
    if not np.isfinite(corner).all():
        raise UsageError(f"reference must be finite, found {list(reference)}")
    inside = costs[(costs < corner).all(axis=1)]
    return _volume(inside[_front(inside)], corner)


def _minimised(points: ArrayLike, maximize: Sequence[bool]) -> NDArray[np.float64]:
    """Check the shape of points, and negate the objectives that are maximised."""
    costs = np.array(points, dtype=np.float64)
    m = len(maximize)
    if m == 0:
        raise UsageError("maximize must name at least one objective, found none")
    if costs.size == 0:
        return costs.reshape(0, m)
    if costs.ndim != 2 or costs.shape[1] != m:
        raise UsageError(f"points must have the shape (n, {m}), found {costs.shape}")
    costs[:, np.asarray(maximize, dtype=bool)] *= -1
    return costs


def _front(costs: NDArray[np.float64]) -> list[int]:
    # In lexicographic order, no point is dominated by a later one.
    kept = np.empty_like(costs)
    chosen: list[int] = []
    for i in np.lexsort(costs.T[::-1]):
        front = kept[: len(chosen)]
        no_worse = (front <= costs[i]).all(axis=1)
        if not (no_worse & (front < costs[i]).any(axis=1)).any():
            kept[len(chosen)] = costs[i]
            chosen.append(int(i))
    return sorted(chosen)


def _volume(costs: NDArray[np.float64], corner: NDArray[np.float64]) -> float:
    if len(costs) == 0:
        return 0.0
    if costs.shape[1] == 1:
        return float(corner[0] - costs[:, 0].min())
    costs = costs[np.argsort(costs[:, -1], kind="stable")]
    heights = np.diff(costs[:, -1], append=corner[-1])
    volume = 0.0
    for count, height in enumerate(heights, start=1):
        if height > 0:
            slab = costs[:count, :-1]
            volume += float(height) * _volume(slab[_front(slab)], corner[:-1])
    return volume


def _rows(bad: NDArray[np.bool_]) -> str:
    return "rows " + ", ".join(str(i) for i in np.flatnonzero(bad.any(axis=1)))
