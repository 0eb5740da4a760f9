"""Frozen records of what was trained and measured, and what is read off them.

Nothing here knows torch, pandas or a file: the search writes these records into its store, the
report reads them back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from gatesearch.errors import StudyRefusedError
from gatesearch.measures import delta_mtl
from gatesearch.pareto import pareto_front

Split = Literal["validation", "test"]
Role = Literal["network", "warmup", "supernet_warmup", "supernet"]

# Raised whenever the JSON of a Result changes its form.
FORMAT = 4


@dataclass(frozen=True)
class TaskInfo:
    """What a report must know of a task.

    Attributes:
        name: The task's name in the study.
        metric: Name of its metric, as `mIoU`.
        unit: `%`, `m`, `deg` or an empty string.
        higher_is_better: Direction of the metric.
        kind: Its kind, a name in `gatesearch.tasks.TASKS`.
        drawing: How its labels are drawn, a name in `gatesearch.drawing.DRAWINGS`.
        classes: Number of classes; 1 for a task without.
    """

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    kind: str
    drawing: str
    classes: int = 1


@dataclass(frozen=True)
class Result:
    """One network: trained, pruned, measured; or why there is none.

    Attributes:
        method: How tasks share: `interrogate`, `stl`, `mtl`, `cross_stitch`, `mtan`, ...
        seed: Seed of initialisation and data order.
        trial: Number of the search's trial; None for a baseline.
        weighting: How losses or gradients were balanced.
        state: Whether the figures below are there to be compared.
        reason: Why it failed or was pruned.
        role: Whether it is a network to compare, or one that others start from.
        budget: What bounded its cost, as `1.3xMTL`; empty for nothing.
        params: What the search chose: `lambda_s`, `tau.<task>`, `regulariser`; of a network from
            a one-shot supernet `share.<task>`, the share of gates that are open.
        metrics: split -> task -> value, in the unit of `TaskInfo`.
        gflops: Of the whole network, heads included, 2 x multiply-adds; 0 where there is none.
        backbone_gflops: Of the backbone streams only.
        params_m: Parameters, millions.
        latency_ms: Median for one image as it was measured; None where no budget asked for it.
        uncounted: Operators that no counter knew -> how often they occur.
        epochs: Epochs trained, those of a warm-up and of fine-tuning included.
        train_seconds: Wall-clock time of training, that of the networks it started from included.
        train_images: Images seen in training, each epoch anew.
        train_pflops: 3 x forward FLOPs x images / 1e15: forward and twice that backward.
        reused_seconds: Part of `train_seconds` spent on networks that the study kept anyway, such
            as a warm-up that all trials start from; likewise the next two.
        reused_images: Part of `train_images`.
        reused_pflops: Part of `train_pflops`.
        curves: One value an epoch: `loss.<task>`, `sparsity`, `open.<task>`, `lr`.
        layers: Names of the gated layers, input first.
        sharing: task -> for each layer the share of live channels that are the task's own.
        environment: Device, precision, memory format and versions.
        attempts: How often its training was begun; it goes on from the last checkpoint.
    """

    method: str
    seed: int
    trial: int | None = None
    weighting: str = "uniform"
    state: Literal["complete", "failed", "pruned"] = "complete"
    reason: str = ""
    role: Role = "network"
    budget: str = ""
    params: Mapping[str, float | str] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    gflops: float = 0.0
    backbone_gflops: float = 0.0
    params_m: float = 0.0
    latency_ms: float | None = None
    uncounted: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 0
    train_seconds: float = 0.0
    train_images: int = 0
    train_pflops: float = 0.0
    reused_seconds: float = 0.0
    reused_images: int = 0
    reused_pflops: float = 0.0
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    layers: Sequence[str] = ()
    sharing: Mapping[str, Sequence[float]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 1

    @property
    def name(self) -> str:
        """`trial 3`, `mtl`, `mtl + pcgrad`; seeds of a baseline have the same."""
        if self.trial is not None:
            return f"trial {self.trial}"
        return named(self.method, self.weighting)

    @property
    def numbers(self) -> dict[str, float]:
        """The parameters that are numbers."""
        return {name: v for name, v in self.params.items() if not isinstance(v, str)}

    @property
    def split(self) -> Split:
        """The split whose figures are shown: `test` where it was measured, else `validation`."""
        return "test" if self.metrics.get("test") else "validation"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` gives an equal record back."""
        return {"format": FORMAT} | {
            item.name: _plain(getattr(self, item.name)) for item in fields(self)
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Result":
        """The record that `to_json` wrote.

        Raises:
            StudyRefusedError: Another format, or keys that a record of this format does not have.
        """
        if stored.get("format") != FORMAT:
            raise StudyRefusedError(
                f"a stored result must have format {FORMAT}, found {stored.get('format')!r}; "
                "read it with the gatesearch that wrote it, or start a new --out folder"
            )
        known = {item.name for item in fields(cls)}
        found = set(stored) - {"format"}
        if found != known:
            raise StudyRefusedError(
                f"a stored result must have the keys of format {FORMAT}, found "
                f"unknown {sorted(found - known)} and missing {sorted(known - found)}; "
                "the store is damaged: start a new --out folder"
            )
        return cls(**{name: _frozen(stored[name]) for name in known})


@dataclass(frozen=True)
class StudyRecord:
    """All that a report needs of a study, read from its store.

    Attributes:
        name: The study's name.
        fingerprint: Of the definition; changes whenever results would.
        definition: `Study.definition()`.
        protocol: Name of classes, size, encodings and metrics.
        published: Table of published rows under the same protocol: `nyud`, `pascal` or empty.
        tasks: In the study's order.
        baselines: Every baseline of every seed and weighting.
        trials: Every trial of the search, in order, whatever its state.
        starts: What trials of a seed start from: multi-task warm-ups, one-shot supernets.
        data: Digest of the manifest: pack, sums, counts of the splits.
        predictions: .npz of images, truth and predictions; None where there are none.
    """

    name: str
    fingerprint: str
    definition: Mapping[str, Any]
    protocol: str
    published: str
    tasks: tuple[TaskInfo, ...]
    baselines: tuple[Result, ...] = ()
    trials: tuple[Result, ...] = ()
    starts: tuple[Result, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    predictions: Path | None = None

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Direction of each task's metric."""
        return {task.name: task.higher_is_better for task in self.tasks}

    @cached_property
    def front(self) -> tuple[Result, ...]:
        """See the function `front`."""
        scored = [
            (delta(self, trial, "validation"), trial.gflops, trial)
            for trial in self.trials
            if trial.state == "complete"
        ]
        defined = [item for item in scored if math.isfinite(item[0])]
        chosen = [defined[i][2] for i in pareto_front([d[:2] for d in defined], [True, False])]
        return tuple(sorted(chosen, key=lambda trial: (trial.gflops, trial.trial)))

    @property
    def trained(self) -> tuple[Result, ...]:
        """Everything that was trained, whatever became of it."""
        return (*self.baselines, *self.starts, *self.trials)

    @property
    def training_seconds(self) -> float:
        """Of the whole study, what several networks started from counted once."""
        return sum(r.train_seconds - r.reused_seconds for r in self.trained)

    @property
    def training_images(self) -> int:
        """Likewise images seen."""
        return sum(r.train_images - r.reused_images for r in self.trained)

    @property
    def training_pflops(self) -> float:
        """Likewise 1e15 FLOPs."""
        return sum(r.train_pflops - r.reused_pflops for r in self.trained)


def named(method: str, weighting: str) -> str:
    """What a baseline is called on the command line.

    >>> named("mtl", "pcgrad")
    'mtl + pcgrad'
    """
    return method if weighting == "uniform" else f"{method} + {weighting}"


def reference(record: StudyRecord, result: Result, split: Split) -> Mapping[str, float] | None:
    """Metrics of the single-task networks of the same seed; None where they are missing."""
    for other in record.baselines:
        if other.method == "stl" and other.seed == result.seed and other.state == "complete":
            return other.metrics.get(split) or None
    return None


def delta(
    record: StudyRecord,
    result: Result,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> float:
    """Δ_MTL of a result against `reference`, percent, tasks weighted as in `delta_mtl`.

    NaN where it is undefined: no metrics on that split, no single-task networks of the seed, or a
    single-task metric of zero.
    """
    base, own = reference(record, result, split), result.metrics.get(split)
    if not base or not own or any(base[task] <= 0 for task in record.higher_is_better):
        return math.nan
    return delta_mtl(own, base, record.higher_is_better, weights)


def front(record: StudyRecord) -> list[Result]:
    """Complete trials that no other dominates in (validation Δ_MTL up, GFLOPs down).

    The choice looks at validation only, so that test figures of the front stay untouched by it.

    Returns:
        Ascending in GFLOPs; trials whose Δ_MTL is undefined are left out.
    """
    return list(record.front)


def point(record: StudyRecord, result: Result) -> dict[str, Any]:
    """One network as the command line prints it: strict JSON, null where a value is undefined."""
    split = result.split
    what: dict[str, Any] = (
        {"method": result.method, "weighting": result.weighting}
        if result.trial is None
        else {"trial": result.trial}
        | ({"budget": result.budget} if result.budget else {})
        | ({"weighting": result.weighting} if result.weighting != "uniform" else {})
    )
    return what | {
        "seed": result.seed,
        "delta_mtl": _or_null(delta(record, result, split)),
        "gflops": _or_null(result.gflops),
        "backbone_gflops": _or_null(result.backbone_gflops),
        "params_m": _or_null(result.params_m),
        "metrics": {task: _or_null(v) for task, v in result.metrics.get(split, {}).items()},
        "split": split,
    }


def summary(record: StudyRecord, report: Path) -> dict[str, Any]:
    """The object that `gatesearch run --json` and `gatesearch report --json` print."""
    states = [trial.state for trial in record.trials]
    return {
        "study": record.name,
        "fingerprint": record.fingerprint,
        "protocol": record.protocol,
        "trials": {state: states.count(state) for state in ("complete", "failed", "pruned")},
        "front": [point(record, trial) for trial in front(record)],
        "baselines": [point(record, result) for result in record.baselines],
        "report": str(report),
    }


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    # Most are long and hold numbers.
    nested = any(isinstance(item, (list, dict)) for item in value)
    return tuple(map(_frozen, value)) if nested else tuple(value)
