"""Labels follow the image: checked on maps of which every pixel is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.tasks import TASKS
from gatesearch.training.augment import augment
from gatesearch.training.split_data import LABELLED, MEAN
from tests.training.toys import CLASSES, toy_tasks

NAMES = ("semseg", "depth", "normals", "edges")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 3, height: int = 6, width: int = 8, seed: int = 1) -> dict[str, Tensor]:
    g = generator(seed)
    normals = torch.randn(count, 3, height, width, generator=g)
    shape = (count, height, width)
    return {
        "image": torch.randint(256, (count, 3, height, width), generator=g, dtype=torch.uint8),
        "semseg": torch.randint(CLASSES, shape, generator=g, dtype=torch.uint8),
        "depth": torch.rand(shape, generator=g) * 5 + 0.5,
        "normals": normals / normals.norm(dim=1, keepdim=True),
        "edges": torch.randint(2, shape, generator=g, dtype=torch.uint8),
    }


def changed(frames: dict[str, Tensor], seed: int = 0, **options) -> dict[str, Tensor]:
    plain = {"flip": False, "zoom": (1.0,), "scale": (1.0, 1.0), "rotate": 0.0}
    names = [name for name in frames if name != "image"]
    return augment(frames, toy_tasks(*names), **{**plain, **options}, generator=generator(seed))


def test_nothing_asked_nothing_done() -> None:
    frames = batch()
    out = changed(frames)
    assert torch.equal(out["image"], frames["image"].float())
    assert all(torch.equal(out[name], frames[name]) for name in NAMES)


@pytest.mark.parametrize("options", [{}, {"flip": True, "zoom": (1.5,)}, {"rotate": 10.0}])
def test_which_frames_have_labels_stays(options) -> None:
    frames = batch()
    labelled = torch.tensor([[True, False], [False, False], [True, True]])
    out = augment(
        {**frames, LABELLED: labelled}, toy_tasks("semseg", "depth"), generator=generator(),
        **{"flip": False, "zoom": (1.0,), "scale": (1.0, 1.0), "rotate": 0.0} | options,
    )  # fmt: skip
    assert torch.equal(out[LABELLED], labelled)
    assert LABELLED not in changed(frames, **options)


def test_flip_mirrors_exactly_and_negates_x() -> None:
    frames = batch(64, 2, 4)
    out = changed(frames, flip=True)
    flipped = (out["edges"] != frames["edges"]).flatten(1).any(1)
    flipped |= (out["semseg"] != frames["semseg"]).flatten(1).any(1)
    assert 20 < flipped.sum() < 44  # one half, seldom a frame that is its own mirror image
    sign = torch.tensor([-1.0, 1.0, 1.0])[:, None, None]
    for i, on in enumerate(flipped.tolist()):
        for name in NAMES:
            there = frames[name][i].flip(-1) if on else frames[name][i]
            there = there * sign if on and name == "normals" else there
            torch.testing.assert_close(out[name][i], there, atol=1e-5, rtol=0)
        image = frames["image"][i].float()
        assert torch.equal(out["image"][i], image.flip(-1) if on else image)


@pytest.mark.parametrize("seed", range(4))
def test_zoom_two_is_a_window_enlarged_and_twice_as_near(seed: int) -> None:
    frames = batch(1, 8, 8, seed)
    frames["depth"] = torch.arange(1.0, 65.0).reshape(1, 8, 8)
    out = changed(frames, seed, zoom=(2.0,))
    # which pixel each label came from is told by the depth, halved
    source = (out["depth"] * 2).round().long() - 1
    torch.testing.assert_close(out["depth"] * 2, (source + 1).float())
    rows, columns = source[0] // 8, source[0] % 8
    assert (rows == rows[:, :1]).all()
    assert (columns == columns[:1]).all()
    for places in (rows[:, 0], columns[0]):
        steps = places.diff()
        assert set(steps.tolist()) <= {0, 1}
        assert 3 <= places[-1] - places[0] <= 4  # a window of four pixels wherever it lies
    for name in ("semseg", "edges"):
        assert torch.equal(out[name][0], frames[name][0][rows, columns])
    torch.testing.assert_close(out["normals"][0], frames["normals"][0][:, rows, columns])


def test_windows_lie_anywhere_in_the_frame() -> None:
    frames = batch(200, 8, 8)
    frames["depth"] = torch.arange(1.0, 65.0).reshape(1, 8, 8).expand(200, 8, 8)
    corner = (changed(frames, zoom=(2.0,))["depth"][:, 0, 0] * 2).round().long() - 1
    assert set((corner // 8).tolist()) >= {0, 1, 2, 3, 4}
    assert set((corner % 8).tolist()) >= {0, 1, 2, 3, 4}
    assert (out := changed(frames, zoom=(2.0,))["depth"]).min() > 0, out  # never beyond the border


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    flip=st.booleans(),
    zoom=st.sampled_from([(1.0,), (1.0, 1.2, 1.5), (2.0, 3.0), (100.0,)]),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (0.75, 1.25), (0.01, 3.0)]),
    crop=st.sampled_from([(1.0, 1.0), (0.3, 1.0)]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_rows_and_columns_are_sampled_as_by_a_grid(seed, flip, zoom, scale, crop, size) -> None:
    frames = batch(3, *size, seed % 1000)
    options = {"flip": flip, "zoom": zoom, "scale": scale, "crop": crop}
    # a turn far below rounding: the same places, through `grid_sample`
    ours, by_grid = changed(frames, seed, **options), changed(frames, seed, **options, rotate=1e-30)
    assert all(torch.equal(ours[name], by_grid[name]) for name in ("semseg", "depth", "edges"))
    torch.testing.assert_close(ours["normals"], by_grid["normals"], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours["image"], by_grid["image"], atol=1e-2, rtol=0)
    assert {k: v.stride() for k, v in ours.items()} == {k: v.stride() for k, v in by_grid.items()}


def test_a_zoom_that_the_scale_takes_back_still_divides_depths() -> None:
    frames = batch(3, 8, 8)
    out = changed(frames, zoom=(2.0,), scale=(0.5, 0.5))
    assert torch.equal(out["depth"], frames["depth"] / 2)
    assert torch.equal(out["semseg"], frames["semseg"])


def test_a_ramp_enlarged_twice_rises_half_as_fast() -> None:
    frames = batch(1, 8, 8)
    frames["image"] = (10 * torch.arange(8)[:, None] + torch.arange(8)).expand(1, 3, 8, 8).byte()
    image = changed(frames, zoom=(2.0,))["image"][0, 0]
    inner = image[2:-2, 2:-2]  # away from the border of the frame, which is mixed with the mean
    torch.testing.assert_close(inner.diff(dim=0), torch.full((3, 4), 5.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(inner.diff(dim=1), torch.full((4, 3), 0.5), atol=1e-3, rtol=0)


def test_the_memory_at_hand_is_not_changed_and_not_shared() -> None:
    frames = batch(8)
    before = {name: tensor.clone() for name, tensor in frames.items()}
    out = changed(frames, flip=True, zoom=(1.0, 1.5))
    for tensor in out.values():
        tensor.zero_()
    assert all(torch.equal(frames[name], before[name]) for name in before)


def test_scale_leaves_depth_alone() -> None:
    frames = batch(5)
    out = changed(frames, scale=(2.0, 2.0))
    for before, after in zip(frames["depth"], out["depth"], strict=True):
        assert set(after.flatten().tolist()) <= set(before.flatten().tolist())


def test_what_comes_from_outside_is_unknown_and_never_class_0() -> None:
    frames = batch(2, 12, 12)
    frames["semseg"] = frames["semseg"] * 0 + 1
    frames["edges"] = frames["edges"] * 0 + 1
    out = changed(frames, scale=(0.5, 0.5))  # the frame shrunk to the middle 6 x 6
    inside = torch.zeros(12, 12, dtype=torch.bool)
    inside[3:9, 3:9] = True
    for name in NAMES:
        task = TASKS[name](classes=CLASSES)
        maps = out[name] if out[name].ndim == 4 else out[name][:, None]
        unknown = (maps == task.unknown_value).all(1)
        assert unknown[:, ~inside].all()
        assert not unknown[:, inside].any()
    assert set(out["semseg"].unique().tolist()) == {1, 255}
    border = out["image"][:, :, 0, 0]
    torch.testing.assert_close(border, (torch.tensor(MEAN) * 255).expand(2, 3))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rotate=st.floats(0, 180),
    zoom=st.sampled_from([(1.0,), (1.2, 1.5), (3.0,)]),
    scale=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
    crop=st.sampled_from([(1.0, 1.0), (0.3, 1.0)]),
    colour=st.sampled_from([{}, {"contrast": 0.5, "hue": 0.5}]),
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)),
)
def test_labels_stay_labels(seed, rotate, zoom, scale, crop, colour, size) -> None:
    frames = batch(2, *size, seed % 1000)
    options = {"rotate": rotate, "zoom": zoom, "scale": scale, "crop": crop, "colour": colour}
    out = changed(frames, seed, flip=True, **options)
    assert {k: (v.shape, v.dtype) for k, v in out.items() if k != "image"} == {
        k: (v.shape, v.dtype) for k, v in frames.items() if k != "image"
    }
    assert set(out["semseg"].unique().tolist()) <= {*range(CLASSES), 255}
    assert set(out["edges"].unique().tolist()) <= {0, 1, 255}
    length = out["normals"].norm(dim=1)
    assert ((length - 1).abs().minimum(length) < 1e-4).all()
    assert out["image"].min() >= -1e-2
    assert out["image"].max() <= 255 + 1e-2
    # every field knows the same pixels
    known = out["semseg"] != 255
    assert torch.equal(known, out["edges"] != 255)
    assert torch.equal(known, out["depth"] > 0)
    assert torch.equal(known, length > 0.5)


def plane(height: int, width: int, a: float, b: float) -> dict[str, Tensor]:
    """The surface z = 10 + a x + b y seen from straight ahead, x right and y down, in pixels."""
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )  # fmt: skip
    depth = 10 + a * x + b * y
    normal = torch.tensor([a, b, -1.0])
    normal = normal / normal.norm()
    return {
        "image": torch.zeros(1, 3, height, width, dtype=torch.uint8),
        "depth": depth[None],
        "normals": normal[None, :, None, None].expand(1, 3, height, width).clone(),
    }


def normals_of(depth: Tensor) -> Tensor:
    """Normals of a plane from finite differences of its depth over the middle of the map."""
    height, width = depth.shape
    window = depth[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    slope_y = (window[-1] - window[0]).mean() / (len(window) - 1)
    slope_x = (window[:, -1] - window[:, 0]).mean() / (window.shape[1] - 1)
    normal = torch.stack([slope_x, slope_y, torch.tensor(-1.0)])
    return normal / normal.norm()


@pytest.mark.parametrize("shape", [(48, 48), (40, 64), (64, 40)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_turned_normals_fit_the_turned_surface(seed: int, flip: bool, shape) -> None:
    out = changed(plane(*shape, a=0.06, b=0.03), seed, rotate=120.0, flip=flip)
    found = out["normals"][0, :, shape[0] // 2, shape[1] // 2]
    torch.testing.assert_close(found, normals_of(out["depth"][0]), atol=0.012, rtol=0)
    assert math.hypot(*found[:2].tolist()) == pytest.approx(
        math.hypot(0.06, 0.03) / math.sqrt(1 + 0.06**2 + 0.03**2), rel=1e-4
    )


def test_a_generator_decides_everything() -> None:
    options = {"flip": True, "zoom": (1.0, 1.5), "rotate": 20.0, "scale": (0.75, 1.25)}
    torch.manual_seed(1)
    one = changed(batch(), 7, **options)
    torch.manual_seed(2)
    again, other = changed(batch(), 7, **options), changed(batch(), 8, **options)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["image"], other["image"])
