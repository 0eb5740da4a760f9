"""Rendered rooms: exact labels, one frame for one index, classes that colour does not tell."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, ensure_pack, open_pack, scenes
from gatesearch.datasets.raycast import Camera, Solids, cast
from gatesearch.datasets.scene_layout import CLASSES, TEXTURES, Paints, Scene, random_scene
from gatesearch.errors import UsageError
from gatesearch.events import Warned
from gatesearch.methods import build_model
from gatesearch.trials.data import open_data


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


def test_frames_stay_as_they_were_with_and_without_further_labels():
    # of gatesearch at version 1 of the scenes, before there were further labels
    before = "f0432cd86aa3335c4a0c75dd7ae3d72b4b5291ce2d0385a0828769206cce82a5"
    frame = scenes.render(3, split="train")
    assert digest(frame) == before
    more = scenes.render(3, split="train", further=("texture", "light", "reflectance"))
    assert more.keys() - frame.keys() == scenes.FURTHER.keys()
    assert digest({key: more[key] for key in frame}) == before


def empty_room(*, kind, lamps, camera=(0.0, -1.0, 0.0)):
    """A room of 4 x 2 x 4 metres whose walls have one paint, seen straight ahead."""
    none = np.zeros((0, 3), np.float32)
    return Scene(
        solids=Solids(
            room=np.array([(-2, -2, -2), (2, 0, 2)], np.float32),
            centres=none, halves=none, yaws=none[:, 0], balls=none, radii=none[:, 0],
        ),
        camera=Camera(np.array(camera, np.float32), np.eye(3, dtype=np.float32), np.pi / 2),
        pictures=np.zeros((0, 2, 3), np.float32),
        classes=np.full(6, CLASSES.index("wall"), np.uint8),
        paint=np.zeros(6, np.intp),
        paints=Paints(
            kind=np.array([kind]),
            # (2, 3, 1): dark 0.1, 0.2, 0.3 and light 0.7, 0.8, 0.9
            colours=np.array([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]], np.float32)[..., None],
            waves=np.ones((3, 1), np.float32),
            phase=np.zeros((3, 1), np.float32),
        ),
        lights=np.array(lamps, np.float32),
        strengths=np.ones((len(lamps), 3), np.float32),
        ambient=0.3,
    )  # fmt: skip


def test_reflectance_and_texture_of_a_checkered_wall():
    # The wall ahead is 2 metres off. Pixels of a 4 x 4 frame look at x = -1.5, -0.5, 0.5, 1.5 and
    # y = -1 + (-1.5 ... 1.5): the upper and the lower row meet ceiling and floor. Cells of 1 metre.
    scene = empty_room(kind=TEXTURES.index("checker"), lamps=[(0, -1.9, 0)])
    labels, _ = scenes.trace(scene, (4, 4), ("texture", "reflectance"))
    assert (labels["texture"] == TEXTURES.index("checker")).all()
    # floor of (x, y, z) = (-1.5, -1.5, 2) is (-2, -2, 2), of sum -2, which is even: the dark one
    wall = np.array([[0.2, 0.8, 0.2, 0.8], [0.8, 0.2, 0.8, 0.2]])
    np.testing.assert_allclose(labels["reflectance"][1:3], wall, atol=1e-6)
    assert "light" not in labels
    plain, _ = scenes.trace(empty_room(kind=0, lamps=[(0, -1.9, 0)]), (4, 4), ("reflectance",))
    np.testing.assert_allclose(plain["reflectance"], 0.2, atol=1e-6)


def test_light_comes_from_the_lamp_or_from_between_two():
    # the middle pixel of 3 x 3 meets the wall at (0, -1, 2); the lamp is 1 to the right, 2 nearer
    one, _ = scenes.trace(empty_room(kind=0, lamps=[(1, -1, 0)]), (3, 3), ("light",))
    np.testing.assert_allclose(one["light"][1, 1], np.array([1, 0, -2]) / 5**0.5, atol=1e-6)
    both = [(1, -1, 0), (-1, -1, 0)]
    two, _ = scenes.trace(empty_room(kind=0, lamps=both), (3, 3), ("light",))
    np.testing.assert_allclose(two["light"][1, 1], (0, 0, -1), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(two["light"], axis=-1), 1, atol=1e-5)


def test_a_pack_has_the_further_labels_that_a_study_has_tasks_for(tmp_path):
    extra = ["tasks.texture.kind=semseg", "tasks.texture.classes=4"]
    extra += ["tasks.lamp.kind=normals", "tasks.lamp.label=light"]
    study = load_study("scenes", [*SMALL, *extra])
    pack = ensure_pack(DATASETS["scenes"], study, data=tmp_path, emit=lambda event: None)
    assert pack.name == "scenes-v1-8x8-2-1-light-texture"
    assert {*pack.label_fields} == {"semseg", "depth", "normals", "edges", "light", "texture"}
    assert pack.entry("texture").class_names == TEXTURES
    usual = ensure_pack(
        DATASETS["scenes"], load_study("scenes", SMALL), data=tmp_path, emit=lambda event: None
    )
    assert usual.name == "scenes-v1-8x8-2-1"
    assert {*usual.label_fields} == {"semseg", "depth", "normals", "edges"}


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


def test_steps_of_the_study_scenes_rich_lower_the_loss_of_every_task(tmp_path):
    torch.manual_seed(0)
    small = ["data.train_frames=6", "data.test_frames=1", "data.validation=2"]
    small += ["training.batch_size=4"]
    study = load_study("scenes-rich", small)
    opened = open_data(study, data=tmp_path, emit=lambda event: None)
    batch = next(opened.train.in_order(len(opened.train)))
    network = build_model(study, "mtl")
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    history = []
    for _ in range(10):
        predictions = network(batch["image"].float() / 255)
        losses = {
            name: task.loss(predictions[name], batch[name]) for name, task in opened.tasks.items()
        }
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert {task for task in study.tasks if history[-1][task] < history[0][task]} == {*study.tasks}
