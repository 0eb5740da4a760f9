"""Losses, metrics and label rules worked out by hand on maps of a few pixels."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gatesearch.errors import UsageError
from gatesearch.study import TaskSpec
from gatesearch.tasks import Task, Warp, build_tasks
from gatesearch.tasks.depth import Depth
from gatesearch.tasks.edges import Edges
from gatesearch.tasks.normals import Normals
from gatesearch.tasks.reflectance import Reflectance
from gatesearch.tasks.saliency import Saliency
from gatesearch.tasks.semseg import Semseg


def scores(classes: list[list[int]], count: int, height: float = 9.0) -> Tensor:
    """(1, count, H, W), `height` at the class named and 0 elsewhere."""
    return torch.nn.functional.one_hot(torch.tensor([classes]), count).movedim(-1, 1) * height


def logits(probabilities: list[list[float]]) -> Tensor:
    return torch.tensor([[probabilities]], dtype=torch.float64).logit()


def bytes_of(rows: list[list[int]]) -> Tensor:
    return torch.tensor([rows], dtype=torch.uint8)


def test_semseg_loss_is_the_mean_over_labelled_pixels() -> None:
    # softmax of (log 1, log 3) is (1/4, 3/4); the third pixel is ignored, the fourth even
    prediction = torch.tensor([[1.0, 1.0], [5.0, 1.0]]), torch.tensor([[3.0, 3.0], [7.0, 1.0]])
    target = bytes_of([[0, 1], [255, 0]])
    expected = (math.log(4) + math.log(4 / 3) + math.log(2)) / 3
    loss = Semseg(classes=2).loss(torch.stack(prediction)[None].log(), target)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_semseg_loss_is_the_same_with_and_without_gradients() -> None:
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 3, 96, 100), torch.randint(0, 3, (2, 96, 100)).byte()
    target[torch.rand(target.shape) < 0.3] = 255
    task = Semseg(classes=3)
    learned = task.loss(prediction.clone().requires_grad_(), target)
    assert torch.equal(task.loss(prediction, target), learned)
    assert task.loss(prediction, torch.full_like(target, 255)) == 0


def test_miou_leaves_out_a_class_that_does_not_occur() -> None:
    # of 4 classes, 3 is absent; class 0: 1 hit of 2, class 1: 1 of 2, class 2: 1 of 1
    meter = Semseg(classes=4).meter()
    meter.update(scores([[0, 0], [1, 2]], 4), bytes_of([[0, 1], [1, 2]]))
    assert meter.compute().item() == pytest.approx(100 * (1 / 2 + 1 / 2 + 1) / 3)


def test_miou_counts_a_class_that_is_only_predicted() -> None:
    # class 2 is predicted and never true: IoU 0; class 0: 3 of 4
    meter = Semseg(classes=3).meter()
    meter.update(scores([[0, 0], [0, 2]], 3), bytes_of([[0, 0], [0, 0]]))
    assert meter.compute().item() == pytest.approx(100 * (3 / 4 + 0) / 2)


def test_miou_is_of_the_part_not_the_mean_of_batches() -> None:
    meter = Semseg(classes=2).meter()
    meter.update(scores([[0, 0]], 2), bytes_of([[0, 0]]))
    meter.update(scores([[0, 0]], 2), bytes_of([[0, 1]]))
    assert meter.compute().item() == pytest.approx(100 * (3 / 4 + 0) / 2)


def test_predictions_on_ignored_pixels_do_not_count() -> None:
    meter = Semseg(classes=2).meter()
    meter.update(scores([[0, 1]], 2), bytes_of([[0, 255]]))
    assert meter.compute().item() == 100


def test_depth_loss_skips_unknown_pixels() -> None:
    prediction = torch.tensor([[[[1.0, 5.0], [2.0, 0.0]]]])
    target = torch.tensor([[[1.5, 0.0], [4.0, 0.25]]])
    assert Depth().loss(prediction, target).item() == pytest.approx((0.5 + 2 + 0.25) / 3)


def test_reflectance_error_is_a_share_of_the_light_over_known_pixels() -> None:
    # errors 0.1 and 0.3; the third pixel is not known
    prediction = torch.tensor([[[[0.3, 0.5, 9.0]]]])
    target = torch.tensor([[[0.2, 0.8, 0.0]]])
    assert Reflectance().loss(prediction, target).item() == pytest.approx(0.2)
    meter = Reflectance().meter()
    meter.update(prediction, target)
    assert meter.compute().item() == pytest.approx(0.2, rel=1e-5)
    assert meter.details() == {"RMSE": pytest.approx(0.05**0.5, rel=1e-5)}


def test_reflectances_of_files_lie_between_0_and_1() -> None:
    stored = Reflectance().encode(np.array([[0.5, np.nan], [1.0, 0.0]]))
    assert stored.tolist() == [[0.5, 0.0], [1.0, 0.0]]
    for value in (128.0, -0.5):
        with pytest.raises(ValueError, match=f"must be 0 to 1, found {value:g}; scale the files"):
            Reflectance().encode(np.array([[value]]))


def test_rmse_weighs_pixels_alike_over_unequal_batches() -> None:
    # squares 1, 4 and 9 over three known pixels; the mean of per-batch RMSE would be 2.29
    meter = Depth().meter()
    meter.update(torch.tensor([[[[2.0, 3.0]]]]), torch.tensor([[[1.0, 1.0]]]))
    meter.update(torch.tensor([[[[4.0, 8.0]]]]), torch.tensor([[[1.0, 0.0]]]))
    assert meter.compute().item() == pytest.approx(math.sqrt(14 / 3))


def test_rmse_keeps_small_errors_beside_large_ones() -> None:
    # 2^25 squares of 1e-2 are beyond fp32 sums that one large square has begun
    meter = Depth().meter()
    meter.update(torch.full((1, 1, 1, 1), 4097.0), torch.full((1, 1, 1), 1.0))
    small = torch.full((1, 1, 8, 8), 1.5)
    for _ in range(16):
        meter.update(small, torch.ones(1, 8, 8))
    assert meter.compute().item() ** 2 * 1025 == pytest.approx(4096**2 + 256, rel=1e-12)


VECTORS = [
    ((0.0, 0.0, -1.0), (0.0, 0.0, -1.0), 0.0),
    ((0.0, 0.0, -7.0), (0.0, 0.0, -1.0), 0.0),
    ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), 90.0),
    ((0.0, 0.0, 2.0), (0.0, 0.0, -1.0), 180.0),
    ((1.0, 0.0, -1.0), (0.0, 0.0, -1.0), 45.0),
    # An arbitrary direction is 90 degrees off on average; no direction is no better.
    ((0.0, 0.0, 0.0), (0.0, 0.0, -1.0), 90.0),
]


@pytest.mark.parametrize(("prediction", "target", "degrees"), VECTORS)
def test_angle(prediction: tuple[float, ...], target: tuple[float, ...], degrees: float) -> None:
    meter = Normals().meter()
    meter.update(torch.tensor(prediction).reshape(1, 3, 1, 1),
                 torch.tensor(target).reshape(1, 3, 1, 1))  # fmt: skip
    assert meter.compute().item() == pytest.approx(degrees, abs=1e-9)


def test_a_tiny_angle_is_exact() -> None:
    # cos 1e-4 rounds to 1 - 5e-9, which fp32 cannot hold: acos would give 0 or 0.028 degrees
    meter = Normals().meter()
    prediction = torch.tensor([math.sin(1e-4), 0.0, -math.cos(1e-4)]).reshape(1, 3, 1, 1)
    meter.update(prediction, torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1))
    assert meter.compute().item() == pytest.approx(math.degrees(1e-4), rel=1e-6)


def test_normals_loss_is_l1_of_the_unit_vectors() -> None:
    # (3, 0, -4) is (0.6, 0, -0.8); the second pixel is unknown
    prediction = torch.tensor([[3.0, 1.0], [0.0, 1.0], [-4.0, 1.0]]).reshape(1, 3, 1, 2)
    target = torch.tensor([[0.0, 0.0], [0.0, 0.0], [-1.0, 0.0]]).reshape(1, 3, 1, 2)
    assert Normals().loss(prediction, target).item() == pytest.approx(0.6 + 0.2)


def test_edges_weigh_095_to_005() -> None:
    # an edge at 0.2, a plain pixel at 0.2 and one ignored
    expected = (0.95 * math.log(1 / 0.2) + 0.05 * math.log(1 / 0.8)) / 2
    prediction, target = logits([[0.2, 0.2, 0.9]]), bytes_of([[1, 0, 255]])
    assert Edges().loss(prediction, target).item() == pytest.approx(expected)
    meter = Edges().meter()
    meter.update(prediction, target)
    meter.update(logits([[0.5]]), bytes_of([[0]]))
    total = 2 * expected + 0.05 * math.log(2)
    assert meter.compute().item() == pytest.approx(total / 3)


def test_saliency_loss_balances_the_batch() -> None:
    # one of four known pixels is salient: it weighs 3/4, the others 1/4
    expected = (0.75 * math.log(1 / 0.1) + 3 * 0.25 * math.log(1 / 0.6)) / 4
    prediction, target = logits([[0.1, 0.4, 0.4, 0.4, 0.9]]), bytes_of([[1, 0, 0, 0, 255]])
    assert Saliency().loss(prediction, target).item() == pytest.approx(expected)


def test_saliency_takes_one_threshold_for_all_frames() -> None:
    # Frame one is right from 0.3 down, frame two from 0.3 up to 0.8: together best in between.
    meter = Saliency().meter()
    meter.update(logits([[0.35, 0.1]]), bytes_of([[1, 0]]))
    meter.update(logits([[0.9, 0.55]]), bytes_of([[1, 0]]))
    # cuts are k / 16: below 0.35 the second frame has IoU 1/2, above it the first has 0
    assert meter.compute().item() == pytest.approx((1 + 1 / 2) / 2)


def test_a_frame_with_nothing_salient() -> None:
    meter = Saliency().meter()
    meter.update(logits([[0.01, 0.02]]), bytes_of([[0, 0]]))
    assert meter.compute().item() == 1
    meter.update(logits([[0.99, 0.99]]), bytes_of([[0, 0]]))
    assert meter.compute().item() == 0.5


def test_predictions_in_the_encoding_of_the_labels() -> None:
    assert Semseg(classes=3).decode(scores([[2, 0]], 3)).tolist() == [[[2, 0]]]
    assert Semseg(classes=3).decode(scores([[2, 0]], 3)).dtype == torch.uint8
    assert Depth().decode(torch.tensor([[[[2.5]]]])).tolist() == [[[2.5]]]
    unit = Normals().decode(torch.tensor([3.0, 0.0, -4.0]).reshape(1, 3, 1, 1))
    torch.testing.assert_close(unit.flatten(), torch.tensor([0.6, 0.0, -0.8]))
    for task in (Edges(), Saliency()):
        assert task.decode(logits([[0.2]])).item() == pytest.approx(0.2)


def warp(*, flip: bool = False, zoom: float = 1.0, degrees: float = 0.0) -> Warp:
    angle = torch.tensor([math.radians(degrees)])
    place = torch.eye(2, 3)[None]  # these kinds do not read it
    return Warp(flip=torch.tensor([flip]), zoom=torch.tensor([zoom]), angle=angle, matrix=place)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (warp(flip=True), (-0.6, 0.0, -0.8)),
        # counter-clockwise as seen: what pointed right points up, against y
        (warp(degrees=90), (0.0, -0.6, -0.8)),
        (warp(degrees=-90), (0.0, 0.6, -0.8)),
        # turned to 45 degrees up and right, then mirrored to up and left
        (warp(flip=True, degrees=45), (-0.6 / 2**0.5, -0.6 / 2**0.5, -0.8)),
        (warp(zoom=2.0), (0.6, 0.0, -0.8)),
    ],
)
def test_normals_follow_the_image(change: Warp, expected: tuple[float, ...]) -> None:
    moved = Normals().transform_labels(torch.tensor([0.6, 0.0, -0.8]).reshape(1, 3, 1, 1), change)
    torch.testing.assert_close(moved.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_depth_has_no_value_where_files_say_that_it_is_not_known() -> None:
    stored = np.array([[0, 65535], [1500, 250]], np.uint16)
    metres = Depth(scale=0.001, ignore=65535).encode(stored)
    np.testing.assert_array_equal(metres, np.array([[0, 0], [1.5, 0.25]], np.float32))


def test_depth_comes_nearer_and_unknown_stays_unknown() -> None:
    moved = Depth().transform_labels(torch.tensor([[[3.0, 0.0]]]), warp(zoom=1.5, flip=True))
    assert moved.tolist() == [[[2.0, 0.0]]]


def test_an_edge_survives_downsizing() -> None:
    # a line one pixel wide, which nearest sampling would miss in every second column
    for column in range(8):
        line = torch.zeros(1, 8, 8, dtype=torch.uint8)
        line[:, :, column] = 1
        small = Edges().resize_labels(line, (2, 2))
        assert small.tolist() == [[[int(column < 4), int(column >= 4)]] * 2]


def test_downsized_edges_do_not_make_unknown_known() -> None:
    unknown = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    unknown[:, :, 2:] = 0
    unknown[:, 0, 0] = 1
    assert Edges().resize_labels(unknown, (2, 2)).tolist() == [[[1, 0], [255, 0]]]


def test_resized_normals_are_unit_and_mostly_unknown_is_unknown() -> None:
    target = torch.zeros(1, 3, 4, 4)
    target[:, 2] = -1.0
    target[:, :, :2, :2] = 0  # the upper left quarter is unknown
    target[:, :, 2:, 2:] = torch.tensor([0.6, 0.0, -0.8])[:, None, None]
    small = Normals().resize_labels(target, (2, 2))
    assert small.norm(dim=1).round(decimals=5).tolist() == [[[0, 1], [1, 1]]]
    assert small[0, 0, 1, 1] > 0.3  # anti-aliasing reaches over to the neighbours


def test_depth_is_never_averaged_over_a_border() -> None:
    target = torch.tensor([[[1.0, 1.0, 9.0, 9.0]] * 4])
    for size in [(2, 2), (3, 3), (8, 8)]:
        assert set(Depth().resize_labels(target, size).flatten().tolist()) == {1.0, 9.0}


def test_labels_stay_exact_through_resizing() -> None:
    target = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    enlarged = Semseg(classes=40).resize_labels(target, (32, 48))
    assert enlarged.dtype == torch.uint8
    assert torch.equal(enlarged[:, ::2, ::3], target)


def test_unknown_kind_is_named_with_its_task() -> None:
    with pytest.raises(UsageError, match=r"kind of tasks\.far 'dept'; did you mean 'depth'"):
        build_tasks({"far": TaskSpec(kind="dept")})


def details(task: Task, *batches: tuple[Tensor, Tensor]) -> dict[str, float]:
    meter = task.meter()
    for prediction, target in batches:
        meter.update(prediction, target)
    return meter.details()


def test_iou_of_each_class_is_told_by_name() -> None:
    # class 0: 1 hit of 2, class 1: 1 of 2, class 2: 1 of 1, class 3 is absent
    pixels = scores([[0, 0], [1, 2]], 4), bytes_of([[0, 1], [1, 2]])
    task = Semseg(classes=4, class_names=("wall", "floor", "bed", "door"))
    told = details(task, pixels)
    expected = {"IoU wall": 50, "IoU floor": 50, "IoU bed": 100, "IoU door": math.nan}
    assert told == pytest.approx(expected, nan_ok=True)
    assert [*details(Semseg(classes=4), pixels)] == ["IoU 0", "IoU 1", "IoU 2", "IoU 3"]


def test_relative_figures_of_depth() -> None:
    # 2 for 1.6 and 1.6 for 2 are just a factor of 1.25 off, 5 for 4.1 below it, -1 is no depth
    first = torch.tensor([[[[2.0, 1.6, 7.0]]]]), torch.tensor([[[1.6, 2.0, 0.0]]])
    second = torch.tensor([[[[5.0, -1.0]]]]), torch.tensor([[[4.1, 1.0]]])
    told = details(Depth(), first, second)
    assert told["abs rel"] == pytest.approx((0.4 / 1.6 + 0.4 / 2 + 0.9 / 4.1 + 2) / 4, rel=1e-6)
    assert told["δ < 1.25 (%)"] == pytest.approx(25)


def test_shares_of_small_angles_and_their_median() -> None:
    angles = [0.0, 11.0, 12.0, 25.0, 90.0]
    turned = [(math.sin(math.radians(a)), 0.0, -math.cos(math.radians(a))) for a in angles]
    prediction = torch.tensor(turned).T.reshape(1, 3, 1, 5)
    target = torch.tensor([0.0, 0.0, -1.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, 5)
    told = details(Normals(), (prediction[..., :2], target[..., :2]), (prediction[..., 2:],
                   target[..., 2:]))  # fmt: skip
    assert told.pop("median angle") == pytest.approx(12, abs=0.01)
    expected = {"within 11.25 deg (%)": 40, "within 22.5 deg (%)": 60, "within 30 deg (%)": 80}
    assert told == pytest.approx(expected)
    broken = details(Normals(), (prediction * math.nan, target))
    assert broken["within 30 deg (%)"] == 0
    assert broken["median angle"] == pytest.approx(180, abs=0.01)


def test_the_largest_f_measure_is_of_mean_precision_and_mean_recall() -> None:
    # Below 0.3: precision 1/2 and 1, recall 1 and 1/2; above, in the second frame alone, 1 and 1/2.
    told = details(
        Saliency(),
        (logits([[0.3, 0.3, 0.05]]), bytes_of([[1, 0, 0]])),
        (logits([[0.9, 0.05, 0.05]]), bytes_of([[1, 1, 0]])),
    )
    assert told == {"maxF": pytest.approx(2 * 0.75 * 0.75 / (0.75 + 0.75))}
    right = logits([[0.1, 0.1]]), bytes_of([[0, 0]])  # nothing salient, nothing predicted
    assert details(Saliency(), right) == {"maxF": 1}
    assert details(Saliency(), (logits([[0.01, 0.01]]), bytes_of([[1, 1]]))) == {"maxF": 0}


def test_edges_tell_the_best_f_over_all_frames_and_per_frame() -> None:
    # A frame of one long line, predicted one pixel beside it, within a tolerance of a tenth.
    line, found = torch.zeros(2, 1, 32, 32)
    line[:, :, 16], found[:, :, 17] = 1, 0.8
    target = line.to(torch.uint8)
    prediction = (found.clamp(0.001, 0.999)[:, None]).logit()
    told = details(Edges(tolerance=0.1), (prediction, target))
    assert told == {"odsF": 1.0, "oisF": 1.0}
    # Within half a pixel nothing is matched.
    assert details(Edges(tolerance=0.01), (prediction, target)) == {"odsF": 0.0, "oisF": 0.0}
    assert details(Edges(thresholds=0), (prediction, target)) == {}
    quick = Edges().meter(details=False)
    quick.update(prediction, target)
    slow = Edges().meter()
    slow.update(prediction, target)
    assert (quick.compute(), quick.details()) == (slow.compute(), {})
