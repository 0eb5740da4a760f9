"""Edges of a label map: thin boundaries, and those of PASCAL-Context."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.thinning import thin


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


def laplacian_edges(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Edges of a map (H, W) as multi-task code makes those of PASCAL-Context, 1 on an edge.

    A pixel counts where 4 times its label differs from the sum of its four neighbours', which are
    mirrored about the pixels of the border; the two-pixel lines that this gives are thinned
    (Maninis et al., 2019; Vandenhende et al., 2021, `data/pascal_context.py`).

    >>> laplacian_edges(np.array([[1, 1, 2, 2]] * 3)).tolist()
    [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    """
    padded = np.pad(labels.astype(np.int64), 1, mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return thin(neighbours != 4 * padded[1:-1, 1:-1])
