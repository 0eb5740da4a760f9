"""Kinds with labels per image, and parts: losses, metrics and encodings worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gatesearch.errors import UsageError
from gatesearch.tasks import Task, Warp, build_task
from gatesearch.tasks.keypoints import heat_maps

NAN = math.nan


def made(kind: str, **options: object) -> Task:
    return build_task(kind, options, where="tasks.x")


def encoded(task: Task, *cells: object, size: tuple[int, int] = (10, 20)) -> list:
    label = task.encode(np.array(cells), size=size)
    assert label.shape == task.storage.shape(size)
    assert label.dtype == np.dtype(task.storage.dtype)
    return label.tolist()


def measured(task: Task, *batches: tuple[Tensor, Tensor]) -> tuple[float, dict[str, float]]:
    meter = task.meter()
    for prediction, target in batches:
        meter.update(prediction, target)
    return meter.compute().item(), meter.details()


def test_an_image_without_a_person_has_no_labels() -> None:
    task = made("parts", classes=3, ignore=9)
    assert encoded(task, [0, 0], [9, 0], size=(2, 2)) == [[255, 255], [255, 255]]
    assert encoded(task, [0, 2], [9, 0], size=(2, 2)) == [[0, 2], [255, 0]]
    other = made("parts", classes=3, values=[10, 20, 30], background=1)
    assert encoded(other, [20, 20], size=(1, 2)) == [[255, 255]]
    assert encoded(other, [20, 10], size=(1, 2)) == [[1, 0]]


def test_the_background_is_a_class_of_the_mean_of_parts() -> None:
    # true 0 0 1 1, predicted 0 1 1 1; IoU 1/2 and 2/3; the image without labels does not count
    task = made("parts", classes=2, class_names=["ground", "head"])
    scores = torch.tensor([[[5.0, 0, 0, 0]], [[0, 5.0, 5, 5]]])[None]
    target = torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8)
    value, told = measured(task, (scores, target), (scores, torch.full_like(target, 255)))
    assert value == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert told == pytest.approx({"IoU ground": 50, "IoU head": 200 / 3})


def test_weights_of_classes_make_a_weighted_mean() -> None:
    # softmax of (log 1, log 3) is (1/4, 3/4); weights 2 and 1, the third image has no label
    prediction = torch.tensor([[1.0, 3], [1, 3], [9, 1]]).log()
    target = torch.tensor([0, 1, -1], dtype=torch.int16)
    expected = (2 * math.log(4) + 1 * math.log(4 / 3)) / 3
    task = made("classification", classes=2, class_weights=[2, 1])
    assert task.loss(prediction, target).item() == pytest.approx(expected)
    plain = (math.log(4) + math.log(4 / 3)) / 2
    assert made("classification", classes=2).loss(prediction, target).item() == pytest.approx(plain)
    dense = made("semseg", classes=2, class_weights=[2, 1])
    pixels = prediction.T[None, :, None]
    labels = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    assert dense.loss(pixels, labels).item() == pytest.approx(expected)


def one_hot(classes: list[int], count: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(classes), count).float()


def test_figures_of_classification() -> None:
    # true 0 0 0 1 2 and unknown, predicted 0 0 1 1 1 0
    task = made("classification", classes=4, class_names=["a", "b", "c", "d"])
    target = torch.tensor([0, 0, 0, 1, 2, -1], dtype=torch.int16)
    scores = one_hot([0, 0, 1, 1, 1, 0], 4)
    value, told = measured(task, (scores[:2], target[:2]), (scores[2:], target[2:]))
    assert value == pytest.approx(60)
    # F1: a 2*2 / (3 + 2), b 2*1 / (1 + 3), c 0; d does not occur
    assert told == pytest.approx(
        {
            "balanced accuracy": 100 * (2 / 3 + 1 + 0) / 3,
            "macro F1": 100 * (4 / 5 + 1 / 2 + 0) / 3,
            "accuracy a": 200 / 3,
            "accuracy b": 100,
            "accuracy c": 0,
            "accuracy d": NAN,
        },
        nan_ok=True,
    )


def test_top_5_is_told_from_ten_classes_on() -> None:
    scores = torch.arange(10.0).repeat(3, 1)  # 9 highest, 5 the fifth
    target = torch.tensor([9, 5, 4], dtype=torch.int16)
    value, told = measured(made("classification", classes=10), (scores, target))
    assert value == pytest.approx(100 / 3)
    assert told["top-5 accuracy"] == pytest.approx(200 / 3)
    assert (
        "top-5 accuracy"
        not in measured(made("classification", classes=9), (scores[:, 1:], target - 1))[1]
    )


@pytest.mark.parametrize(
    ("options", "cell", "index"),
    [
        ({}, "2", 2), ({}, " 2 ", 2), ({}, "2.0", 2), ({}, 2.0, 2), ({}, np.int64(2), 2),
        ({}, "", -1), ({}, NAN, -1), ({}, None, -1), ({}, "-1", -1), ({}, -1.0, -1),
        ({"class_names": ("cat", "dog", "1")}, "dog", 1),
        ({"class_names": ("cat", "dog", "1")}, "1", 2),  # a name before an index
        ({"class_names": ("cat", "dog", "1")}, 0, 0),
        ({"values": (10, 20, 30)}, "20", 1), ({"values": (10, 20, 30)}, 30.0, 2),
        ({"values": (-1, 0, 1)}, "-1", 0), ({"values": ("x", "y", "2")}, "2.0", 2),
        ({"values": ("x", "y", "z"), "class_names": ("p", "q", "r")}, "q", 1),
        ({"ignore": "unknown"}, "unknown", -1), ({"ignore": 9}, "9", -1),
    ],
)  # fmt: skip
def test_cells_of_classes(options: dict, cell: object, index: int) -> None:
    assert encoded(made("classification", classes=3, **options), cell) == index


@pytest.mark.parametrize(
    ("options", "cells", "message"),
    [
        ({}, ["3"], "must be 0 to 2, or empty where there is no label, found '3'"),
        ({}, ["1.5"], "found '1.5'"),
        ({}, ["-2"], "found '-2'"),
        ({}, ["cat"], "found 'cat'"),
        ({}, ["²"], "found '²'"),
        ({}, ["1", "2"], "must have 1 class per image, found 2"),
        ({"class_names": ("a", "b", "c")}, ["d"], "must be one of a, b, c, or 0 to 2, or empty"),
        ({"values": (1, 2, 3)}, ["0"], "must be one of 1, 2, 3, or empty .* found '0'"),
    ],
)
def test_other_cells_are_refused(options: dict, cells: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("classification", classes=3, **options).encode(np.array(cells))


def test_attributes_of_celeba() -> None:
    task = made("attributes", names=["bald", "smiling"], negative=-1)
    assert encoded(task, "-1", "1") == [0, 1]
    assert encoded(task, -1.0, 1.0) == [0, 1]
    assert encoded(task, "", 1) == [255, 1]
    with pytest.raises(ValueError, match=r"attribute bald must be 1 or -1.*found '0'; set pos"):
        task.encode(np.array([0, 1]))
    words = made("attributes", count=3)
    assert encoded(words, "True", "false", "255") == [1, 0, 255]
    assert encoded(words, True, False, True) == [1, 0, 1]
    yes = made("attributes", positive="yes", negative="no")
    assert [encoded(yes, cell) for cell in ("yes", "no", "")] == [[1], [0], [255]]
    with pytest.raises(ValueError, match="found 'true'"):
        yes.encode(np.array(["true"]))


def test_attributes_weigh_known_cells() -> None:
    # probabilities 1/2, 3/4 of an attribute of weight 3, and 1/4 of one of weight 1
    prediction = torch.tensor([[0.0, math.log(1 / 3)], [math.log(3), 50.0]])
    target = torch.tensor([[1, 0], [1, 255]], dtype=torch.uint8)
    expected = 3 * math.log(2) + math.log(4 / 3) + 3 * math.log(4 / 3)
    task = made("attributes", count=2, weights=[3, 1])
    assert task.loss(prediction, target).item() == pytest.approx(expected / 7)


def test_figures_of_attributes() -> None:
    # a: true 1 1 0 0, predicted 1 0 0 0; b: true 1, predicted 1, three unknown; c: no label
    task = made("attributes", names=["a", "b", "c"])
    target = torch.tensor([[1, 1, 255], [1, 255, 255], [0, 255, 255], [0, 255, 255]]).byte()
    scores = torch.tensor([[1.0, 1, 1], [-1, 1, 1], [-1, 1, 1], [-1, 1, 1]])
    value, told = measured(task, (scores[:1], target[:1]), (scores[1:], target[1:]))
    assert value == pytest.approx((75 + 100) / 2)
    expected = {
        "balanced accuracy": 75,  # of a alone: b has no negative image
        "F1": 100 * (2 / 3 + 1) / 2,
        "accuracy a": 75,
        "accuracy b": 100,
        "accuracy c": NAN,
    }
    assert told == pytest.approx(expected, nan_ok=True)


def test_regression_learns_its_scale_and_tells_units() -> None:
    task = made("regression", unit="years")
    figures = task.summarise(np.array([[10.0], [30.0], [NAN]], np.float32))
    assert figures == {"mean.0": 20.0, "std.0": 10.0}
    fitted = task.fitted(figures)
    assert (fitted.mean, fitted.std, fitted.unit) == ((20.0,), (10.0,), "years")
    assert fitted.output_meaning == ("standardised values; times (10) plus (20) is the value years")
    prediction = torch.tensor([[0.5], [-1.0], [7.0]])
    assert fitted.decode(prediction).tolist() == [[25.0], [10.0], [90.0]]
    target = torch.tensor([[20.0], [40.0], [NAN]])  # 0 and 2 deviations
    assert fitted.loss(prediction, target).item() == pytest.approx((0.5 + 3) / 2)
    smooth = made("regression", criterion="smooth_l1").fitted(figures)
    assert smooth.loss(prediction, target).item() == pytest.approx((0.125 + 2.5) / 2)
    # errors 5 and 30 years; labels 20 and 40 are 10 off their mean
    value, told = measured(fitted, (prediction[:1], target[:1]), (prediction[1:], target[1:]))
    assert value == pytest.approx(17.5)
    assert told == pytest.approx({"RMSE": math.sqrt((25 + 900) / 2), "R2": 1 - (25 + 900) / 200})
    assert build_task("regression", fitted.options, where="x") == fitted


def test_regression_keeps_what_the_study_gives_and_does_not_divide_by_zero() -> None:
    given = made("regression", mean=[1.0], std=[2.0])
    assert given.fitted({"mean.0": 5.0, "std.0": 5.0}) == given
    constant = made("regression", count=2)
    figures = constant.summarise(np.array([[7.0, NAN], [7.0, NAN]], np.float32))
    fitted = constant.fitted(figures)
    assert (fitted.mean, fitted.std) == ((7.0, 0.0), (1.0, 1.0))


def test_mae_is_the_mean_over_columns_and_each_is_told() -> None:
    # errors 1, 3 of the first column, 10 of the second
    task = made("regression", names=["age", "height"])
    prediction = torch.tensor([[1.0, 10.0], [3.0, 5.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, NAN]])
    value, told = measured(task, (prediction, target))
    assert value == pytest.approx((2 + 10) / 2)
    assert (told["MAE age"], told["MAE height"]) == pytest.approx((2, 10))


def test_r2_of_years_keeps_its_digits() -> None:
    # labels 2^24 apart from zero by one each: squares of 1e14 would leave no digit
    task = made("regression", mean=[1e7], std=[1.0])
    target = torch.tensor([[1e7], [1e7 + 2]])
    told = measured(task, (torch.tensor([[0.0], [1.0]]), target))[1]
    assert told["R2"] == pytest.approx(1 - 1 / 2)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("tall", "must be a number, as 3.5, found 'tall'"),
        ("3,5", "found '3,5'"),
        ("1_000", "found '1_000'"),
        ("inf", "must be a finite number"),
        ("1e39", "must be at most 3.4e"),
    ],
)
def test_values_that_are_no_numbers_are_refused(cell: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("regression").encode(np.array([cell]))


def test_empty_values_are_unknown() -> None:
    assert math.isnan(encoded(made("regression"), "")[0])
    assert math.isnan(encoded(made("regression"), "nan")[0])
    assert encoded(made("regression"), "-2.5") == [-2.5]


def close(points: list, expected: list) -> None:
    np.testing.assert_allclose(points, expected, atol=1e-6)


def test_places_are_centres_of_pixels_from_border_to_border() -> None:
    # frames of 10 x 20: the first pixel's centre is half a pixel from the border
    task = made("keypoints", count=2)
    close(encoded(task, "0", "0", "19", "9"), [[-0.95, -0.9, 1], [0.95, 0.9, 1]])
    close(encoded(task, "9.5", "4.5", "", ""), [[0, 0, 1], [NAN] * 3])
    close(encoded(task, -1, -1, 20, 10), [[NAN] * 3, [1, 1, 1]])
    close(encoded(task, 0, 0, 2, 0, 0, 0), [[-0.95, -0.9, 1], [NAN] * 3])  # visibilities 2 and 0


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["3", ""], "point 0: x and y must both be given or both be empty"),
        (["21", "3"], "point 0: x must be within the image, 0 to 19 pixels, found 21"),
        (["3", "11"], "point 0: y must be within the image, 0 to 9 pixels, found 11"),
        (["3", "-2"], "found -2"),
        (["a", "1"], "point 0: must be a number"),
        (["1"], "must have 2 cells, x and y per point, found 1"),
    ],
)
def test_other_places_are_refused(cells: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made("keypoints").encode(np.array(cells), size=(10, 20))


def test_places_need_the_size_of_the_image() -> None:
    with pytest.raises(ValueError, match="need the size"):
        made("keypoints").encode(np.array(["1", "2"]))


def points(*rows: list[float]) -> Tensor:
    return torch.tensor([list(rows)])


def test_a_heat_map_is_a_bell_of_pixels() -> None:
    # a frame of 3 x 4 has a diagonal of 5; a standard deviation of 1 pixel is 0.2 of it
    (bell,) = heat_maps(points([0.25, 0.0, 1]), (3, 4), 0.2)[0]  # pixel (1, 2)
    assert bell[1, 2].item() == 1
    assert bell[1, 1].item() == bell[0, 2].item() == pytest.approx(math.exp(-0.5))
    assert bell[0, 1].item() == pytest.approx(math.exp(-1))
    absent, unknown = heat_maps(points([NAN, NAN, 0], [NAN] * 3), (3, 4), 0.2)[0]
    assert absent.abs().max() == unknown.abs().max() == 0


def test_loss_of_an_empty_map_is_one_and_of_unknown_points_none() -> None:
    task = made("keypoints", count=3, sigma=0.05)
    target = points([0.1, -0.2, 1], [NAN, NAN, 0], [NAN] * 3)
    empty = torch.zeros(1, 3, 64, 48, requires_grad=True)
    # one point seen, one known to be absent, whose empty map is right, one unknown
    assert task.loss(empty, target).item() == pytest.approx(1 / 2, rel=1e-4)
    ones = torch.ones(1, 3, 64, 48)
    (slope,) = torch.autograd.grad(task.loss(empty + ones, target), empty)
    assert (slope[0, 1] > 0).all()
    assert slope[0, 2].abs().max() == 0


def test_a_point_moves_a_quarter_of_a_pixel_to_its_higher_neighbours() -> None:
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 0, 1, 2] = 5.0
    maps[0, 0, 1, 1], maps[0, 0, 0, 2] = 2.0, 1.0  # left and above
    maps[0, 1, 2, 3] = 4.0  # in the corner, where no neighbour is beyond
    (first, second) = made("keypoints", count=2).decode(maps)[0].tolist()
    assert first == pytest.approx([(2 * 1.75 + 1) / 4 - 1, (2 * 0.75 + 1) / 3 - 1, 5.0])
    assert second == pytest.approx([7 / 4 - 1, 5 / 3 - 1, 4.0])


def maps_at(*places: tuple[int, int], size: tuple[int, int]) -> Tensor:
    maps = torch.zeros(1, len(places), *size)
    for index, (row, column) in enumerate(places):
        maps[0, index, row, column] = 1
    return maps


def test_figures_of_keypoints() -> None:
    # a frame of 30 x 40 has a diagonal of 50: found within 5 pixels, closely within 2.5
    task = made("keypoints", names=["eye", "nose", "ear", "tail"])
    cells = [10, 10, 20, 10, 30, 20, "", ""]
    target = torch.from_numpy(task.encode(np.array(cells, object), size=(30, 40)))[None]
    maps = maps_at((10, 12), (10, 24), (26, 30), (0, 0), size=(30, 40))  # 2, 4 and 6 pixels off
    value, told = measured(task, (maps, target), (maps, torch.full_like(target, NAN)))
    assert value == pytest.approx(200 / 3)
    expected = {
        "PCK@0.05": 100 / 3, "mean distance in pixels": 4,
        "PCK@0.1 eye": 100, "PCK@0.1 nose": 100, "PCK@0.1 ear": 0, "PCK@0.1 tail": NAN,
    }  # fmt: skip
    assert told == pytest.approx(expected, nan_ok=True)
    # the box around the points is 20 wide: found within 2 pixels
    boxed = made("keypoints", count=4, reference="box")
    assert measured(boxed, (maps, target))[0] == pytest.approx(100 / 3)
    # and a single point has no box
    alone = target.clone()
    alone[:, 1:] = NAN
    assert math.isnan(measured(boxed, (maps, alone))[0])


def test_points_move_with_the_image_and_swap_in_a_mirrored_one() -> None:
    task = made("keypoints", names=["left", "nose", "right"], flip_pairs=[["left", "right"]])
    one = [[-0.5, 0.2, 1], [0.1, 0.0, 1], [NAN] * 3]
    target = torch.tensor([one, one, one])
    mirror = torch.tensor([[-1.0, 0, 0], [0, 1, 0]])
    shifted = torch.tensor([[1.0, 0, -0.6], [0, 2, 0.1]])
    warp = Warp(
        flip=torch.tensor([True, False, False]),
        zoom=torch.ones(3),
        angle=torch.zeros(3),
        matrix=torch.stack([mirror, shifted, torch.eye(2, 3)]),
    )
    moved = task.transform_labels(target, warp)
    close(moved[0], [[NAN] * 3, [-0.1, 0, 1], [0.5, 0.2, 1]])
    close(moved[1], [[NAN, NAN, 0], [-0.5, 0.1, 1], [NAN] * 3])  # -1.1 is outside
    close(moved[2], one)


def test_options_that_contradict_each_other_are_refused() -> None:
    for kind, options, message in [
        ("semseg", {"classes": 256}, "classes must be at most 255 for this kind, found 256"),
        ("parts", {"classes": 3, "background": 3}, "background must be one of the classes 0 to 2"),
        ("classification", {"classes": 3, "values": ["a", "a", "b"]}, "values must differ"),
        ("classification", {"classes": 2, "values": [1, "1.0"]}, "values must differ"),
        ("classification", {"classes": 2, "class_weights": [1]}, "one value per class, 2, found 1"),
        ("attributes", {"names": ["a", "b"], "count": 3}, "one name per value, 3, found 2"),
        ("attributes", {"names": ["a", "a"]}, "names must differ"),
        ("attributes", {"weights": [1, 2]}, "weights must have one number per attribute, 1"),
        ("attributes", {"positive": 0}, "positive and negative must differ"),
        ("regression", {"std": [0.0]}, "std.0: Input should be greater than 0"),
        ("regression", {"mean": [1, 2]}, "mean must have one number per value, 1, found 2"),
        ("keypoints", {"flip_pairs": [["a", 0]]}, "point of flip_pairs must be one of 0 to 0"),
        ("keypoints", {"count": 3, "flip_pairs": [[0, 1], [1, 2]]}, "one pair of flip_pairs at"),
        ("regression", {"units": "kg"}, "unknown key 'units'; did you mean 'unit'"),
    ]:
        with pytest.raises(UsageError, match=message):
            made(kind, **options)
