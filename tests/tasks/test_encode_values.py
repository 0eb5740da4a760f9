"""Stored values replaced by those of the pack, whatever their element type."""

import numpy as np
import pytest

from gatesearch.tasks.labels import encode_values

CODES = {0: 3, 7: 0, 255: 255, 300: 1}


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<i8", "f4", "f8"])
def test_values_of_every_type_become_the_same(dtype: str) -> None:
    raw = np.array([[0, 7, 255], [7, 7, 0]]).astype(dtype)
    encoded = encode_values(raw, CODES, what="must")
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[3, 0, 255], [0, 0, 3]]


@pytest.mark.parametrize("dtype", ["u1", "<u2", "<i4", "f4"])
def test_other_values_are_named_with_their_pixels(dtype: str) -> None:
    raw = np.array([[0, 9, 9], [7, 200, 0]]).astype(dtype)
    with pytest.raises(ValueError, match=r"^must, found 9 \(2 pixels\), 200 \(1 pixels\)$"):
        encode_values(raw, CODES, what="must")


def test_true_and_false_are_1_and_0() -> None:
    assert encode_values(np.array([True, False]), {0: 5, 1: 6}, what="").tolist() == [6, 5]


def test_nothing_stays_nothing() -> None:
    assert encode_values(np.zeros((0, 3), np.uint8), CODES, what="").shape == (0, 3)
