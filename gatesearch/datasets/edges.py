"""Edges of a label map."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def boundaries(labels: NDArray[Any], *, ignore: int | None = None) -> NDArray[np.uint8]:
    """Thin boundaries of the regions of a map (H, W): 1 where the right or lower pixel differs.

    Args:
        labels: One number per region.
        ignore: A value that makes no boundary with any other value.

    >>> boundaries(np.array([[1, 1, 2], [1, 1, 2]])).tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    edges = np.zeros(labels.shape, np.uint8)
    for axis in (0, 1):
        here, there = np.swapaxes(labels, 0, axis)[:-1], np.swapaxes(labels, 0, axis)[1:]
        differs = here != there
        if ignore is not None:
            differs &= (here != ignore) & (there != ignore)
        np.swapaxes(edges, 0, axis)[:-1] |= differs
    return edges
