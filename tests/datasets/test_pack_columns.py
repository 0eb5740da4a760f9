"""Columns of a field of a pack: values, names, and which frames have labels."""

import numpy as np
import pytest

from gatesearch.datasets import open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.errors import UsageError
from gatesearch.tasks import build_task

NAMES = ("height", "width", "weight")
VALUES = np.array([[1, 10, 100], [3, 30, np.nan], [np.nan] * 3, [5, 50, 300]], np.float32)


@pytest.fixture
def pack(tmp_path):
    frames = [{"image": np.zeros((2, 2, 3), np.uint8), "body": row} for row in VALUES]
    folder = write_pack(
        tmp_path / "toy-columns",
        dataset="toy",
        size=(2, 2),
        fields={"body": build_task("regression", {"names": NAMES}, where="toy")},
        splits={
            "train": SplitFrames(["a", "b", "c", "d"], iter(frames)),
            "test": SplitFrames(["e"], iter(frames[:1])),
        },
        source="made up",
        emit=lambda event: None,
    )
    return open_pack(folder)


def test_columns_are_read_in_the_order_in_which_they_are_named(pack):
    np.testing.assert_array_equal(pack.array("train", "body:weight,height"), VALUES[:, [2, 0]])
    np.testing.assert_array_equal(pack.array("train", "body"), VALUES)


def test_names_follow_their_columns(pack):
    entry = pack.entry("body:weight,height")
    assert (entry.shape, entry.class_names) == ((2,), ("weight", "height"))
    assert pack.entry("body") == pack.fields["body"]


def test_frames_with_labels_in_any_column_count(pack):
    assert pack.labelled("train", "body:weight").tolist() == [True, True, False, True]
    assert pack.labelled("test", "body:weight") is None  # all frames have labels


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("body:wight", r"unknown column of body in toy-columns 'wight'; did you mean"),
        ("body:", r"unknown column of body in toy-columns ''"),
        ("body:width,width", "named once each, found 'width,width'"),
        ("image:width", "image has no named columns"),
    ],
)
def test_other_columns_are_refused(pack, field, message):
    with pytest.raises(UsageError, match=message):
        pack.entry(field)
    with pytest.raises(UsageError, match=message):
        pack.array("train", field)
