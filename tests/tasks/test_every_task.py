"""What every kind of task keeps to, one suite over `TASKS`: a new kind adds its labels here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gatesearch.answers import ANSWERS, UNKNOWN, complete_names
from gatesearch.drawing import DRAWINGS
from gatesearch.tasks import TASKS, Task, Warp, build_task
from gatesearch.tasks.keypoints import heat_maps
from gatesearch.tasks.labels import labelled_frames, to_array, to_tensor

CLASSES = 5
SHAPE = (6, 7, 9)  # frames, height, width
# Options of kinds beside `classes`; frames of 7 x 9 pixels are small for the default Gaussian.
OPTIONS = {
    "attributes": {"count": 3},
    "regression": {"count": 2},
    "keypoints": {"count": 4, "sigma": 0.1, "flip_pairs": [[0, 2]]},
}
STILL = torch.eye(2, 3).expand(6, 2, 3)  # the matrix of frames that do not move


def labels(kind: str, generator: torch.Generator) -> Tensor:
    if kind in ("semseg", "parts"):
        return torch.randint(CLASSES, SHAPE, generator=generator, dtype=torch.uint8)
    if kind == "classification":
        return torch.randint(CLASSES, SHAPE[:1], generator=generator, dtype=torch.int16)
    if kind == "attributes":
        return torch.randint(2, (SHAPE[0], 3), generator=generator, dtype=torch.uint8)
    if kind == "regression":
        return torch.randn(SHAPE[0], 2, generator=generator)
    if kind == "keypoints":
        places = torch.rand(SHAPE[0], 4, 2, generator=generator) * 1.6 - 0.8
        return torch.cat([places, torch.ones(SHAPE[0], 4, 1)], -1)
    if kind == "depth":
        return torch.rand(SHAPE, generator=generator) * 9 + 0.5
    if kind == "reflectance":
        return torch.rand(SHAPE, generator=generator) * 0.9 + 0.05
    if kind == "normals":
        vectors = torch.randn(SHAPE[0], 3, *SHAPE[1:], generator=generator)
        return vectors / vectors.norm(dim=1, keepdim=True)
    return torch.randint(2, SHAPE, generator=generator, dtype=torch.uint8)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture(params=TASKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def task(kind: str) -> Task:
    return build_task(kind, {"classes": CLASSES, **OPTIONS.get(kind, {})}, where="here")


@pytest.fixture
def target(kind: str, generator: torch.Generator) -> Tensor:
    return labels(kind, generator)


@pytest.fixture
def prediction(task: Task, generator: torch.Generator) -> Tensor:
    size = SHAPE[1:] if task.dense else ()
    made = torch.randn(SHAPE[0], task.channels, *size, generator=generator)
    return made.requires_grad_()


def rows_of(task: Task, rows: slice) -> tuple:
    """Index of rows of pixels; of frames where labels are per image."""
    return (..., rows, slice(None)) if task.storage.dense else (rows,)


def hidden(task: Task, target: Tensor, rows: slice) -> Tensor:
    target = target.clone()
    target[rows_of(task, rows)] = task.unknown_value
    return target


def is_unknown(task: Task, target: Tensor) -> Tensor:
    if math.isnan(task.unknown_value):
        return target.isnan()
    return target == task.unknown_value


def measured(task: Task, prediction: Tensor, target: Tensor, batch: int) -> float:
    meter = task.meter()
    for a, b in zip(prediction.detach().split(batch), target.split(batch), strict=True):
        meter.update(a, b)
    return meter.compute().item()


def test_loss_is_finite_and_every_prediction_is_moved_by_it(task, target, prediction) -> None:
    loss = task.loss(prediction, target)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss > 0
    loss.backward()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad.abs().sum(1) > 0).all()


def test_no_labels_no_loss_no_gradient_no_figure(task, target, prediction) -> None:
    unknown = torch.full_like(target, task.unknown_value)
    loss = task.loss(prediction, unknown)
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.abs().max() == 0
    assert math.isnan(measured(task, prediction, unknown, SHAPE[0]))


def test_hidden_pixels_have_no_say(task, target, prediction) -> None:
    half = hidden(task, target, slice(0, 3))
    without, others = rows_of(task, slice(0, 3)), rows_of(task, slice(3, None))
    elsewhere = prediction.detach().clone()
    elsewhere[without] = 1e4
    loss = task.loss(prediction, half)
    loss.backward()
    assert prediction.grad[without].abs().max() == 0
    assert task.loss(elsewhere, half).item() == pytest.approx(loss.item(), rel=1e-6)
    assert measured(task, elsewhere, half, 2) == measured(task, prediction, half, 2)
    # and the rest counts as if the frame were smaller
    kept = task.loss(prediction[others], target[others])
    assert kept.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_figure_does_not_depend_on_batches(task, target, prediction, batch) -> None:
    half = hidden(task, target, slice(2, 4))
    half[0] = task.unknown_value  # one frame without any label
    at_once = measured(task, prediction, half, SHAPE[0])
    assert math.isfinite(at_once)
    assert measured(task, prediction, half, batch) == pytest.approx(at_once, rel=1e-6)


def test_better_predictions_have_better_figures(kind, task, target, prediction) -> None:
    if kind in ("semseg", "parts", "classification"):
        right = torch.nn.functional.one_hot(target.long(), CLASSES).movedim(-1, 1) * 20.0
    elif kind in ("normals", "regression"):
        right = target
    elif kind == "attributes":
        right = target * 40.0 - 20
    elif kind == "keypoints":
        right = heat_maps(target, SHAPE[1:], 0.1)
    else:
        right = target[:, None].float()
        right = right if kind in ("depth", "reflectance") else right * 40 - 20
    ours, theirs = (measured(task, p, target, 6) for p in (right, prediction))
    assert (ours > theirs) is task.higher_is_better
    assert task.loss(right, target) < task.loss(prediction, target)
    perfect = {"%": 100.0}.get(task.unit, float(task.metric == "maxIoU"))
    assert ours == pytest.approx(perfect, abs=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (14, 18), (5, 20)])
def test_resized_labels_are_labels(kind, task, target, size) -> None:
    half = hidden(task, target, slice(0, 4))
    resized = task.resize_labels(half, size)
    if not task.storage.dense:
        torch.testing.assert_close(resized, half, equal_nan=True)
        return
    assert resized.shape == (*target.shape[:-2], *size)
    assert resized.dtype == target.dtype
    if kind == "normals":
        length = resized.norm(dim=1)
        assert ((length - 1).abs().minimum(length) < 1e-5).all()
    else:
        assert set(resized.unique().tolist()) <= set(half.unique().tolist())
    if size == SHAPE[1:]:
        torch.testing.assert_close(resized, half)
    nothing = torch.full_like(target, task.unknown_value)
    assert is_unknown(task, task.resize_labels(nothing, size)).all()


def test_unmoved_labels_do_not_change(task, target) -> None:
    still = Warp(torch.zeros(6, dtype=torch.bool), torch.ones(6), torch.zeros(6), STILL)
    torch.testing.assert_close(task.transform_labels(target, still), target)


def test_unknown_stays_unknown_however_it_is_moved(task, target) -> None:
    nothing = torch.full_like(target, task.unknown_value)
    angles = torch.linspace(-2, 2, 6)
    moved = task.transform_labels(nothing, Warp(angles > 0, torch.full((6,), 1.5), angles, STILL))
    assert is_unknown(task, moved).all()


def test_decoded_predictions_have_the_shape_of_the_labels(task, target, prediction) -> None:
    shape = (SHAPE[0], CLASSES) if task.drawing == "one_class" else target.shape
    assert task.decode(prediction.detach()).shape == shape


def test_decoded_predictions_can_be_shown(task, target, prediction) -> None:
    decoded = to_array(task.decode(prediction.detach()))
    if task.drawing in ANSWERS:
        answer, numbers = ANSWERS[task.drawing], decoded[0].reshape(-1)
        names = complete_names(task.output_names, numbers.size // answer.numbers)
        heads = answer.heads(names, task.unit)
        assert len(heads) == len(set(heads)) == len(answer.cells(numbers, names, SHAPE[1:]))
        rows = answer.rows(to_array(target)[0].reshape(-1), [numbers], names, task.unit)
        assert all(row.truth != UNKNOWN != row.answers[0] for row in rows)
        nothing = to_array(torch.full_like(target, task.unknown_value))[0].reshape(-1)
        for row in answer.rows(nothing, [numbers], names, task.unit):
            assert (row.truth, row.right) == (UNKNOWN, (None,))
        return
    drawing = DRAWINGS[task.drawing]
    for labels in (to_array(target), decoded):
        picture = drawing.draw(labels[0])
        assert (picture.shape, picture.dtype) == ((*SHAPE[1:], 3), np.uint8)
    nothing = to_array(torch.full_like(target, task.unknown_value))
    assert not drawing.draw(nothing[0]).any()


def test_labels_come_back_from_a_pack(task, target) -> None:
    stored = to_array(target).astype(task.storage.dtype)
    assert stored.shape == (SHAPE[0], *task.storage.shape(SHAPE[1:]))
    read = to_tensor(stored)
    assert read.dtype == target.dtype
    torch.testing.assert_close(read, target, atol=1e-3, rtol=0)


def test_kinds_say_what_their_output_means(kind) -> None:
    assert TASKS[kind](classes=CLASSES).output_meaning


def test_frames_without_labels_are_told_from_others(task, target) -> None:
    some = target.clone()
    some[:2] = task.unknown_value
    expected = [False, False, True, True, True, True]
    assert labelled_frames(some, task.unknown_value).tolist() == expected


@pytest.mark.parametrize("value", [0.0, 1e-30, 3e4, -3e4])
def test_extreme_predictions_have_a_finite_loss_and_gradient(task, target, prediction, value):
    extreme = torch.full_like(prediction, value).half().float().requires_grad_()
    loss = task.loss(extreme, target)
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad.isfinite().all()
    assert math.isfinite(measured(task, extreme, target, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_predictions_of_half_precision_have_nearly_the_same_loss(task, target, prediction, dtype):
    rounded = prediction.detach().to(dtype)
    assert task.loss(rounded.float(), target).item() == pytest.approx(
        task.loss(prediction, target).item(), rel=2e-2
    )


def test_further_figures_are_of_the_part_and_undefined_without_labels(task, target, prediction):
    half = hidden(task, target, slice(2, 4))
    figures = [details_of(task, prediction, half, batch) for batch in (1, 4, 6)]
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-6, nan_ok=True)
    assert all(isinstance(value, float) for value in figures[0].values())
    nothing = torch.full_like(target, task.unknown_value)
    assert all(math.isnan(v) for v in details_of(task, prediction, nothing, 2).values())


def details_of(task: Task, prediction: Tensor, target: Tensor, batch: int) -> dict[str, float]:
    meter = task.meter()
    for a, b in zip(prediction.detach().split(batch), target.split(batch), strict=True):
        meter.update(a, b)
    return meter.details()


def test_a_task_is_built_again_from_its_options(kind, task) -> None:
    assert build_task(kind, task.options, where="here") == task


def test_distillation_loss_is_least_at_the_teacher(task: Task, prediction: Tensor) -> None:
    teacher = prediction.detach()
    at_teacher = task.distillation_loss(prediction, teacher)
    (slope,) = torch.autograd.grad(at_teacher, prediction)
    assert slope.abs().max() < 1e-6
    for step in (0.3, -0.3):
        moved = teacher + step * torch.linspace(-1, 1, teacher.numel()).reshape(teacher.shape)
        assert task.distillation_loss(moved, teacher) > at_teacher
