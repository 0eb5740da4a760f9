"""Stored values become those of the pack, however they are counted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from gatesearch.tasks.labels import encode_values

CODES = {0: 0, 7: 1, 200: 2, 255: 255}


@given(raw=arrays.arrays(np.uint8, arrays.array_shapes(min_side=0, max_dims=3)))
def test_bytes_are_encoded_as_other_numbers_are(raw):
    results = []
    for values in (raw, raw.astype(np.int32)):
        try:
            results.append(encode_values(values, CODES, what="rule").tolist())
        except ValueError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_by_hand(dtype):
    encoded = encode_values(np.array([[7, 200], [255, 0]], dtype), CODES, what="rule")
    assert encoded.dtype == np.uint8
    assert encoded.tolist() == [[1, 2], [255, 0]]
    with pytest.raises(ValueError, match=r"rule, found 1 \(2 pixels\), 3 \(1 pixels\)"):
        encode_values(np.array([3, 1, 7, 1], dtype), CODES, what="rule")


@given(raw=arrays.arrays(np.dtype("<u2"), arrays.array_shapes(min_side=0, max_dims=2)))
def test_16_bits_are_encoded_as_other_numbers_are(raw):
    small = raw % 201
    codes = {value: value % 7 for value in range(201)}
    expected = encode_values(small.astype(np.int64), codes, what="rule")
    for stored in (small, small.astype(">u2")):
        np.testing.assert_array_equal(encode_values(stored, codes, what="rule"), expected)


def test_true_and_false_are_1_and_0():
    assert encode_values(np.array([True, False]), {0: 5, 1: 6}, what="").tolist() == [6, 5]
