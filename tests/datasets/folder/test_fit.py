"""Frames brought to the protocol's size: exact geometry, padding without labels."""

import numpy as np
import pytest
import torch

from gatesearch.datasets.folder.fit import fit_image, fit_labels, fit_row, place
from gatesearch.tasks import build_task
from gatesearch.tasks.labels import IGNORE

SEMSEG = build_task("semseg", {"classes": 200}, where="here")
DEPTH = build_task("depth", {}, where="here")
NORMALS = build_task("normals", {}, where="here")


def marked(height: int, width: int) -> torch.Tensor:
    """Labels that say where each pixel is."""
    return torch.arange(height * width, dtype=torch.uint8).reshape(1, height, width)


def test_crop_takes_the_largest_centred_window():
    labels = marked(4, 10)
    fitted = fit_labels(labels, SEMSEG, place((4, 10), (4, 4), "crop"))
    assert torch.equal(fitted, labels[:, :, 3:7])
    tall = fit_labels(marked(10, 4), SEMSEG, place((10, 4), (2, 4), "crop"))
    assert torch.equal(tall, marked(10, 4)[:, 4:6])


def test_pad_shows_all_of_the_frame_and_leaves_the_rest_without_labels():
    placement = place((4, 8), (8, 8), "pad")
    fitted = fit_labels(marked(4, 8), SEMSEG, placement)
    assert torch.equal(fitted[:, 2:6], marked(4, 8))
    assert (fitted[:, :2] == IGNORE).all()
    assert (fitted[:, 6:] == IGNORE).all()
    for task, channels in ((DEPTH, ()), (NORMALS, (3,))):
        ones = torch.ones(1, *channels, 4, 8)
        padded = fit_labels(ones, task, placement)
        assert padded.shape == (1, *channels, 8, 8)
        assert (padded[..., :2, :] == task.unknown_value).all()
        assert (padded[..., 2:6, :] != task.unknown_value).all()


def test_what_is_padded_has_the_mean_colour():
    image = torch.zeros(1, 3, 2, 4, dtype=torch.uint8)
    image[:, 0, :, :2], image[:, 2] = 200, 7
    fitted = fit_image(image, place((2, 4), (4, 4), "pad"))
    assert torch.equal(fitted[:, :, 1:3], image)
    assert fitted[0, :, 0, 0].tolist() == [100, 0, 7]
    assert (fitted[..., 0, :] == fitted[..., 3, :]).all()


def test_stretch_changes_the_aspect_and_leaves_depth_as_it_is():
    depth = torch.tensor([[[1.0, 2.0]]])
    fitted = fit_labels(depth, DEPTH, place((1, 2), (2, 4), "stretch"))
    assert torch.equal(fitted, torch.tensor([[[1.0, 1.0, 2.0, 2.0]] * 2]))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad", "none"])
def test_a_frame_of_the_protocols_size_is_not_changed(fit):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 5, 7), np.uint8))
    placement = place((5, 7), (5, 7), fit)
    assert placement.is_whole
    assert torch.equal(fit_image(image, placement), image)
    assert torch.equal(fit_labels(marked(5, 7), SEMSEG, placement), marked(5, 7))


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("frame", [(1, 1), (1, 50), (50, 1), (31, 33), (480, 640)])
def test_any_size_becomes_the_protocols(fit, frame):
    placement = place(frame, (24, 32), fit)
    image = torch.full((1, 3, *frame), 9, dtype=torch.uint8)
    assert torch.equal(
        fit_image(image, placement), torch.full((1, 3, 24, 32), 9, dtype=torch.uint8)
    )
    labels = fit_labels(torch.ones(1, *frame, dtype=torch.uint8), SEMSEG, placement)
    assert labels.shape == (1, 24, 32)
    assert (labels == 1).any()


class Places:
    """Stands for a kind whose labels are places in the image, from -1 to 1."""

    def transform_labels(self, target, warp):
        return target @ warp.matrix[:, :, :2].transpose(1, 2) + warp.matrix[:, None, :, 2]


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("frame", [(40, 60), (60, 40), (48, 64)])
def test_places_follow_the_pixels(fit, frame):
    """A bright spot and its place stay together."""
    height, width = frame
    y, x = height // 2 - 3, width // 2 + 4
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[..., y - 2 : y + 3, x - 2 : x + 3] = 255
    placement = place(frame, (24, 32), fit)
    fitted = fit_image(image, placement)[0, 0].float()
    if fit == "pad":
        fitted = torch.where(fitted > 30, fitted, 0)
    rows, columns = torch.arange(24) + 0.5, torch.arange(32) + 0.5
    centre = [float((fitted.sum(0) * columns).sum() / fitted.sum()),
              float((fitted.sum(1) * rows).sum() / fitted.sum())]  # fmt: skip
    label = torch.tensor([[[2 * (x + 0.5) / width - 1, 2 * (y + 0.5) / height - 1]]])
    place_now = fit_row(label, Places(), placement)[0, 0]
    assert ((place_now + 1) / 2 * torch.tensor([32, 24])).tolist() == pytest.approx(centre, abs=0.2)
