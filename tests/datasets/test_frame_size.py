"""One rule of resampling: a pack prepared at a size holds what a study would resize it to."""

import numpy as np
import pytest
import torch

from gatesearch.datasets import DATASETS, PackRequest, open_pack
from gatesearch.datasets.frame_size import resize_frame, resize_image
from gatesearch.tasks import TASKS
from gatesearch.tasks.labels import to_array
from gatesearch.training import SplitData
from tests.nyud_layouts import SIZE, write_nyud_mt

TASKS_OF_FRAME = {kind: TASKS[kind](classes=40) for kind in ("semseg", "depth", "normals", "edges")}


def test_by_hand() -> None:
    frame = {
        "image": np.full((4, 4, 3), 7, np.uint8),
        "semseg": np.array([[1, 1, 2, 2], [1, 3, 2, 4], [5, 5, 6, 6], [5, 7, 6, 8]], np.uint8),
        "depth": np.arange(16, dtype=np.float32).reshape(4, 4),
        "normals": np.zeros((4, 4, 3), np.float32),
        "edges": np.zeros((4, 4), np.uint8),
    }
    frame["edges"][0, 1] = 1
    frame["normals"][:, :2] = 0, 0, -1
    frame["normals"][0, 2] = 0, -1, 0  # the only known one on the right
    half = resize_frame(frame, (2, 2), TASKS_OF_FRAME)
    assert half["image"].tolist() == [[[7] * 3] * 2] * 2
    # Centres of 2 x 2 blocks fall on the block's lower right pixel.
    assert half["semseg"].tolist() == [[3, 4], [7, 8]]
    assert half["depth"].tolist() == [[5, 7], [13, 15]]
    assert half["edges"].tolist() == [[1, 0], [0, 0]]
    # A quarter of the upper right block is known, none of the lower right one.
    assert half["normals"][:, 1].tolist() == [[0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(np.linalg.norm(half["normals"][:, 0], axis=-1), 1, atol=1e-6)
    double = resize_frame(frame, (8, 8), TASKS_OF_FRAME)
    np.testing.assert_array_equal(double["edges"], frame["edges"].repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(double["depth"], frame["depth"].repeat(2, 0).repeat(2, 1))


def test_images_are_averaged_and_rounded() -> None:
    # Weights of the triangle of width 4 on its pixels, 1/8 3/8 3/8 1/8, cut off at the border.
    row = torch.tensor([0, 0, 0, 0, 80, 80, 80, 80], dtype=torch.uint8)
    small = resize_image(row.expand(1, 3, 2, 8).contiguous(), (1, 4))
    assert small.dtype == torch.uint8
    assert small[0, 0].tolist() == [[0, 10, 70, 80]]


def test_edges_survive_any_shrinking() -> None:
    frame = {"image": np.zeros((7, 11, 3), np.uint8)}
    for row in range(7):
        for column in range(11):
            edges = np.zeros((7, 11), np.uint8)
            edges[row, column] = 1
            assert resize_frame(frame | {"edges": edges}, (3, 4), TASKS_OF_FRAME)["edges"].any()


def test_a_frame_of_that_size_is_left_alone() -> None:
    frame = {"image": np.zeros((3, 4, 3), np.uint8), "depth": np.ones((3, 4))}
    assert resize_frame(frame, (3, 4), {}) is frame


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (12, 10), SIZE])
def test_preparing_at_a_size_equals_resizing_at_reading(tmp_path, size) -> None:
    source = write_nyud_mt(tmp_path / "release", edges=True)
    packs = [
        open_pack(
            DATASETS["nyud"].prepare(
                folder=tmp_path / name, source=source, request=PackRequest(prepared),
                emit=lambda event: None,
            )
        )
        for name, prepared in (("whole", None), ("resized", size))
    ]  # fmt: skip
    assert [pack.size for pack in packs] == [SIZE, size]
    tasks = {name: TASKS[name](classes=40) for name in packs[0].fields if name != "image"}
    for split in ("train", "test"):
        rows = range(packs[0].frames(split))
        frames = SplitData(packs[0], split, indices=rows, tasks=tasks, size=size)
        for field, tensor in frames.batch(torch.arange(len(rows))).items():
            stored = packs[1].array(split, field)
            # Normals are stored in half precision; everything else is stored as it is read.
            np.testing.assert_array_equal(stored, to_array(tensor).astype(stored.dtype))
