"""A study that never ran, whose figures a seeded generator drew; and what its report says."""

import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from matplotlib.figure import Figure
from matplotlib.style import context

from gatesearch.report import style
from gatesearch.report.layout import lay_out
from gatesearch.results import Result, StudyRecord, TaskInfo

TASKS = {
    "semseg": (TaskInfo("semseg", "mIoU", "%", True, "semseg", "classes", 40), 36.0),
    "depth": (TaskInfo("depth", "RMSE", "m", False, "depth", "range"), 0.62),
    "normals": (TaskInfo("normals", "mean angle", "deg", False, "normals", "directions"), 23.5),
    "edges": (TaskInfo("edges", "loss", "", False, "edges", "certainty"), 0.0175),
    "saliency": (TaskInfo("saliency", "maxIoU", "", True, "saliency", "certainty"), 0.66),
    "parts": (TaskInfo("parts", "mIoU", "%", True, "semseg", "classes", 7), 59.8),
}
FACES = (
    "5 o'Clock Shadow", "Arched Eyebrows", "Attractive", "Bags Under Eyes", "Bald", "Bangs",
    "Big Lips", "Big Nose", "Black Hair", "Blond Hair", "Blurry", "Brown Hair", "Bushy Eyebrows",
    "Chubby", "Double Chin", "Eyeglasses", "Goatee", "Gray Hair", "Heavy Makeup",
    "High Cheekbones", "Male", "Mouth Slightly Open", "Mustache", "Narrow Eyes", "No Beard",
    "Oval Face", "Pale Skin", "Pointy Nose", "Receding Hairline", "Rosy Cheeks", "Sideburns",
    "Smiling", "Straight Hair", "Wavy Hair", "Wearing Earrings", "Wearing Hat",
    "Wearing Lipstick", "Wearing Necklace", "Wearing Necktie", "Young",
)  # fmt: skip
ALPHABETS = ("Balinese", "Bengali", "Futurama", "Gujarati", "Hebrew", "Korean", "Malay", "Tifinagh")
LETTERS = tuple(f"character{i:02}" for i in range(1, 47))


def _attributes(name: str, names: tuple[str, ...]) -> TaskInfo:
    options = {"count": len(names), "names": list(names)}
    return TaskInfo(name, "accuracy", "%", True, "attributes", "attributes", options=options)


# Tasks of whole images.
IMAGES = {
    "face": (_attributes("face", FACES), 88.0),
    **{name: (_attributes(name, (name,)), 88.0) for name in FACES},
    **{
        name: (
            TaskInfo(
                name, "accuracy", "%", True, "classification", "one_class", len(LETTERS), LETTERS
            ),
            71.0,
        )
        for name in ALPHABETS
    },
    "age": (
        TaskInfo("age", "MAE", "years", False, "regression", "numbers", options={"unit": "years"}),
        5.2,
    ),
    "pose": (
        TaskInfo(
            "pose", "PCK@0.1", "%", True, "keypoints", "points",
            options={"count": 3, "names": ["nose", "left eye", "right eye"]},
        ),
        84.0,
    ),
}  # fmt: skip
KNOWN = TASKS | IMAGES
LAYERS = tuple(
    ["stem.conv"] + [f"layer{s}.{b}.conv{c}" for s in range(1, 5) for b in (0, 1) for c in (1, 2)]
)
COSTS = {"stl": 12.4, "mtl": 6.1, "cross_stitch": 12.5, "mtan": 7.9, "nddr": 12.9}
GAINS = {"stl": 0.0, "mtl": -0.031, "cross_stitch": 0.012, "mtan": -0.012, "nddr": 0.006}
ENVIRONMENT = {
    "device": "synthetic device",
    "precision": "bf16",
    "memory_format": "nhwc",
    "torch": "2.15.0",
    "optuna": "5.0.0",
    "gatesearch": "0.1.0",
    "python": "3.11.8",
}


def record(
    *,
    tasks: tuple[str, ...] = ("semseg", "depth", "normals"),
    trials: int = 12,
    seeds: tuple[int, ...] = (0,),
    methods: tuple[str, ...] = ("stl", "mtl", "cross_stitch", "mtan"),
    weightings: tuple[str, ...] = ("uniform",),
    failed: tuple[int, ...] = (5,),
    test: bool = True,
    published: str = "",
    predictions: Path | None = None,
    name: str = "synthetic",
) -> StudyRecord:
    """A record whose numbers behave like a study's: more gates open, more cost, more gain."""
    rng = np.random.default_rng(7)
    infos = tuple(KNOWN[task][0] for task in tasks)
    single = {seed: _metrics(tasks, 0.0, rng, noise=0.004) for seed in seeds}
    baselines = tuple(
        _result(
            method, seed, tasks, COSTS.get(method, 10.0), GAINS.get(method, 0.0), single[seed], rng,
            test, weighting=weighting,
        )
        for method in methods
        for weighting in (weightings if method != "stl" else ("uniform",))
        for seed in seeds
    )  # fmt: skip
    return StudyRecord(
        name=name,
        fingerprint="0123456789ab",
        definition=_definition(tasks),
        protocol="synthetic-40-96x128",
        published=published,
        tasks=infos,
        baselines=baselines,
        trials=tuple(
            _trial(number, seeds[0], tasks, single[seeds[0]], rng, test, failed)
            for number in range(trials)
        ),
        data={
            "pack": "synthetic-96x128",
            "sha256": "f" * 64,
            "train": 715,
            "validation": 80,
            "test": 654,
        },
        predictions=predictions,
    )


def predictions(
    path: Path, *, tasks: tuple[str, ...], labels: tuple[str, ...], frames: int = 3
) -> Path:
    """A room of a floor, a wall and boxes; a prediction is the truth of a shifted, noisier room."""
    rng = np.random.default_rng(11)
    H, W = 48, 64
    rows, columns = np.mgrid[0:H, 0:W]
    arrays: dict[str, np.ndarray] = {}
    images, truth = [], {task: [] for task in tasks}
    for frame in range(frames):
        classes = np.where(rows > 30, 1, 0)
        metres = np.where(rows > 30, 6.0 - 0.11 * (rows - 30), 5.0 + 0.01 * columns)
        facing = np.zeros((H, W, 3))
        facing[..., 2] = np.where(rows > 30, 0.0, -1.0)
        facing[..., 1] = np.where(rows > 30, -1.0, 0.0)
        for box in range(5):
            top, left = rng.integers(4, 30), rng.integers(2, 48)
            part = (slice(top, top + 14), slice(left, left + 12))
            classes[part], metres[part] = 3 + box + 5 * frame, 2.0 + 0.5 * box
            facing[part] = (0.6 if box % 2 else -0.6, 0.0, -0.8)
        edges = np.zeros((H, W), np.uint8)
        edges[:, 1:] |= classes[:, 1:] != classes[:, :-1]
        edges[1:] |= classes[1:] != classes[:-1]
        shade = np.stack(
            [40 + 25 * (classes % 8), 60 + 30 * (6 - metres), 120 + 12 * facing[..., 0]], -1
        )
        images.append(np.clip(shade + rng.normal(0, 6, (H, W, 3)), 0, 255).astype(np.uint8))
        labels_of = {
            "semseg": classes.astype(np.uint8),
            "parts": (classes % 7).astype(np.uint8),
            "depth": metres.astype(np.float32),
            "normals": facing.astype(np.float16),
            "edges": edges,
            "saliency": (classes > 2).astype(np.uint8),
        }
        for task in tasks:
            truth[task].append(labels_of[task])
    arrays["image"] = np.stack(images)
    for task in tasks:
        whole = np.stack(truth[task])
        known = whole.copy()
        known[:, :3] = 255 if whole.dtype == np.uint8 else 0
        arrays[f"truth.{task}"] = known
        for i, label in enumerate(labels):
            guess = np.roll(whole, (i + 1) % 3, axis=2)
            if task in ("edges", "saliency"):
                guess = np.clip(guess * 0.8 + rng.uniform(0, 0.2, guess.shape), 0, 1).astype("f4")
            elif whole.dtype != np.uint8:
                guess = (guess + rng.normal(0, 0.08, guess.shape)).astype(whole.dtype)
            arrays[f"{label}.{task}"] = guess
    np.savez_compressed(path, **arrays)
    return path


def image_predictions(
    path: Path, *, tasks: tuple[str, ...], labels: tuple[str, ...], frames: int = 3
) -> Path:
    """Predictions of tasks of whole images, most of them right; some labels are missing."""
    rng = np.random.default_rng(13)
    arrays = {"image": rng.integers(0, 255, (frames, 48, 64, 3), dtype=np.uint8)}
    for task in tasks:
        info = KNOWN[task][0]
        count = int(info.options.get("count", max(info.classes, 1)))
        names = ["truth", *labels]
        for name in names:
            if info.kind == "classification":
                truth = np.arange(frames)[:, None] % count
                values = rng.dirichlet(np.ones(count) * 0.05, frames)
                values[np.arange(frames), truth[:, 0]] += rng.uniform(0, 1.5, frames)
                values = (values / values.sum(1, keepdims=True)).astype(np.float32)
                truth = truth.astype(np.int16)
                truth[-1] = -1
            elif info.kind == "attributes":
                truth = (np.add.outer(np.arange(frames), np.arange(count)) % 3 == 0).astype("u1")
                off = rng.uniform(0, 0.6, truth.shape)
                values = np.where(truth == 1, 1 - off, off).astype(np.float32)
                truth[-1] = 255
            elif info.kind == "regression":
                truth = np.linspace(5, 80, frames * count).reshape(frames, count).astype("f4")
                values = truth + rng.normal(0, 4, truth.shape).astype("f4")
                truth[-1] = np.nan
            else:
                truth = rng.uniform(-0.8, 0.8, (frames, count, 3)).astype("f4")
                truth[..., 2] = 1
                values = truth.reshape(frames, -1)
                truth[-1] = np.nan
                truth = truth.reshape(frames, -1)
            arrays[f"{name}.{task}"] = truth if name == "truth" else values
    np.savez_compressed(path, **arrays)
    return path


def with_details(study: StudyRecord) -> StudyRecord:
    """Give every measured network of a record further figures of all its tasks."""
    rng = np.random.default_rng(17)

    def figures(task: TaskInfo) -> dict[str, float]:
        names = [*(task.class_names or task.options.get("names", ()))]
        names = names or [str(i) for i in range(task.classes)]
        drawn = {
            "semseg": [f"IoU {name}" for name in names],
            "classification": [
                "balanced accuracy", "macro F1", "top-5 accuracy", *(f"accuracy {n}" for n in names)
            ],
            "attributes": ["balanced accuracy", "F1", *(f"accuracy {name}" for name in names)],
            "regression": ["RMSE", "R2"],
            "depth": ["abs rel", "δ < 1.25 (%)"],
        }  # fmt: skip
        return {name: float(rng.uniform(5, 95)) for name in drawn.get(task.kind, ())}

    def told(result: Result) -> Result:
        all_ = {task.name: figures(task) for task in study.tasks}
        some = {name: values for name, values in all_.items() if values}
        return replace(result, details=dict.fromkeys(result.metrics, some))

    return replace(
        study,
        baselines=tuple(map(told, study.baselines)),
        trials=tuple(map(told, study.trials)),
    )


def page_count(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", pdf))


def pages(module: ModuleType, study: StudyRecord) -> list[Figure]:
    """The pages of one module's sections alone."""
    with context(style.RC, after_reset=True):
        return lay_out(module.sections(study))


def words(module: ModuleType, study: StudyRecord) -> str:
    """All text of a module's sections, as matplotlib lays it out."""
    texts = []
    for figure in pages(module, study):
        texts += [text.get_text() for text in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(texts)


def _trial(number, seed, tasks, single, rng, test, failed) -> Result:
    share = float(rng.uniform(0.05, 0.95))
    lambda_s = float(10 ** rng.uniform(-2, 1))
    params = {"lambda_s": lambda_s} | {f"tau.{task}": float(rng.uniform()) for task in tasks}
    if number in failed:
        reason = "loss of depth is not finite at step 118 (nan): lower training.lr, found 0.002"
        return Result(
            "interrogate", seed, number, state="failed", reason=reason, params=params,
            environment=ENVIRONMENT,
        )  # fmt: skip
    share *= 1 / (1 + 0.3 * lambda_s)
    gain = -0.03 + 0.06 * share**0.5 + float(rng.normal(0, 0.006))
    cost = 6.1 + 6.3 * share**0.8
    return _result(
        "interrogate", seed, tasks, cost, gain, single, rng, test, trial=number, params=params,
        share=share,
    )  # fmt: skip


def _result(
    method, seed, tasks, cost, gain, single, rng, test, *, trial=None, params=None, share=None,
    weighting="uniform",
) -> Result:  # fmt: skip
    epochs = 30
    time = np.arange(1, epochs + 1)
    curves = {
        f"loss.{task}": _floats(
            (2.2 - i * 0.4) * time**-0.45 * (1 - gain) + rng.normal(0, 0.01, epochs)
        )
        for i, task in enumerate(tasks)
    }
    drawn = np.ones if weighting == "uniform" else lambda n: rng.uniform(0.5, 2, n)
    curves |= {f"weight.{task}": _floats(drawn(epochs)) for task in tasks}
    sharing = {}
    if share is not None:
        depth = np.linspace(0, 1, len(LAYERS))
        for i, task in enumerate(tasks):
            bent = share * (0.4 + 1.1 * depth ** (1 + i)) + rng.normal(0, 0.05, len(LAYERS))
            sharing[task] = _floats(np.clip(bent, 0, 1))
            curves[f"open.{task}"] = _floats(share + (0.5 - share) * np.exp(-time / (5 + 3 * i)))
        curves["sparsity"] = _floats(0.4 * np.exp(-time / 6))
    base = single if method == "stl" else _shift(single, gain, rng)
    metrics = {"validation": base}
    if test:
        metrics["test"] = {task: value * 1.01 for task, value in base.items()}
        if method != "stl":
            metrics["test"] = _shift(metrics["test"], 0.0, rng)
    images = epochs * 715
    return Result(
        method, seed, trial, weighting, params=params or {}, metrics=metrics, gflops=cost,
        backbone_gflops=max(cost - 4.2, 0.5), params_m=cost * 0.9, epochs=epochs,
        uncounted={"aten::upsample_bilinear2d": 4} if method == "mtan" else {},
        train_seconds=100.0 + cost * 9, train_images=images,
        train_pflops=(3 if weighting == "uniform" else 6) * cost * images / 1e6, curves=curves,
        layers=LAYERS if share is not None else (), sharing=sharing, environment=ENVIRONMENT,
    )  # fmt: skip


def _metrics(tasks, gain, rng, *, noise):
    return {
        task: float(value * (1 + (gain if info.higher_is_better else -gain) + rng.normal(0, noise)))
        for task, (info, value) in KNOWN.items()
        if task in tasks
    }


def _shift(metrics, gain, rng):
    return {
        task: float(
            value
            * (1 + (gain if KNOWN[task][0].higher_is_better else -gain) + rng.normal(0, 0.004))
        )
        for task, value in metrics.items()
    }


def _floats(values) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _definition(tasks):
    return {
        "results_version": 1,
        "name": "synthetic",
        "protocol": {"name": "synthetic-40-96x128", "size": [96, 128], "published": ""},
        "tasks": {t: {"kind": t, "classes": KNOWN[t][0].classes, "weight": 1.0} for t in tasks},
        "data": {"dataset": "synthetic", "train_frames": 0, "validation": 80, "validation_seed": 0},
        "model": {"backbone": "resnet18", "width": 0.25, "output_stride": 8, "head": "light"},
        "interrogate": {"granularity": "conv", "estimator": "ste", "initial": 0.5, "lr": 10.0},
        "training": {"epochs": 30, "batch_size": 16, "optimizer": "adamw", "lr": 0.002},
        "search": {"sampler": "tpe", "lambda_s": [0.01, 10.0], "tau": [0.0, 1.0], "startup": 10},
        "options": {},
    }
