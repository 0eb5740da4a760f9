"""The scaling of regression: learned from the frames that are trained on, and from no others."""

import numpy as np
import pytest

import gatesearch as gs
from gatesearch.study import Study
from gatesearch.tasks.regression import Regression
from gatesearch.trials.data import OpenedData, open_data

KIND = {"kind": "regression"}


def write(folder, values) -> None:
    """Write a pack whose frames have these values; the test part has one of a million."""
    samples = [{"image": np.zeros((4, 4, 3), np.uint8), "age": value} for value in values]
    test = [{**samples[0], "age": 1e6}]
    gs.pack(samples, {"age": KIND}, to=folder, test=test)


def opened(folder, data: object) -> OpenedData:
    study = Study(
        name="ages", protocol={"size": (4, 4)}, tasks={"age": KIND}, data=data,
        training={"epochs": 1, "batch_size": 2},
    )  # fmt: skip
    return open_data(study, data=folder, emit=lambda event: None)


def scaling_of(opened: OpenedData) -> tuple[float, float]:
    task = opened.tasks["age"]
    assert isinstance(task, Regression)
    return task.mean[0], task.std[0]


def values_of(part) -> list[float]:
    return [float(part.labels(i, "age")[0]) for i in range(len(part))]


@pytest.mark.parametrize("train_frames", [0, 6])
def test_frames_that_are_not_trained_on_teach_nothing(tmp_path, train_frames) -> None:
    values = [float(i * i) for i in range(12)]
    write(tmp_path / "ages", values)
    spec = {"dataset": "pack", "path": "ages", "validation": 3, "train_frames": train_frames}
    data = opened(tmp_path, spec)
    trained_on = values_of(data.train)
    assert len(trained_on) == (train_frames or 12) - 3
    assert scaling_of(data) == pytest.approx((np.mean(trained_on), np.std(trained_on)))
    assert scaling_of(data) != pytest.approx((np.mean(values), np.std(values)))


def test_all_data_sets_with_the_task_teach(tmp_path) -> None:
    write(tmp_path / "young", [1.0, 3.0, 2.0, None, 6.0])
    write(tmp_path / "old", [50.0, 70.0, 80.0, 90.0])
    data = opened(
        tmp_path,
        [{"dataset": "pack", "path": name, "validation": 1} for name in ("young", "old")],
    )
    known = [value for value in values_of(data.train) if value == value]
    assert max(known) > 10 > min(known)
    assert scaling_of(data) == pytest.approx((np.mean(known), np.std(known)))
