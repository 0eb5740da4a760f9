"""What the trainings of a run share: the data opened, the runtime chosen."""

import numpy as np
import pytest
import torch

from gatesearch.datasets import scenes
from gatesearch.errors import DataError, UsageError
from gatesearch.methods import training_of
from gatesearch.training import split_validation
from gatesearch.training.split_data import LABELLED
from gatesearch.trials.context import open_context
from gatesearch.trials.data import check_dataset
from tests.search.tiny import tiny


def opened(tmp_path, data, *overrides, **options):
    given = {"data": data, "stored": None, "emit": lambda event: None} | options
    return open_context(tiny(tmp_path, *overrides), **given)


def test_images_are_augmented_as_the_method_trains_and_always_alike(tmp_path, data) -> None:
    context = opened(
        tmp_path, data, "training.augment={flip=false}",
        "options.mtl.training.augment={flip=false,zoom=[2.0]}",
    )  # fmt: skip
    batch = next(iter(context.train.in_order(3)))
    plain = batch["image"].float()
    as_stl, as_mtl = (
        context.augmented(training_of(context.study, method)) for method in ("stl", "mtl")
    )
    assert torch.equal(as_stl(batch), plain)
    zoomed = as_mtl(batch)
    assert zoomed.shape == plain.shape
    assert not torch.equal(zoomed, plain)
    again = context.augmented(training_of(context.study, "mtl"))
    assert torch.equal(again(batch), zoomed)


def test_the_parts_of_the_data(tmp_path, data) -> None:
    context = opened(tmp_path, data)
    assert [len(part) for part in (context.train, context.validation, context.test)] == [6, 4, 2]
    assert {name: context.data[name] for name in ("train", "validation", "test")} == {
        "train": 6, "validation": 4, "test": 2,
    }  # fmt: skip
    assert context.input_shape == (1, 3, 16, 16)
    assert context.weights == {"semseg": 1.0, "depth": 1.0}
    # The validation part is the same for every seed of the study.
    other = opened(tmp_path, data, "seed=7")
    frames = [c.validation.batch(torch.arange(4))["image"] for c in (context, other)]
    assert torch.equal(*frames)


def test_a_store_keeps_its_runtime(tmp_path, data) -> None:
    stored = {"precision": "fp32", "memory_format": "nhwc"}
    runtime = opened(tmp_path, data, "training.memory_format=nchw", stored=stored).runtime
    assert (runtime.precision, runtime.memory_format) == ("fp32", "nhwc")


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("data.dataset=scnes", UsageError, "unknown data set 'scnes'; did you mean 'scenes'"),
        ("training.batch_size=7", DataError, "batch_size is 7 but only 6 frames"),
        ("data.validation=9", DataError, "9 of 10 are carved off"),
        ("tasks.depth.kind=edges", UsageError, "tasks.depth.kind must be 'depth'"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, data, override, error, message) -> None:
    with pytest.raises(error, match=message):
        opened(tmp_path, data, override)


def without_labels(monkeypatch, split: str, frames: list[int], task: str) -> None:
    """Render frames without a label of a task."""
    plain = scenes.render

    def render(index, *, split, size, **options):
        frame = plain(index, split=split, size=size, **options)
        if split == wanted and index in frames:
            unknown = 255 if task == "semseg" else 0
            frame = {**frame, task: np.full_like(frame[task], unknown)}
        return frame

    wanted = split
    monkeypatch.setattr(scenes, "render", render)


TRAIN, VALIDATION = split_validation(10, validation=4, seed=0)


@pytest.mark.parametrize(
    ("split", "frames", "task", "counts"),
    [
        ("train", list(range(1, 10)), "depth",
         "semseg 6 of 6 in train, 4 of 4 in validation, 2 of 2 in test; "
         "depth 1 of 6 in train, 0 of 4 in validation, 2 of 2 in test"),
        ("test", [0, 1], "depth", "depth 6 of 6 in train, 4 of 4 in validation, 0 of 2 in test"),
        ("train", list(range(10)), "depth", "depth 0 of 6 in train, 0 of 4 in validation, 2 of 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_task_without_labels_in_a_part_is_refused_with_counts(
    tmp_path, monkeypatch, split, frames, task, counts, in_memory
) -> None:
    if not in_memory:
        monkeypatch.setattr("gatesearch.training.split_data.IN_MEMORY_BYTES", 0)
    without_labels(monkeypatch, split, frames, task)
    with pytest.raises(DataError, match="must have labels of every task in every part") as caught:
        opened(tmp_path, tmp_path / "packs")
    assert counts in str(caught.value)
    assert f"Leave {task} out of the study's tasks" in str(caught.value)


def test_the_validation_part_is_stratified_by_labels(tmp_path, monkeypatch) -> None:
    """Two frames with depth: one of them goes to validation, whatever the seed would draw."""
    without_labels(monkeypatch, "train", [*range(8)], "depth")
    context = opened(tmp_path, tmp_path / "packs")
    assert (len(context.train), context.train.labelled) == (6, {"semseg": 6, "depth": 1})
    assert (len(context.validation), context.validation.labelled) == (4, {"semseg": 4, "depth": 1})
    assert context.data["labelled"]["validation"] == {"semseg": 4, "depth": 1}
    batch = context.validation.batch(torch.arange(4))
    assert batch[LABELLED].tolist().count([True, True]) == 1
    assert batch[LABELLED].all(0).tolist() == [True, False]
    known = (batch["depth"] > 0).flatten(1).any(1)
    assert known.tolist() == batch[LABELLED][:, 1].tolist()


def test_a_method_with_a_larger_batch_than_frames_is_refused(tmp_path, data) -> None:
    with pytest.raises(DataError, match=r"options\.mtl\.training\.batch_size is 7 but only 6 fr"):
        opened(tmp_path, data, "options.mtl.training.batch_size=7")


def test_an_unknown_data_set_still_has_costs(tmp_path) -> None:
    with pytest.raises(UsageError, match="`gatesearch flops` needs no data"):
        check_dataset(tiny(tmp_path, "data.dataset=mine"))
