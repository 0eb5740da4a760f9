"""Thins regions of a mask to lines of one pixel."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

# Neighbours of a pixel counter-clockwise from the right, x1 to x8: (down, right).
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(mask: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Thin the regions of a mask (H, W) until nothing changes; what is outside counts as empty.

    Two passes by turns remove all pixels at once whose neighbours x1 to x8 satisfy G1, G2 and G3
    (G3' in the second pass):

    * G1: Σ_i [x_{2i-1} = 0 and (x_{2i} or x_{2i+1})] = 1, so that no region breaks
    * G2: 2 <= min(Σ_i (x_{2i-1} or x_{2i}), Σ_i (x_{2i} or x_{2i+1})) <= 3, so that ends stay
    * G3: not ((x2 or x3 or not x8) and x1); G3': not ((x6 or x7 or not x4) and x5)

    Source: Lam, Lee, Suen, "Thinning methodologies", 1992; `thin` of scikit-image does the same.

    >>> thin(np.ones((3, 5))).tolist()
    [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    thinned = np.pad(mask.astype(bool), 1)
    changed = True
    while changed:
        changed = False
        for removable in _REMOVABLE:
            remove = thinned[1:-1, 1:-1] & removable[_patterns(thinned)]
            changed |= bool(remove.any())
            thinned[1:-1, 1:-1] &= ~remove
    return thinned[1:-1, 1:-1].astype(np.uint8)


def _patterns(padded: Mask) -> NDArray[np.uint8]:
    """Neighbours of each pixel as the bits of a number, x1 the lowest."""
    height, width = padded.shape[0] - 2, padded.shape[1] - 2
    patterns = np.zeros((height, width), np.uint8)
    for bit, (down, right) in enumerate(_NEIGHBOURS):
        neighbour = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        patterns |= neighbour.astype(np.uint8) << np.uint8(bit)
    return patterns


def _removable() -> tuple[Mask, Mask]:
    """Whether a pixel goes in either pass, by the pattern of its neighbours, (256,) each."""
    x = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    odd, even, after = x[:, 0::2], x[:, 1::2], np.roll(x[:, 0::2], -1, axis=1)
    ends = np.minimum((odd | even).sum(1), (even | after).sum(1))
    both = ((~odd & (even | after)).sum(1) == 1) & (ends >= 2) & (ends <= 3)
    first = ~((x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0])
    second = ~((x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4])
    return both & first, both & second


_REMOVABLE = _removable()
