"""Thinning: known results, and properties of every mask."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gatesearch.datasets.edges import laplacian_edges
from gatesearch.datasets.thinning import thin


def test_the_example_of_scikit_image():
    square = np.zeros((7, 7), bool)
    square[1:-1, 2:-2] = True
    square[0, 1] = True
    expected = np.zeros((7, 7), int)
    expected[[0, 1, 2, 3, 4], [1, 2, 3, 3, 3]] = 1
    np.testing.assert_array_equal(thin(square), expected)


def test_lines_of_one_pixel_stay():
    line = np.zeros((5, 9), bool)
    line[2] = True
    np.testing.assert_array_equal(thin(line), line)
    np.testing.assert_array_equal(thin(np.eye(6)), np.eye(6))
    assert not thin(np.zeros((4, 4))).any()


def regions(mask):
    """Number of regions of pixels that touch, also at corners."""
    seen, count = np.zeros(mask.shape, bool), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if seen[start]:
            continue
        count, stack = count + 1, [start]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not seen[y, x]:
                seen[y, x] = True
                stack += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return count


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_no_region_breaks_and_nothing_is_added(mask):
    thinned = thin(mask)
    assert not (thinned.astype(bool) & ~mask).any()
    assert regions(thinned) == regions(mask)
    np.testing.assert_array_equal(thin(thinned), thinned)


def test_edges_by_hand():
    """Both sides of a boundary count, and are thinned to one line."""
    labels = np.full((6, 8), 2)
    labels[:, 4:] = 9
    edges = laplacian_edges(labels)
    assert edges.sum(1).tolist()[1:] == [1] * 5
    assert np.nonzero(edges.any(0))[0].tolist() == [3]
    assert not laplacian_edges(np.full((5, 5), 7)).any()


def test_a_sum_that_cancels_is_no_edge():
    """4 x 2 = 1 + 3 + 2 + 2, as in the code that made the published labels."""
    labels = np.full((3, 3), 2)
    labels[0, 1], labels[2, 1] = 1, 3
    assert laplacian_edges(labels)[1, 1] == 0
