"""The look of every page, over studies of all kinds: nothing cut, covered, or too small to read."""

import dataclasses
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from gatesearch.cost.of_tasks import task_sets
from gatesearch.results import Result, StudyRecord
from tests.report.page_checks import figure_faults, filled_share, page_faults
from tests.report.synthetic import (
    ALPHABETS,
    FACES,
    image_predictions,
    predictions,
    record,
    with_details,
)

NINE = (
    "uniform", "scalar", "dwa", "uncertainty", "auto_lambda", "rlw", "pcgrad", "cagrad", "mgda_ub",
)  # fmt: skip
LONG = "a_task_whose_name_is_long_enough_to_fill_a_line_of_the_page_all_by_itself_and_more"


def rename_tasks(study: StudyRecord, names: dict[str, str]) -> StudyRecord:
    """Give tasks other names everywhere in a record."""

    def new_key(key: str) -> str:
        head, dot, task = key.rpartition(".")
        return f"{head}{dot}{names.get(task, task)}"

    def renamed(result: Result) -> Result:
        return dataclasses.replace(
            result,
            metrics={
                split: {new_key(k): v for k, v in values.items()}
                for split, values in result.metrics.items()
            },
            curves={new_key(k): v for k, v in result.curves.items()},
            sharing={new_key(k): v for k, v in result.sharing.items()},
            params={new_key(k): v for k, v in result.params.items()},
        )

    return dataclasses.replace(
        study,
        tasks=tuple(dataclasses.replace(t, name=names.get(t.name, t.name)) for t in study.tasks),
        baselines=tuple(map(renamed, study.baselines)),
        trials=tuple(map(renamed, study.trials)),
    )


def copy_tasks(study: StudyRecord, count: int) -> StudyRecord:
    """Give a record of one task `count` tasks like it."""
    first = study.tasks[0]
    names = [f"{first.name}_{i}" for i in range(count)]

    def copied(result: Result) -> Result:
        def spread(values, sign=1.0):
            out = {}
            for key, value in values.items():
                head, dot, task = key.rpartition(".")
                copies = names if task == first.name else [task]
                out |= {f"{head}{dot}{name}": value for name in copies}
            return out

        return dataclasses.replace(
            result,
            metrics={split: spread(values) for split, values in result.metrics.items()},
            curves=spread(result.curves),
            sharing=spread(result.sharing),
            params=spread(result.params),
        )

    return dataclasses.replace(
        study,
        tasks=tuple(dataclasses.replace(first, name=name) for name in names),
        baselines=tuple(map(copied, study.baselines)),
        trials=tuple(map(copied, study.trials)),
    )


def change_trials(study: StudyRecord, **values) -> StudyRecord:
    trials = tuple(
        dataclasses.replace(trial, **values) if trial.state == "complete" else trial
        for trial in study.trials
    )
    return dataclasses.replace(study, trials=trials)


def with_layers(study: StudyRecord, names: tuple[str, ...]) -> StudyRecord:
    rng = np.random.default_rng(3)
    trials = tuple(
        dataclasses.replace(
            trial,
            layers=names,
            sharing={task: tuple(rng.uniform(size=len(names))) for task in trial.sharing},
        )
        for trial in study.trials
    )
    return dataclasses.replace(study, trials=trials)


def one_task(tmp_path):
    stored = predictions(tmp_path / "p.npz", tasks=("depth",), labels=("stl", "mtl", "trial 1"))
    return record(tasks=("depth",), trials=3, failed=(), predictions=stored)


def ten_tasks(tmp_path):
    return copy_tasks(record(tasks=("depth",), trials=12), 10)


def forty_classes(tmp_path):
    tasks = ("semseg", "depth", "normals", "edges")
    path = predictions(tmp_path / "p.npz", tasks=tasks, labels=("stl", "mtl", "trial 1", "trial 2"))
    arrays = dict(np.load(path))
    rng = np.random.default_rng(0)
    for key in list(arrays):
        if key.endswith(".semseg"):
            arrays[key] = rng.integers(0, 40, arrays[key].shape, dtype=np.uint8)
    np.savez(path, **arrays)
    study = record(tasks=tasks, trials=4, failed=(), predictions=path)
    names = tuple(f"class of the name {i}" for i in range(40))
    infos = (dataclasses.replace(study.tasks[0], class_names=names), *study.tasks[1:])
    return dataclasses.replace(study, tasks=infos)


def long_names(tmp_path):
    names = {"semseg": LONG, "depth": LONG + "2", "normals": "深度 $x^2$ %\\frac{"}
    study = rename_tasks(record(trials=9, failed=(2,)), names)
    baselines = tuple(
        dataclasses.replace(result, method="$\\odd_" + "method_" * 12)
        if result.method == "mtan"
        else result
        for result in study.baselines
    )
    infos = tuple(
        dataclasses.replace(
            task, metric="metric of a name that is long " * 2, unit="furlong/fortnight"
        )
        for task in study.tasks
    )
    study = dataclasses.replace(study, name="s" * 120, tasks=infos, baselines=baselines,
                                protocol="protocol_" * 30)  # fmt: skip
    layers = tuple(f"encoder.stage{i // 3}.{'block_with_a_name_' * 3}{i}" for i in range(18))
    trials = tuple(
        dataclasses.replace(trial, reason="日本 $ {" + "x" * 900 if trial.reason else "")
        for trial in with_layers(study, layers).trials
    )
    return with_costs_of_tasks(dataclasses.replace(study, trials=trials))


def not_numbers(tmp_path):
    study = record(trials=6, failed=())
    spoilt = []
    for i, trial in enumerate(study.trials):
        value = (math.nan, math.inf, -math.inf, 1.0, 1e30, 36.0)[i]
        metrics = {s: m | {"semseg": value} for s, m in trial.metrics.items()}
        curves = dict.fromkeys(trial.curves, (math.nan, math.inf, 1.0))
        sharing = dict.fromkeys(trial.sharing, (math.nan,) * 3)
        spoilt.append(dataclasses.replace(trial, metrics=metrics, curves=curves, sharing=sharing))
    return dataclasses.replace(study, trials=tuple(spoilt))


def huge_and_tiny(tmp_path):
    study = record(trials=8, failed=(), seeds=(0, 1))

    def scaled(result):
        return dataclasses.replace(
            result, gflops=result.gflops * 1e7, backbone_gflops=1e-9, params_m=1e9,
            train_seconds=1e9, train_pflops=1e-12, curves={
                key: tuple(1e-9 * v for v in values) for key, values in result.curves.items()
            },
        )  # fmt: skip

    return dataclasses.replace(
        study,
        baselines=tuple(map(scaled, study.baselines)),
        trials=tuple(map(scaled, study.trials)),
    )


def same_lambda(tmp_path):
    study = record(trials=3, failed=())
    trials = tuple(
        dataclasses.replace(trial, params={**trial.params, "lambda_s": 3.0 + 0.01 * i})
        for i, trial in enumerate(study.trials)
    )
    return dataclasses.replace(study, trials=trials)


DRAWN = ("stl", "mtl", "mtan", "cross_stitch", "trial 1", "trial 2")


def whole_images(tmp_path, tasks, **options):
    """A record of tasks of whole images, with further figures and predictions."""
    stored = image_predictions(tmp_path / "p.npz", tasks=tasks, labels=DRAWN)
    options = {"trials": 6, "failed": ()} | options
    return with_details(record(tasks=tasks, predictions=stored, **options))


def dense_and_whole_images(tmp_path):
    dense = ("semseg", "depth")
    whole = ("age", "pose", "Hebrew", "face")
    arrays = dict(np.load(predictions(tmp_path / "d.npz", tasks=dense, labels=DRAWN)))
    arrays |= {
        key: values
        for key, values in np.load(
            image_predictions(tmp_path / "i.npz", tasks=whole, labels=DRAWN)
        ).items()
        if key != "image"
    }
    np.savez(tmp_path / "p.npz", **arrays)
    return with_details(
        record(tasks=(*dense, *whole), trials=5, failed=(), predictions=tmp_path / "p.npz")
    )


def forty_classes_of_twelve_networks(tmp_path):
    study = record(tasks=("semseg",), trials=60, failed=(), weightings=("uniform", "dwa"))
    names = tuple(f"class of the name {i}" for i in range(40))
    infos = (dataclasses.replace(study.tasks[0], class_names=names),)
    return with_details(dataclasses.replace(study, tasks=infos))


def partial_labels(tasks, **options):
    study = record(tasks=tasks, **options)
    parts = {"train": 715, "validation": 80, "test": 654}
    labelled = {
        part: {task: count // (i + 1) for i, task in enumerate(tasks)}
        for part, count in parts.items()
    }
    return dataclasses.replace(study, data={**study.data, "labelled": labelled})


def steered():
    """A record of trials under budgets whose networks follow preferences, and of some without."""
    study = record(trials=9, failed=(4,))

    def asked(trial: Result) -> Result:
        shares = {f"prefer.{task.name}": (1 + i) / 3 for i, task in enumerate(study.tasks)}
        budget = ("", "1.3xMTL", "20M+892G")[trial.trial % 3]
        return dataclasses.replace(trial, method="ecmt", params=shares, budget=budget)

    return dataclasses.replace(study, trials=(*study.trials[:2], *map(asked, study.trials[2:])))


def seven_searched(folder):
    """28 trials, four of each searched method, with the methods' baselines beside them."""
    names = ("interrogate", "one_shot", "adashare", "lomt", "ecmt", "dymu", "branch")
    study = record(
        trials=28, failed=(), methods=("stl", "mtl", "mtan", "adashare", "lomt", "branch")
    )
    trials = tuple(dataclasses.replace(t, method=names[t.trial % len(names)]) for t in study.trials)
    return dataclasses.replace(study, trials=trials)


def with_costs_of_tasks(study: StudyRecord) -> StudyRecord:
    """Give every trial what each task of it costs, and each pair of few tasks."""
    sets = task_sets([task.name for task in study.tasks])
    rng = np.random.default_rng(19)

    def told(trial: Result) -> Result:
        shares = zip(sets, rng.uniform(0.3, 1.0, len(sets)), strict=True)
        return dataclasses.replace(
            trial, task_gflops={name: share * trial.gflops for name, share in shares}
        )

    return dataclasses.replace(study, trials=tuple(map(told, study.trials)))


STUDIES = {
    "costs of four tasks": lambda folder: with_costs_of_tasks(
        record(tasks=("semseg", "depth", "normals", "saliency"), trials=30, failed=())
    ),
    "costs and partial labels of forty tasks": lambda folder: with_costs_of_tasks(
        partial_labels(FACES, trials=4, failed=())
    ),
    "steered by preferences": lambda folder: steered(),
    "seven searched methods": seven_searched,
    "forty attributes, one task": lambda folder: whole_images(folder, ("face",)),
    "forty attributes, forty tasks": lambda folder: whole_images(folder, FACES),
    "eight classifications of 46 classes": lambda folder: whole_images(folder, ALPHABETS),
    "dense and whole images": dense_and_whole_images,
    "forty classes of many networks": forty_classes_of_twelve_networks,
    "partial labels": lambda folder: partial_labels(("semseg", "depth", "normals"), trials=4),
    "one task": one_task,
    "ten tasks": ten_tasks,
    "forty classes": forty_classes,
    "long names": long_names,
    "1,000 trials": lambda folder: record(trials=1000, failed=tuple(range(5, 1000, 7))),
    "one trial": lambda folder: record(trials=1, failed=()),
    "no trial": lambda folder: record(trials=0),
    "nothing": lambda folder: record(trials=0, methods=()),
    "every trial failed": lambda folder: record(trials=9, failed=tuple(range(9))),
    "no single-task networks": lambda folder: record(trials=3, failed=(), methods=()),
    "no test figures": lambda folder: record(trials=5, failed=(), test=False),
    "figures that are no numbers": not_numbers,
    "huge and tiny figures": huge_and_tiny,
    "150 layers": lambda folder: with_layers(
        record(trials=9, failed=()),
        tuple(f"blocks.{i // 10}.{i % 10}.depthwise" for i in range(150)),
    ),
    "layers without stages": lambda folder: with_layers(
        record(trials=4, failed=()), tuple(f"convolution{i}" for i in range(60))
    ),
    "nine weightings": lambda folder: record(
        trials=12, failed=(), seeds=(0, 1, 2), weightings=NINE, published="nyud"
    ),
    "almost one lambda": same_lambda,
}  # fmt: skip


@pytest.mark.slow("pages")
@pytest.mark.parametrize("name", STUDIES)
def test_no_page_has_a_fault(name, tmp_path):
    faults = page_faults(STUDIES[name](tmp_path))
    if name == "long names":
        faults = [fault for fault in faults if "is shortened" not in fault]
    assert faults == []


def _tile(figure):
    frame = {"boxstyle": "round,pad=0,rounding_size=0.01", "transform": figure.transFigure}
    return FancyBboxPatch((0.4, 0.4), 0.1, 0.2, **frame)


class TestChecks:
    """The checks find the faults that they are for."""

    def figure(self):
        return Figure(figsize=(4, 3))

    def test_a_page_without_faults(self):
        figure = self.figure()
        figure.text(0.5, 0.7, "above")
        figure.text(0.5, 0.5, "below")
        axes = figure.add_axes((0.2, 0.2, 0.6, 0.2))
        axes.set_xlim(0, 1)
        assert figure_faults(figure) == []

    def test_text_over_text(self):
        figure = self.figure()
        figure.text(0.5, 0.5, "one")
        figure.text(0.52, 0.51, "two")
        assert figure_faults(figure) == ["'one' and 'two' overlap"]

    def test_a_name_of_an_axis_over_its_numbers(self):
        figure = self.figure()
        axes = figure.add_axes((0.3, 0.3, 0.5, 0.5))
        axes.set_ylim(0, 1)
        axes.set_ylabel("GFLOPs")
        axes.yaxis.set_label_coords(-0.045, 0.5)
        assert any("'GFLOPs'" in fault and "overlap" in fault for fault in figure_faults(figure))

    def test_text_that_leaves_the_page(self):
        figure = self.figure()
        figure.text(0.5, 0.5, "a line that is much too long for such a small page")
        assert any("leaves the page" in fault for fault in figure_faults(figure))

    def test_small_type(self):
        figure = self.figure()
        figure.text(0.5, 0.5, "tiny", size=4)
        assert figure_faults(figure) == ["'tiny' is of 4 points"]

    def test_text_that_leaves_its_tile(self):
        figure = self.figure()
        figure.add_artist(_tile(figure))
        figure.text(0.42, 0.5, "wider than the tile")
        assert figure_faults(figure) == ["'wider than the tile' leaves its tile"]

    def test_ticks_outside_the_axes_are_not_drawn_and_do_not_count(self):
        figure = self.figure()
        axes = figure.add_axes((0.3, 0.3, 0.5, 0.5))
        axes.set_xlim(0, 1)
        axes.set_xticks([0.0, 0.5, 0.501, 7.0], ["a", "b", "", "c"])
        assert figure_faults(figure) == []

    def test_an_empty_page(self):
        figure = self.figure()
        figure.text(0.1, 0.8, "a heading alone")
        assert filled_share(figure) < 0.3
