"""Labels follow warps of a scene whose labels are known in closed form at any place of the frame.

A room with a ball and a box is seen by a pinhole camera. What a warped frame must show is computed
by casting rays, not by moving pixels: at the places that the warp reads, or by a turned camera.
"""

import math
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gatesearch.datasets.edges import boundaries
from gatesearch.datasets.raycast import Camera, Solids, cast
from gatesearch.study import AugmentSpec, Study, differences, load_study
from gatesearch.tasks import TASKS, Warp
from gatesearch.tasks.labels import Storage
from gatesearch.training.augment import augment
from gatesearch.training.split_data import LABELLED, MEAN
from gatesearch.training.warping import place

SIZE = (96, 128)
BATCH = 5
SOLIDS = Solids(
    room=np.array([[-2, -2, -1], [2, 1.2, 5]], np.float32),
    centres=np.array([[0.9, 0.7, 3.0]], np.float32),
    halves=np.array([[0.4, 0.5, 0.4]], np.float32),
    yaws=np.array([0.5], np.float32),
    balls=np.array([[-0.6, 0.1, 2.6]], np.float32),
    radii=np.array([0.6], np.float32),
)
CAMERA = Camera(position=np.zeros(3, np.float32), rotation=np.eye(3, dtype=np.float32), fov=1.2)
# Five places of the frame, x and y in -1..1 from border to border.
KEYPOINTS = torch.tensor([[-0.5, -0.4], [0.45, -0.35], [0.0, 0.05], [-0.4, 0.5], [0.5, 0.45]])

PER_IMAGE = Storage("<f4", (5, 2), dense=False)


@dataclass(frozen=True)
class Keypoints:
    """A kind with labels per image, and a record of the warps that it was given."""

    warps: list[Warp] = field(default_factory=list)
    storage: Storage = PER_IMAGE
    unknown_value: float = math.nan

    def transform_labels(self, target: Tensor, warp: Warp) -> Tensor:
        self.warps.append(warp)
        return target @ warp.matrix[:, :, :2].mT + warp.matrix[:, None, :, 2]


def seen(places: Tensor) -> dict[str, Tensor]:
    """Exact labels at places (..., 2) of the frame."""
    height, width = SIZE
    focal = 0.5 * height / math.tan(0.5 * CAMERA.fov)
    x, y = (places.reshape(-1, 2) * torch.tensor([width, height]) / 2 / focal).T.numpy()
    rays = CAMERA.rotation @ np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    hits = cast(SOLIDS, CAMERA.position, rays)
    shape = places.shape[:-1]
    surface = (6 * hits.solid + hits.face).reshape(shape)
    return {
        "semseg": torch.from_numpy(surface.astype(np.uint8)),
        "depth": torch.from_numpy(hits.t.reshape(shape)),
        "normals": torch.from_numpy(
            (CAMERA.rotation.T @ hits.normals).astype(np.float32).reshape(3, *shape)
        ),
    }


def centres() -> Tensor:
    """Places of the pixels, (H, W, 2)."""
    y, x = ((torch.arange(n) + 0.5) * 2 / n - 1 for n in SIZE)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def dots(places: Tensor) -> Tensor:
    """Images (N, 3, H, W) of the mean colour, each with a bright dot at one of places (N, 2)."""
    height, width = SIZE
    offset = (centres() - places[:, None, None]) * torch.tensor([width / 2, height / 2])
    bright = (-offset.square().sum(-1) / (2 * 2.0**2)).exp()
    mean = (torch.tensor(MEAN) * 255)[:, None, None]
    return (mean + (255 - mean) * bright[:, None]).round().byte()


@cache
def frames() -> dict[str, Tensor]:
    labels = {name: values.expand(BATCH, *values.shape) for name, values in seen(centres()).items()}
    edges = torch.from_numpy(boundaries(labels["semseg"][0].numpy()))
    return {
        "image": dots(KEYPOINTS),
        **labels,
        "edges": edges.expand(BATCH, *SIZE),
        "keypoints": KEYPOINTS.expand(BATCH, 5, 2),
        LABELLED: torch.arange(BATCH * 5).reshape(BATCH, 5) % 3 == 0,
    }


OFF = {"flip": False, "zoom": (1.0,), "scale": (1.0, 1.0), "rotate": 0.0}
WAYS = {
    "flip": {"flip": True},
    "zoom": {"zoom": (1.3, 2.0)},
    "enlarged": {"scale": (1.2, 1.6)},
    "shrunk": {"scale": (0.6, 0.8)},
    "rotate": {"rotate": 60.0},
    "crop": {"crop": (0.5, 1.0)},
    "colour": {"colour": {"brightness": 0.1}},
    "all on axes": {
        "flip": True, "zoom": (1.0, 1.3), "scale": (0.8, 1.2), "crop": (0.6, 1.0),
        "colour": {"brightness": 0.1},
    },
    "all": {
        "flip": True, "zoom": (1.0, 1.3), "scale": (0.8, 1.2), "crop": (0.6, 1.0), "rotate": 40.0,
        "colour": {"brightness": 0.1},
    },
}  # fmt: skip


def augmented(way: str, seed: int, by_grid: bool = False) -> tuple[dict[str, Tensor], Warp]:
    """The frames warped, and their warps."""
    options = {**OFF, **WAYS[way]}
    if by_grid and not options["rotate"]:
        options["rotate"] = 1e-30  # a turn far below rounding
    spy = Keypoints()
    tasks = {name: TASKS[name](classes=18) for name in ("semseg", "depth", "normals", "edges")}
    generator = torch.Generator().manual_seed(seed)
    out = augment(frames(), {**tasks, "keypoints": spy}, generator=generator, **options)
    if not spy.warps:  # nothing but colours changed
        return out, unmoved()
    parts = zip(*(vars(warp).values() for warp in spy.warps), strict=True)
    return out, Warp(*(torch.cat(part) for part in parts))


def unmoved() -> Warp:
    return Warp(
        torch.zeros(BATCH, dtype=torch.bool), torch.ones(BATCH), torch.zeros(BATCH),
        torch.eye(2, 3).expand(BATCH, 2, 3),
    )  # fmt: skip


def places_read(warp: Warp) -> Tensor:
    """Where each output pixel is read, (B, H, W, 2)."""
    linear, shift = warp.matrix[:, :, :2].double(), warp.matrix[:, :, 2].double()
    moved = centres().double() - shift[:, None, None]
    return torch.einsum("bij,bhwj->bhwi", linear.inverse(), moved).float()


def near_a_border(surface: Tensor, radius: int) -> Tensor:
    """Pixels of label maps (B, H, W) with another label within a radius."""
    maps = surface[:, None].float()
    side = 2 * radius + 1
    highest = F.max_pool2d(maps, side, 1, radius)
    return (highest != -F.max_pool2d(-maps, side, 1, radius))[:, 0]


@pytest.mark.parametrize("by_grid", [False, True])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("way", WAYS)
def test_every_label_is_that_of_the_place_it_is_read_from(way: str, seed: int, by_grid) -> None:
    out, warp = augmented(way, seed, by_grid)
    places = places_read(warp)
    expected = seen(places)
    inside = (places.abs() < 1 - 1e-4).all(-1)
    outside = (places.abs() > 1 + 1e-4).any(-1)
    assert inside.sum() > 0.2 * inside.numel()

    known = out["semseg"] != 255
    assert known[inside].all()
    assert not known[outside].any()
    # labels come from the nearest pixel, which is another surface's at most near a border of two
    border = near_a_border(expected["semseg"].where(inside, 255), 4)
    within = F.pad(torch.ones(SIZE[0] - 16, SIZE[1] - 16).bool(), (8, 8, 8, 8))
    smooth = inside & ~border & within
    assert smooth.sum() > 0.3 * (inside & within).sum()
    assert (out["semseg"] == expected["semseg"])[smooth].all()
    assert (out["edges"][smooth] == 0).all()
    line = near_a_border(expected["semseg"].where(inside, 255), 1) & within
    line &= ~near_a_border(inside.byte(), 4)
    near_edge = F.max_pool2d((out["edges"] == 1).float(), 7, 1, 3) > 0
    # nearest sampling loses some lines of one pixel where it shrinks them
    assert near_edge[line].float().mean() > (0.85 if way == "shrunk" else 0.95)
    depth = out["depth"] * warp.zoom[:, None, None]
    torch.testing.assert_close(depth[smooth], expected["depth"][smooth], rtol=0.05, atol=0)

    turned = out["normals"].clone()  # take the change of the frame's axes back
    sign = torch.where(warp.flip, -1.0, 1.0)[:, None, None]
    cos, sin = warp.angle.cos()[:, None, None], warp.angle.sin()[:, None, None]
    x, y = sign * out["normals"][:, 0], out["normals"][:, 1]
    turned[:, 0], turned[:, 1] = cos * x - sin * y, sin * x + cos * y
    cosines = (turned * expected["normals"].transpose(0, 1)).sum(1)[smooth]
    assert cosines.min() > 0.98
    assert cosines.mean() > 0.999


@pytest.mark.parametrize("by_grid", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_keypoints_land_where_the_dots_of_the_image_land(way: str, by_grid: bool) -> None:
    pixels = torch.tensor([SIZE[1] / 2, SIZE[0] / 2])
    errors = []
    for seed in range(6):
        out, _ = augmented(way, seed, by_grid)
        for i in range(BATCH):
            expected = out["keypoints"][i, i]
            if expected.abs().max() > 0.8:  # the dot is cut off by the border
                continue
            bright = out["image"][i, 2] - out["image"][i, 2, 0, 0]
            bright = bright * (bright > 0.25 * bright.max())
            found = (bright[..., None] * centres()).sum((0, 1)) / bright.sum()
            errors.append((found - expected) * pixels)
    assert len(errors) > 8
    assert torch.stack(errors).abs().max() < 0.5


@pytest.mark.parametrize("way", [way for way in WAYS if "rotate" not in WAYS[way]])
def test_both_paths_give_the_same(way: str) -> None:
    one, other = augmented(way, 4)[0], augmented(way, 4, by_grid=True)[0]
    assert one.keys() == other.keys()
    for name in ("semseg", "depth", "edges", LABELLED):
        assert torch.equal(one[name], other[name])
    for name in ("image", "normals", "keypoints"):
        torch.testing.assert_close(one[name], other[name], atol=1e-2, rtol=0)


def turned_camera(angle: float) -> Camera:
    """The camera turned about its axis so that the picture turns counter-clockwise."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], np.float32)
    return replace(CAMERA, rotation=CAMERA.rotation @ turn)


@pytest.mark.parametrize("seed", range(3))
def test_a_turned_frame_is_what_a_turned_camera_sees(seed: int) -> None:
    out, warp = augmented("rotate", seed)
    for i, angle in enumerate(warp.angle.tolist()):
        camera = turned_camera(angle)
        hits = cast(SOLIDS, camera.position, camera.rays(SIZE))
        surface = torch.from_numpy((6 * hits.solid + hits.face).reshape(SIZE).astype(np.uint8))
        known = out["semseg"][i] != 255
        smooth = known & ~near_a_border(surface[None], 2)[0]
        assert smooth.sum() > 0.4 * known.numel()
        assert torch.equal(out["semseg"][i][smooth], surface[smooth])
        depth = torch.from_numpy(hits.t.reshape(SIZE))
        torch.testing.assert_close(out["depth"][i][smooth], depth[smooth], rtol=0.05, atol=0)
        normals = torch.from_numpy((camera.rotation.T @ hits.normals).reshape(3, *SIZE))
        assert (out["normals"][i] * normals).sum(0)[smooth].min() > 0.98
        # an edge of the one is an edge of the other, within two pixels
        edges = torch.from_numpy(boundaries(surface.numpy()))
        wide = F.max_pool2d(edges[None].float(), 5, 1, 2)[0] > 0
        assert wide[out["edges"][i] == 1].all()


def test_the_matrix_by_hand() -> None:
    def matrix(*, degrees=0.0, flip=False, window=(1.0, 1.0), shift=(0.0, 0.0), size=(8, 8)):
        one = torch.ones(1)
        return place(
            flip=torch.tensor([flip]), angle=one * math.radians(degrees),
            window=(one * window[0], one * window[1]), shift=(one * shift[0], one * shift[1]),
            size=size,
        ).inverse()[0]  # fmt: skip

    cases = [
        (matrix(), [[1, 0, 0], [0, 1, 0]]),
        (matrix(flip=True), [[-1, 0, 0], [0, 1, 0]]),
        # counter-clockwise: the right border becomes the upper one, that the left one
        (matrix(degrees=90), [[0, 1, 0], [-1, 0, 0]]),
        # in a frame twice as wide as high, the right border comes to lie two heights up
        (matrix(degrees=90, size=(8, 16)), [[0, 0.5, 0], [-2, 0, 0]]),
        # a window of half the width and a quarter of the height about (0.5, -0.25)
        (matrix(window=(0.5, 0.25), shift=(0.5, -0.25)), [[2, 0, -1], [0, 4, 1]]),
        (matrix(window=(0.5, 0.25), shift=(0.5, -0.25), flip=True), [[-2, 0, 1], [0, 4, 1]]),
        # turned first, then stretched, then mirrored
        (matrix(degrees=90, window=(0.5, 0.25), flip=True), [[0, -2, 0], [-4, 0, 0]]),
    ]
    for found, expected in cases:
        torch.testing.assert_close(found, torch.tensor(expected).float(), atol=1e-6, rtol=0)


def test_mirroring_twice_changes_nothing() -> None:
    names = ("semseg", "depth", "normals", "edges")
    tasks = {name: TASKS[name](classes=18) for name in names} | {"keypoints": Keypoints()}
    once, twice = ({**OFF, "flip": True, "generator": torch.Generator()} for _ in range(2))
    once["generator"].manual_seed(0)
    twice["generator"].manual_seed(0)
    first = augment(frames(), tasks, **once)
    second = augment(first, tasks, **twice)
    assert not torch.equal(first["keypoints"], frames()["keypoints"])
    for name in (*names, "keypoints"):
        torch.testing.assert_close(second[name], frames()[name], atol=1e-6, rtol=0)
    assert torch.equal(second["image"], frames()["image"].float())


def test_a_crop_stretches_width_and_height_by_themselves() -> None:
    out, warp = augmented("crop", 0)
    factors = warp.matrix[:, [0, 1], [0, 1]]
    assert ((factors >= 1 - 1e-6) & (factors <= 2 + 1e-6)).all()
    assert (factors[:, 0] / factors[:, 1]).std() > 0.05
    assert not warp.matrix[:, [0, 1], [1, 0]].any()
    assert (out["semseg"] != 255).all()  # never beyond the border
    assert (warp.zoom == 1).all()


def test_crops_are_drawn_from_the_whole_range() -> None:
    spy = Keypoints()
    count = 400
    batch = {"image": torch.zeros(count, 3, 2, 2).byte(), "k": torch.zeros(count, 5, 2)}
    options = {**OFF, "crop": (0.4, 0.8), "rotate": 1e-30}
    augment(batch, {"k": spy}, generator=torch.Generator().manual_seed(0), **options)
    sides = 1 / spy.warps[0].matrix[:, [0, 1], [0, 1]]
    assert sides.min() >= 0.4 - 1e-5
    assert sides.max() <= 0.8 + 1e-5
    assert sides.mean(0).tolist() == pytest.approx([0.6, 0.6], abs=0.02)
    assert abs(float(torch.corrcoef(sides.T)[0, 1])) < 0.15
    # windows lie anywhere in the frame: centres fill what the sides leave free
    centre = -spy.warps[0].matrix[:, :, 2] * sides
    assert ((centre.abs() / (1 - sides)).max(0).values > 0.97).all()
    assert (centre.abs() <= 1 - sides + 1e-5).all()


@pytest.mark.parametrize("by_grid", [False, True])
def test_which_frames_have_labels_stays_as_it_is(by_grid: bool) -> None:
    assert torch.equal(augmented("all on axes", 0, by_grid)[0][LABELLED], frames()[LABELLED])
    still = augment(frames(), {}, generator=torch.Generator(), **OFF)
    assert torch.equal(still[LABELLED], frames()[LABELLED])


def test_an_option_that_is_off_draws_nothing() -> None:
    def state_after(**options) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        augment(frames(), {}, generator=generator, **{**OFF, **options})
        return generator.get_state()

    plain = state_after()
    assert torch.equal(state_after(crop=(1.0, 1.0), colour=None), plain)
    assert torch.equal(state_after(crop=(1.0, 1.0), colour={}), plain)
    assert not torch.equal(state_after(crop=(0.5, 1.0)), plain)
    assert not torch.equal(state_after(colour={"hue": 0.1}), plain)


def test_colours_change_no_geometry() -> None:
    for way in ("flip", "all"):
        WAYS["plain"] = {**WAYS[way], "colour": None}
        WAYS["coloured"] = {**WAYS[way], "colour": {"hue": 0.3, "contrast": 0.5}}
        plain, coloured = augmented("plain", 3)[0], augmented("coloured", 3)[0]
        del WAYS["plain"], WAYS["coloured"]
        assert not torch.equal(plain["image"], coloured["image"])
        for name in plain.keys() - {"image"}:
            torch.testing.assert_close(plain[name], coloured[name], atol=0, rtol=0)


def test_the_table_of_a_study_becomes_the_options() -> None:
    spec = AugmentSpec(crop=(0.5, 0.9), colour={"hue": 0.1})
    out = augment(frames(), {}, generator=torch.Generator(), **spec.model_dump())
    assert not torch.equal(out["image"], frames()["image"].float())
    for bad in ({"crop": (0.9, 0.5)}, {"crop": (0.5, 1.5)}, {"crop": (0, 1)},
                {"colour": {"hue": 0.6}}, {"colour": {"contrast": -0.1}}, {"colour": {"hu": 0.1}},
                {"colour": {"hue": math.nan}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"crop|colour"):
            AugmentSpec(**bad)


def test_definitions_at_the_defaults_are_as_before_these_options() -> None:
    known = {"flip": True, "zoom": [1.0], "scale": [1.0, 1.0], "rotate": 0.0}
    for same in (AugmentSpec(), AugmentSpec(crop=(1.0, 1.0), colour={"hue": 0.0})):
        assert same.model_dump(mode="json") == known
        assert AugmentSpec.model_validate(known) == same
    other = AugmentSpec(crop=(0.5, 1.0), colour={"hue": 0.1}).model_dump(mode="json")
    colour = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.1}
    assert other == {**known, "crop": [0.5, 1.0], "colour": colour}


def test_a_study_with_them_is_another_one() -> None:
    plain = load_study("scenes")
    for item, line in (
        ("training.augment.crop=[0.5, 1]", "training.augment.crop: absent -> [0.5, 1.0]"),
        ("training.augment.colour.hue=0.1", "training.augment.colour.hue: absent -> 0.1"),
    ):
        study = load_study("scenes", [item])
        assert study.fingerprint != plain.fingerprint
        assert line in differences(study.definition(), plain.definition())
        assert Study.from_definition(study.definition()).fingerprint == study.fingerprint
        assert study.training_of("mtl").augment == study.training.augment
    off = ["training.augment.crop=[1, 1]", "training.augment.colour={hue=0}"]
    assert load_study("scenes", off).fingerprint == plain.fingerprint
