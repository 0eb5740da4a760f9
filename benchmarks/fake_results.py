"""Fake results, as long as those of a finished study: they fill stores without training."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gatesearch.methods import method_of
from gatesearch.methods.space import Choice, Range, space_of
from gatesearch.models.backbones import BACKBONES
from gatesearch.results import Result
from gatesearch.search.setup import task_infos
from gatesearch.search.space import draw, sampler
from gatesearch.store.names import search_name
from gatesearch.store.opening import open_store
from gatesearch.store.optuna_trials import GAIN_AND_COST
from gatesearch.store.store import PREDICTIONS, Store
from gatesearch.study import Study

_ERRORS = {"semseg": 40.0, "depth": 0.8, "normals": 25.0, "edges": 0.05}


def make_store(study: Study, folder: Path) -> Store:
    """Make a store with a fake result of every baseline of the study."""
    store = open_store(study, folder=folder, tasks=task_infos(study))
    for method in study.methods:
        store.keep_result(fake_result(study, method))
    return store


def add_trial(store: Store, study: Study) -> None:
    """Do what a search does around one trial's training: count, ask, draw, tell."""
    search = search_name("interrogate", "")
    store.open_search(search, GAIN_AND_COST)
    trial_sampler = sampler(study.search, seed=study.seed, index=len(store.numbers))
    pending = store.begin(search, trial_sampler, lambda trial: draw(trial, space(study)))
    result = fake_result(study, "interrogate", pending.number, pending.params)
    store.finish(pending, result, [-10 * result.gflops + pending.number % 5, result.gflops])


def space(study: Study) -> Mapping[str, Range | Choice]:
    """What the trials draw from."""
    return space_of(method_of("interrogate").space, study)


def fake_result(
    study: Study,
    method: str,
    trial: int | None = None,
    params: Mapping[str, float | str] | None = None,
) -> Result:
    """Make a result with curves and shares as long as a real one's."""
    random = np.random.default_rng(trial or 0)
    layers = BACKBONES[study.model.backbone]().gated("conv")
    names = [f"{kind}.{task}" for kind in ("loss", "open") for task in study.tasks]
    epochs = study.training.epochs
    metrics = {task: _ERRORS[task] * random.uniform(0.9, 1.1) for task in study.tasks}
    return Result(
        method=method,
        seed=study.seed,
        trial=trial,
        params=dict(params or {}),
        metrics={"validation": metrics, "test": metrics},
        gflops=random.uniform(0.5, 2.0),
        backbone_gflops=random.uniform(0.3, 1.5),
        params_m=random.uniform(1.0, 5.0),
        epochs=epochs,
        train_seconds=60.0,
        train_images=epochs * 512,
        train_pflops=0.1,
        curves={name: random.uniform(size=epochs).tolist() for name in (*names, "sparsity", "lr")},
        layers=layers,
        sharing={task: random.uniform(size=len(layers)).tolist() for task in study.tasks},
        environment={"device": "none", "precision": "bf16", "memory_format": "nhwc"},
    )


def fake_predictions(study: Study, folder: Path, labels: list[str]) -> None:
    """Write noise as the predictions of these networks, in the form that a run leaves."""
    random = np.random.default_rng(0)
    shape = (study.report_frames, *study.protocol.size)
    make = {
        "semseg": lambda: random.integers(0, 8, shape, dtype=np.uint8),
        "depth": lambda: random.uniform(0.5, 10, shape).astype(np.float32),
        "normals": lambda: random.uniform(-1, 1, (*shape, 3)).astype(np.float16),
        "edges": lambda: random.uniform(0, 1, shape).astype(np.float32),
    }
    arrays = {
        f"{label}.{task}": make[task]() for label in ("truth", *labels) for task in study.tasks
    }
    image = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
    np.savez_compressed(folder / PREDICTIONS, allow_pickle=False, image=image, **arrays)
