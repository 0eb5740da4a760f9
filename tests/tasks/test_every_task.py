"""What every kind of task keeps to, one suite over `TASKS`: a new kind adds its labels here."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gatesearch.drawing import DRAWINGS
from gatesearch.tasks import TASKS, Task, Warp
from gatesearch.tasks.labels import to_array, to_tensor

CLASSES = 5
SHAPE = (6, 7, 9)  # frames, height, width
STILL = torch.eye(2, 3).expand(6, 2, 3)  # the matrix of frames that do not move


def labels(kind: str, generator: torch.Generator) -> Tensor:
    if kind == "semseg":
        return torch.randint(CLASSES, SHAPE, generator=generator, dtype=torch.uint8)
    if kind == "depth":
        return torch.rand(SHAPE, generator=generator) * 9 + 0.5
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
    return TASKS[kind](classes=CLASSES)


@pytest.fixture
def target(kind: str, generator: torch.Generator) -> Tensor:
    return labels(kind, generator)


@pytest.fixture
def prediction(task: Task, generator: torch.Generator) -> Tensor:
    made = torch.randn(SHAPE[0], task.channels, *SHAPE[1:], generator=generator)
    return made.requires_grad_()


def hidden(task: Task, target: Tensor, rows: slice) -> Tensor:
    target = target.clone()
    target[..., rows, :] = task.unknown_value
    return target


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
    elsewhere = prediction.detach().clone()
    elsewhere[..., :3, :] = 1e4
    loss = task.loss(prediction, half)
    loss.backward()
    assert prediction.grad[..., :3, :].abs().max() == 0
    assert task.loss(elsewhere, half).item() == pytest.approx(loss.item(), rel=1e-6)
    assert measured(task, elsewhere, half, 2) == measured(task, prediction, half, 2)
    # and the rest counts as if the frame were smaller
    kept = task.loss(prediction[..., 3:, :], target[..., 3:, :])
    assert kept.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_figure_does_not_depend_on_batches(task, target, prediction, batch) -> None:
    half = hidden(task, target, slice(2, 4))
    half[0] = task.unknown_value  # one frame without any label
    at_once = measured(task, prediction, half, SHAPE[0])
    assert math.isfinite(at_once)
    assert measured(task, prediction, half, batch) == pytest.approx(at_once, rel=1e-6)


def test_better_predictions_have_better_figures(kind, task, target, prediction) -> None:
    if kind == "semseg":
        right = torch.nn.functional.one_hot(target.long(), CLASSES).movedim(-1, 1) * 20.0
    elif kind == "normals":
        right = target
    else:
        right = target[:, None].float()
        right = right if kind == "depth" else right * 40 - 20
    ours, theirs = (measured(task, p, target, 6) for p in (right, prediction))
    assert (ours > theirs) is task.higher_is_better
    assert task.loss(right, target) < task.loss(prediction, target)
    perfect = {"mIoU": 100.0, "maxIoU": 1.0}.get(task.metric, 0.0)
    assert ours == pytest.approx(perfect, abs=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (3, 4), (14, 18), (5, 20)])
def test_resized_labels_are_labels(kind, task, target, size) -> None:
    half = hidden(task, target, slice(0, 4))
    resized = task.resize_labels(half, size)
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
    assert (task.resize_labels(nothing, size) == task.unknown_value).all()


def test_unmoved_labels_do_not_change(task, target) -> None:
    still = Warp(torch.zeros(6, dtype=torch.bool), torch.ones(6), torch.zeros(6), STILL)
    torch.testing.assert_close(task.transform_labels(target, still), target)


def test_unknown_stays_unknown_however_it_is_moved(task, target) -> None:
    nothing = torch.full_like(target, task.unknown_value)
    angles = torch.linspace(-2, 2, 6)
    moved = task.transform_labels(nothing, Warp(angles > 0, torch.full((6,), 1.5), angles, STILL))
    assert (moved == task.unknown_value).all()


def test_decoded_predictions_have_the_shape_of_the_labels(task, target, prediction) -> None:
    assert task.decode(prediction.detach()).shape == target.shape


def test_decoded_predictions_can_be_drawn(task, target, prediction) -> None:
    drawing = DRAWINGS[task.drawing]
    for labels in (target, task.decode(prediction.detach())):
        picture = drawing.draw(to_array(labels)[0])
        assert (picture.shape, picture.dtype) == ((*SHAPE[1:], 3), np.uint8)
    nothing = to_array(torch.full_like(target, task.unknown_value))
    assert not drawing.draw(nothing[0]).any()


def test_labels_come_back_from_a_pack(task, target) -> None:
    stored = to_array(target).astype(task.storage.dtype)
    assert stored.shape == (*SHAPE, *task.storage.channels)
    read = to_tensor(stored)
    assert read.dtype == target.dtype
    torch.testing.assert_close(read, target, atol=1e-3, rtol=0)


def test_kinds_say_what_their_output_means(kind) -> None:
    assert TASKS[kind](classes=CLASSES).output_meaning


def test_distillation_loss_is_least_at_the_teacher(task: Task, prediction: Tensor) -> None:
    teacher = prediction.detach()
    at_teacher = task.distillation_loss(prediction, teacher)
    (slope,) = torch.autograd.grad(at_teacher, prediction)
    assert slope.abs().max() < 1e-6
    for step in (0.3, -0.3):
        moved = teacher + step * torch.linspace(-1, 1, teacher.numel()).reshape(teacher.shape)
        assert task.distillation_loss(moved, teacher) > at_teacher
