"""Rendered rooms: exact labels, one frame for one index, classes that colour does not tell."""

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, ensure_pack, open_pack, scenes
from gatesearch.datasets.raycast import cast
from gatesearch.datasets.scene_layout import CLASSES, random_scene
from gatesearch.errors import UsageError
from gatesearch.events import Warned


def digest(frame):
    parts = [frame[key].tobytes() for key in sorted(frame)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def pinhole(shape, fov):
    """Rays (H, W, 3) with z = 1 through pixel centres, written out apart from the renderer."""
    height, width = shape
    focal = height / 2 / np.tan(fov / 2)
    rows, columns = np.mgrid[:height, :width]
    return np.stack(
        [
            (columns + 0.5 - width / 2) / focal,
            (rows + 0.5 - height / 2) / focal,
            np.ones(shape),
        ],
        axis=-1,
    )


@settings(max_examples=12, deadline=None)
@given(
    index=st.integers(0, 10**6),
    split=st.sampled_from(["train", "test"]),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
)
def test_every_frame_is_whole(index, split, size):
    frame = scenes.render(index, split=split, size=size)
    assert {key: (array.dtype.str, array.shape) for key, array in frame.items()} == {
        "image": ("|u1", (*size, 3)),
        "semseg": ("|u1", size),
        "depth": ("<f4", size),
        "normals": ("<f4", (*size, 3)),
        "edges": ("|u1", size),
    }
    assert frame["semseg"].max() < len(CLASSES)
    assert frame["depth"].min() > 0
    assert frame["depth"].max() < 12
    np.testing.assert_allclose(np.linalg.norm(frame["normals"], axis=-1), 1, atol=1e-5)
    assert set(np.unique(frame["edges"])) <= {0, 1}


@pytest.mark.parametrize("seed", range(6))
def test_normals_face_the_camera_and_agree_with_the_depth(seed):
    scene = random_scene(np.random.default_rng(seed))
    labels, _ = scenes.trace(scene, (96, 96))
    rays = pinhole((96, 96), scene.camera.fov)
    assert (np.sum(labels["normals"] * rays, axis=-1) < 0).all()
    points = labels["depth"].astype(float)[..., None] * rays
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    derived = np.cross(down, across)
    derived /= np.linalg.norm(derived, axis=-1, keepdims=True)
    edges = labels["edges"]
    smooth = np.ones((94, 94), bool)
    for i in range(3):
        for j in range(3):
            smooth &= edges[i : 94 + i, j : 94 + j] == 0
    smooth &= labels["semseg"][1:-1, 1:-1] != CLASSES.index("ball")
    cosines = np.sum(derived * labels["normals"][1:-1, 1:-1], axis=-1)[smooth]
    assert smooth.mean() > 0.3
    assert np.rad2deg(np.arccos(np.clip(cosines, -1, 1))).max() < 1.0


@pytest.mark.parametrize("seed", range(4))
def test_edges_sit_exactly_where_the_surface_changes(seed):
    scene = random_scene(np.random.default_rng(seed))
    scene = dataclasses.replace(scene, pictures=scene.pictures[:0])
    labels, _ = scenes.trace(scene, (24, 32))
    hits = cast(scene.solids, scene.camera.position, scene.camera.rays((24, 32)))
    surface = [*zip(hits.solid.tolist(), hits.face.tolist(), strict=True)]
    for row in range(24):
        for column in range(32):
            here = surface[row * 32 + column]
            right = surface[row * 32 + column + 1] if column < 31 else here
            below = surface[(row + 1) * 32 + column] if row < 23 else here
            assert labels["edges"][row, column] == (here != right or here != below)


def test_a_picture_has_the_wall_s_depth_and_normal():
    scene = next(
        scene
        for scene in (random_scene(np.random.default_rng(seed)) for seed in range(50))
        if (scenes.trace(scene, (32, 32))[0]["semseg"] == CLASSES.index("picture")).any()
    )
    labels, _ = scenes.trace(scene, (32, 32))
    bare, _ = scenes.trace(dataclasses.replace(scene, pictures=scene.pictures[:0]), (32, 32))
    changed = labels["semseg"] != bare["semseg"]
    assert (labels["semseg"][changed] == CLASSES.index("picture")).all()
    assert (bare["semseg"][changed] == CLASSES.index("wall")).all()
    np.testing.assert_array_equal(labels["depth"], bare["depth"])
    np.testing.assert_array_equal(labels["normals"], bare["normals"])


def test_a_frame_is_its_index_whatever_is_asked_for(tmp_path):
    alone = digest(scenes.render(3, split="train"))
    in_order = [digest(scenes.render(i, split="train")) for i in range(5)]
    backwards = [digest(scenes.render(i, split="train")) for i in reversed(range(5))]
    assert in_order[3] == alone
    assert backwards[::-1] == in_order
    packs = [
        ensure_pack(
            DATASETS["scenes"],
            load_study(
                "scenes",
                ["protocol.size=[16, 20]", f"data.train_frames={count}", "data.test_frames=2"],
            ),
            data=tmp_path,
            emit=lambda event: None,
        )
        for count in (3, 5)
    ]
    for field in packs[0].fields:
        np.testing.assert_array_equal(
            packs[0].array("train", field), packs[1].array("train", field)[:3]
        )
    assert packs[0].name != packs[1].name


def test_no_frame_is_in_both_splits():
    digests = [
        digest(scenes.render(i, split=split, size=(16, 16)))
        for split in ("train", "test")
        for i in range(30)
    ]
    assert len(set(digests)) == 60


@pytest.fixture(scope="module")
def sample():
    return [scenes.render(i, split="train", size=(48, 48)) for i in range(60)]


def test_all_classes_occur_often_enough_to_learn(sample):
    share = np.mean(
        [np.bincount(frame["semseg"].ravel(), minlength=8) / 48**2 for frame in sample], axis=0
    )
    assert share.min() > 0.01
    assert share.max() < 0.5


def test_colour_alone_does_not_tell_the_class(sample):
    # Nearest mean colour is the best that a look-up by colour with one entry a class does.
    colours = np.concatenate([frame["image"].reshape(-1, 3) for frame in sample]).astype(float)
    truth = np.concatenate([frame["semseg"].ravel() for frame in sample])
    means = np.stack([colours[truth == c].mean(0) for c in range(8)])
    guess = ((colours[:, None] - means) ** 2).sum(-1).argmin(1)
    ious = [
        ((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(8)
    ]
    assert np.mean(ious) < 0.2


SMALL = ["protocol.size=[8, 8]", "data.train_frames=2", "data.test_frames=1"]


def test_a_pack_is_rendered_once_and_again_when_damaged(tmp_path):
    events = []

    def ensure():
        study = load_study("scenes", SMALL)
        return ensure_pack(DATASETS["scenes"], study, data=tmp_path, emit=events.append)

    pack = ensure()
    assert [event.done for event in events] == [1, 2, 3]
    assert {event.total for event in events} == {3}
    events.clear()
    assert ensure().digest == pack.digest
    assert events == []
    path = pack.path("train", "depth")
    path.write_bytes(path.read_bytes()[:-10])
    assert ensure().digest == pack.digest
    assert isinstance(events[0], Warned)
    assert "depth.npy" in events[0].message
    assert open_pack(pack.folder).frames("train") == 2


def test_wrong_use(tmp_path):
    dataset = DATASETS["scenes"]
    given = {"folder": tmp_path, "emit": lambda event: None}
    with pytest.raises(UsageError, match="take no source"):
        dataset.prepare(source=tmp_path, request=PackRequest(), **given)
    with pytest.raises(UsageError, match="at least 2 x 2 pixels, found 1 x 8"):
        dataset.prepare(source=None, request=PackRequest((1, 8)), **given)
    study = load_study("scenes", [*SMALL, "tasks.semseg.classes=5"])
    with pytest.raises(UsageError, match="has 8 classes, the study asks for 5"):
        ensure_pack(dataset, study, data=tmp_path, emit=given["emit"])
