"""A frame of a folder in the encodings of its tasks; all faults of its files at once."""

import math
import pickle

import numpy as np
import pytest
from PIL import Image

from gatesearch.datasets.folder.frame import FrameReader, examine_frame, read_frame
from gatesearch.datasets.folder.listing import ListedFrame
from gatesearch.datasets.folder.options import FolderOptions, FolderSource
from gatesearch.errors import DataError
from gatesearch.study import TaskSpec
from gatesearch.tasks import build_tasks
from tests.datasets.folder.toys import mask, photo

TASKS = build_tasks(
    {
        "things": TaskSpec(kind="semseg", classes=3, ignore=9),
        "colour": TaskSpec(kind="classification", classes=["red", "green"]),
        "age": TaskSpec(kind="regression"),
        "looks": TaskSpec(kind="attributes", names=["tall", "glasses"], negative=-1),
        "spot": TaskSpec(kind="keypoints", count=2),
    }
)


def source(root, *, size=(12, 16), fit="stretch"):
    return FolderSource(
        name="own", root=root, options=FolderOptions(images="*.png", fit=fit), validation=0,
        tasks=TASKS, labels=dict.fromkeys(TASKS, ""), class_names=dict.fromkeys(TASKS, ()),
        size=size,
    )  # fmt: skip


def frame(root, **labels):
    return ListedFrame("f", root / "f.png", labels)


def test_every_label_is_stored_in_the_encoding_of_its_task(tmp_path):
    photo(seed=3).save(tmp_path / "f.png")
    classes = np.asarray(mask(seed=3)).copy()
    classes[0] = 9
    Image.fromarray(classes).save(tmp_path / "m.png")
    labels = {
        "things": tmp_path / "m.png", "colour": ("green",), "age": ("3.5",),
        "looks": ("-1", ""), "spot": ("0", "0", "15", "11"),
    }  # fmt: skip
    reader = FrameReader(source(tmp_path), (frame(tmp_path, **labels),))
    fields = read_frame(pickle.loads(pickle.dumps(reader)), 0)
    np.testing.assert_array_equal(fields["image"], photo(seed=3))
    np.testing.assert_array_equal(fields["things"][1:], classes[1:])
    assert (fields["things"][0] == 255).all()
    assert fields["colour"] == 1
    assert fields["age"].tolist() == [3.5]
    assert fields["looks"].tolist() == [0, 255]
    # Centres of the first and the last pixel, from border to border.
    assert fields["spot"][:, :2].tolist() == [
        pytest.approx([-15 / 16, -11 / 12]), pytest.approx([15 / 16, 11 / 12])]  # fmt: skip
    for name, task in TASKS.items():
        assert fields[name].dtype == np.dtype(task.storage.dtype)
        assert fields[name].shape == task.storage.shape((12, 16))


def test_a_frame_without_labels_has_unknown_ones(tmp_path):
    photo().save(tmp_path / "f.png")
    fields = examine_frame(source(tmp_path), frame(tmp_path)).fields
    assert (fields["things"] == 255).all()
    assert fields["colour"] == -1
    assert math.isnan(fields["age"][0])
    assert fields["looks"].tolist() == [255, 255]
    assert np.isnan(fields["spot"]).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_points_follow_the_fit(tmp_path, fit):
    """The point at the centre of a wide image stays there; one at its corner follows."""
    photo(16, 32).save(tmp_path / "f.png")
    labels = {"spot": ("15.5", "7.5", "0", "0")}
    own = source(tmp_path, size=(16, 16), fit=fit)
    spot = examine_frame(own, frame(tmp_path, **labels)).fields["spot"]
    assert spot[0].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    corner = {"stretch": (-31 / 32, -15 / 16), "pad": (-31 / 32, -15 / 32)}
    if fit == "crop":
        assert spot[1, 2] != 1  # it was cut off
    else:
        assert spot[1, :2].tolist() == pytest.approx(corner[fit], abs=1e-6)


def test_all_faults_of_a_frame_are_told_at_once(tmp_path):
    photo().save(tmp_path / "f.png")
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(tmp_path / "m.png")
    labels = {
        "things": tmp_path / "m.png", "colour": ("blue",), "age": ("old",),
        "looks": ("2", "1"), "spot": ("99", "0", "", ""),
    }  # fmt: skip
    report = examine_frame(source(tmp_path), frame(tmp_path, **labels))
    told = {fault.place: fault.found for fault in report.faults}
    assert set(told) == {"m.png", *(f"tasks.{n} of 'f'" for n in labels if n != "things")}
    assert "found 7 (192 pixels)" in told["m.png"]
    assert "red, green" in told["tasks.colour of 'f'"]
    assert "found 'blue'" in told["tasks.colour of 'f'"]
    assert "found 'old'" in told["tasks.age of 'f'"]
    assert "found 99" in told["tasks.spot of 'f'"]
    with pytest.raises(DataError, match=r"m\.png: values must be 0 to 2, or 9 where"):
        read_frame(FrameReader(source(tmp_path), (frame(tmp_path, **labels),)), 0)


def test_labels_are_checked_though_the_image_cannot_be_read(tmp_path):
    (tmp_path / "f.png").write_text("no image")
    Image.fromarray(np.full((12, 16), 7, np.uint8)).save(tmp_path / "m.png")
    report = examine_frame(source(tmp_path), frame(tmp_path, things=tmp_path / "m.png"))
    assert [fault.place for fault in report.faults] == ["f.png", "m.png"]
