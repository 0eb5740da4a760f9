"""Frozen records of trained networks with their figures, and figures computed from the records.

This module needs neither torch nor pandas, and touches no files: the search writes these records
into its store, and the report reads them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from gatesearch.errors import StudyRefusedError
from gatesearch.files import first_fault
from gatesearch.measures import Gain, gain
from gatesearch.pareto import pareto_front

Split = Literal["validation", "test"]
State = Literal["complete", "failed", "stopped"]

STATES: tuple[State, ...] = get_args(State)

# Name of the method with one network per task, with which Δ_MTL compares.
SINGLE_TASK = "stl"
# Name of the method that shares everything but the heads.
MULTI_TASK = "mtl"

# Raised by 1 whenever the JSON format of a Result changes.
FORMAT = 9
# Format -> what later formats added to it; format 4 has other keys (`_from_format_4`).
_LATER = {8: {"task_gflops"}}
_LATER[7] = {*_LATER[8], "control", "of", "width", "gates"}
_LATER[6] = {*_LATER[7], "details"}


def _freeze(values: Sequence[float]) -> tuple[float, ...]:
    """Make a tuple in which all NaN are one object, so that it equals another with the same NaN."""
    return tuple(map(_one_nan, values)) if math.isnan(sum(values)) else tuple(values)


def _with_one_nan(values: Mapping[str, float]) -> Mapping[str, float]:
    return {name: _one_nan(value) for name, value in values.items()}


def _one_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value


# What a stored value must be. Metrics and curves may be NaN: a loss can leave the numbers.
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Param = Annotated[float, Field(allow_inf_nan=False)] | str
Metrics = Annotated[Mapping[str, float], AfterValidator(_with_one_nan)]
Numbers = Annotated[Sequence[float], AfterValidator(_freeze)]
Names = Annotated[Sequence[str], AfterValidator(tuple)]
FileName = Annotated[str, Field(pattern=r"^model\.[a-z]+$")]
Patterns = Annotated[Sequence[Annotated[str, Field(pattern=r"^[0-9a-f]+$")]], AfterValidator(tuple)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class TaskInfo:
    """Description of a task for reports.

    Attributes:
        name: The task's name in the study.
        metric: Name of its metric, as `mIoU`.
        unit: `%`, `m`, `deg` or an empty string.
        higher_is_better: Direction of the metric.
        kind: Its kind, a name in `gatesearch.tasks.TASKS`.
        drawing: How its labels are drawn, a name in `gatesearch.drawing.DRAWINGS`.
        classes: Number of classes; 1 for a task without classes.
        class_names: Their names by index; empty where the data set states none.
        options: Further options of its kind, with what it learned from the training part; empty
            in stores that were begun before there were any.
    """

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    kind: str
    drawing: str
    classes: int = 1
    class_names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_options(self) -> dict[str, Any]:
        """All options of its kind, from which `gatesearch.tasks.build_task` makes the task."""
        names = {"class_names": list(self.class_names)} if self.class_names else {}
        return {"classes": self.classes, **names, **self.options}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskInfo":
        """Read the description that a store keeps; older stores have no names of classes."""
        return cls(**{**stored, "class_names": tuple(stored.get("class_names", ()))})


@dataclass(frozen=True)
class Result:
    """One network with its figures, or the reason why there is none.

    A start network is one whose weights other networks of the method start from.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        seed: Seed of initialisation and data order.
        trial: Number of the trial in the store; None for a baseline or a start network.
        weighting: How losses or gradients were balanced.
        state: A `complete` network has all figures below; a `failed` one has none; a trial that was
            `stopped` early has only those of its training.
        reason: Why it failed or was stopped.
        part: Name that the method gives a start network, as `warm-up`; empty for a baseline or
            trial.
        budget: Upper bounds on its cost, as `1.3xMTL`, joined by `+`; empty without any.
        params: Parameter, as the method names it -> value that the search chose.
        metrics: split -> task -> value, in the unit of `TaskInfo`.
        details: split -> task -> further figures of the task's kind by name, as the IoU of each
            class; without those tasks that have none, and empty in results of earlier versions.
        gflops: FLOPs of the whole network, heads included, 2 x multiply-adds / 1e9; 0 where there
            is no network.
        backbone_gflops: The same without the heads.
        params_m: Parameters, millions.
        latency_ms: Median latency for one image; None where no budget bounds latency.
        task_gflops: Task, or two tasks joined by `+` -> GFLOPs of what their outputs alone need of
            the network, heads included; pairs of few tasks only. Empty for networks that are not
            compact, and in results of earlier versions.
        uncounted: Operator that could not be counted -> number of its calls.
        epochs: Epochs trained, those of a warm-up and of fine-tuning included.
        train_seconds: Wall-clock seconds of training, those of the networks that it started from
            included.
        train_images: Images seen in training; an image counts once per epoch.
        train_pflops: Training cost, FLOPs / 1e15. A step costs 3 forward passes: one forward, and
            a backward pass that costs twice as much.
        reused_seconds: Part of `train_seconds` spent on networks that the study trains anyway, such
            as a warm-up that all trials start from.
        reused_images: The same part of `train_images`.
        reused_pflops: The same part of `train_pflops`.
        curves: Name -> one value per epoch: `loss.<task>`, `lr`, and values that the method adds.
        layers: Names of the gated layers, input first.
        sharing: task -> per layer, the share of its live channels that the task's own stream
            computes.
        environment: Device, precision, memory format and versions.
        attempts: Number of times that its training was begun or resumed from a checkpoint.
        files: Name of each file of the kept network -> its SHA-256; empty where no network is kept,
            and for networks of gatesearch 0.1.0, which wrote none.
        control: What a control network controls for, as `random`; empty for any other network.
        of: Number of the trial that a control is compared with; None for any other network.
        width: Factor of the study's `model.width`; 1 but for baselines at other widths.
        gates: Gated node -> per task, in the study's order, its channels' gates as hexadecimal
            digits, a bit each, 1 where the task has a channel of its own; the first channel is the
            highest bit. Empty for networks that were not cut by a gate pattern.
    """

    method: str
    seed: int
    trial: Count | None = None
    weighting: str = "uniform"
    state: State = "complete"
    reason: str = ""
    part: str = ""
    budget: str = ""
    params: Mapping[str, Param] = field(default_factory=dict)
    metrics: Mapping[Split, Metrics] = field(default_factory=dict)
    details: Mapping[Split, Mapping[str, Metrics]] = field(default_factory=dict)
    gflops: Amount = 0.0
    backbone_gflops: Amount = 0.0
    params_m: Amount = 0.0
    latency_ms: Amount | None = None
    task_gflops: Mapping[str, Amount] = field(default_factory=dict)
    uncounted: Mapping[str, Count] = field(default_factory=dict)
    epochs: Count = 0
    train_seconds: Amount = 0.0
    train_images: Count = 0
    train_pflops: Amount = 0.0
    reused_seconds: Amount = 0.0
    reused_images: Count = 0
    reused_pflops: Amount = 0.0
    curves: Mapping[str, Numbers] = field(default_factory=dict)
    layers: Names = ()
    sharing: Mapping[str, Numbers] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    attempts: Count = 1
    files: Mapping[FileName, Sha256] = field(default_factory=dict)
    control: str = ""
    of: Count | None = None
    width: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    gates: Mapping[str, Patterns] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name as `trial 3`, `mtl`, `mtl + pcgrad`, `random of trial 3`; one for all seeds."""
        if self.of is not None:
            return control_name(self.control, self.of)
        if self.trial is not None:
            return f"trial {self.trial}"
        return network_name(self.method, self.weighting, self.width)

    @property
    def numbers(self) -> dict[str, float]:
        """Parameters whose values are numbers."""
        return {name: value for name, value in self.params.items() if not isinstance(value, str)}

    @property
    def split(self) -> Split:
        """Split whose metrics are shown: `test` if it was measured, else `validation`."""
        return "test" if self.metrics.get("test") else "validation"

    def to_json(self) -> dict[str, Any]:
        """Convert the record to plain JSON values, from which `from_json` makes an equal one."""
        return {"format": FORMAT} | {
            item.name: _plain(getattr(self, item.name)) for item in fields(self)
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Result":
        """Read the record that `to_json` wrote, also in formats 4 (gatesearch 0.1.0) and 6 to 8.

        Raises:
            StudyRefusedError: Another format, other keys than those of its format, or a value of a
                wrong type or out of its range.
        """
        version = stored.get("format")
        if version not in (4, *_LATER, FORMAT):
            raise StudyRefusedError(
                f"a stored result must have format 4, 6, 7, 8 or {FORMAT}, found {version!r}; "
                "read it with the gatesearch that wrote it, or start a new --out folder"
            )
        values = _from_format_4(stored) if version == 4 else stored
        later = _LATER.get(6 if version == 4 else version, set())
        expected = {item.name for item in fields(cls)} - later
        keys = set(values) - {"format"}
        if keys != expected:
            raise StudyRefusedError(
                f"a stored result must have the keys of format {version}, found "
                f"unknown {sorted(keys - expected)} and missing {sorted(expected - keys)}; "
                "the store is damaged: start a new --out folder"
            )
        unused = {name: value for name, value in cls("", 0).to_json().items() if name in later}
        return cls.from_text(json.dumps({**unused, **values, "format": FORMAT}))

    @classmethod
    def from_text(cls, text: str) -> "Result":
        """Read the record from the text of its JSON, in format 6 to 8 or that of this version.

        Raises:
            StudyRefusedError: The text is no such record.
        """
        try:
            stored = vars(_stored_form().model_validate_json(text))
        except ValidationError as error:
            if (older := _of_older_format(text)) is not None:
                return cls.from_json(older)
            raise StudyRefusedError(
                f"a stored result is damaged: {first_fault(error)}; the store is damaged: start a "
                "new --out folder"
            ) from error
        return cls(**{name: value for name, value in stored.items() if name != "format"})


@dataclass(frozen=True)
class StudyRecord:
    """Everything in a study's store that a report needs.

    Attributes:
        name: The study's name.
        fingerprint: Digest of the definition; it changes whenever results would.
        definition: `Study.definition()`.
        protocol: Name of the protocol: classes, size, encodings and metrics of the data set.
        published: Table of published results under the same protocol: `nyud`, `pascal` or empty.
        tasks: The tasks, in the study's order.
        baselines: All baselines of all seeds, weightings and widths.
        trials: Trials of all searches but those for weights of losses, in every state, by number.
        starts: The start networks, one per method, seed and `Result.part`.
        controls: Networks that trials are compared with at equal cost, one per trial, kind and
            seed; of the kind `repeat`, the trial's own training with another seed.
        data: Description of the data: pack, its SHA-256, number of frames per split, notes.
        predictions: .npz of images, labels and predictions; None where there is none.
        untaken: Numbers of trials that have a result in their folder and none in the database,
            because the run was killed or the database was restored. The next run takes them up.
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
    controls: tuple[Result, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    predictions: Path | None = None
    untaken: tuple[int, ...] = ()

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Direction of each task's metric."""
        return {task.name: task.higher_is_better for task in self.tasks}

    @cached_property
    def front(self) -> tuple[Result, ...]:
        """Complete trials that no other trial dominates; see the function `front`."""
        return self._front_of(self.trials)

    @cached_property
    def fronts(self) -> dict[str, tuple[Result, ...]]:
        """Searched method -> its own front: its trials that no other trial of it dominates."""
        methods = dict.fromkeys(trial.method for trial in self.trials)
        own = {m: self._front_of([t for t in self.trials if t.method == m]) for m in methods}
        return {method: trials for method, trials in own.items() if trials}

    def _front_of(self, trials: Sequence[Result]) -> tuple[Result, ...]:
        scored = [
            (delta(self, trial, "validation"), trial.gflops, trial)
            for trial in trials
            if trial.state == "complete"
        ]
        defined = [item for item in scored if math.isfinite(item[0])]
        chosen = [defined[i][2] for i in pareto_front([d[:2] for d in defined], [True, False])]
        return tuple(sorted(chosen, key=lambda trial: (trial.gflops, trial.trial)))

    @property
    def trained(self) -> tuple[Result, ...]:
        """Baselines, starts, trials and controls of every state."""
        return (*self.baselines, *self.starts, *self.trials, *self.controls)

    @property
    def training_seconds(self) -> float:
        """Wall-clock seconds of all training; a network that several start from counts once."""
        return sum(r.train_seconds - r.reused_seconds for r in self.trained)

    @property
    def training_images(self) -> int:
        """Images seen in all training, counted in the same way."""
        return sum(r.train_images - r.reused_images for r in self.trained)

    @property
    def training_pflops(self) -> float:
        """FLOPs of all training / 1e15, counted in the same way."""
        return sum(r.train_pflops - r.reused_pflops for r in self.trained)


def network_name(method: str, weighting: str, width: float = 1.0) -> str:
    """Name the combination of a method, a weighting and a factor of the width.

    >>> network_name("mtl", "pcgrad"), network_name("mtl", "uniform", 0.5)
    ('mtl + pcgrad', 'mtl x0.5')
    """
    at_width = method if width == 1 else f"{method} x{width:g}"
    return at_width if weighting == "uniform" else f"{at_width} + {weighting}"


def control_name(kind: str, of: int) -> str:
    """Name a control network.

    >>> control_name("random", 3)
    'random of trial 3'
    """
    return f"{kind} of trial {of}"


def reference(record: StudyRecord, result: Result, split: Split) -> Mapping[str, float] | None:
    """Find the metrics of the single-task networks of the same seed; None where there are none."""
    for other in record.baselines:
        single_task = other.method == SINGLE_TASK and other.state == "complete"
        if single_task and other.width == 1 and other.seed == result.seed:
            return other.metrics.get(split) or None
    return None


def gain_of(
    record: StudyRecord,
    result: Result,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> Gain:
    """Compute Δ_MTL of a result against `reference`, with tasks weighted as in `delta_mtl`.

    Returns:
        Δ_MTL, or why it is undefined; see `gatesearch.measures.gain`.
    """
    base, metrics = reference(record, result, split), result.metrics.get(split)
    return gain(metrics, base, record.higher_is_better, weights)


def delta(
    record: StudyRecord,
    result: Result,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> float:
    """Compute Δ_MTL as `gain_of` does: percent, NaN if it is undefined."""
    return gain_of(record, result, split, weights).percent


def front(record: StudyRecord) -> list[Result]:
    """List the complete trials that no other dominates in Δ_MTL on validation and in GFLOPs.

    The choice ignores the test split, so that it cannot favour networks that are lucky there.

    Returns:
        Trials ascending in GFLOPs; those whose Δ_MTL is undefined are left out.
    """
    return list(record.front)


# `role` of a format-4 record -> `part` of a format-6 one.
PARTS_OF_ROLES = {
    "network": "", "warmup": "warm-up", "supernet_warmup": "warm-up", "supernet": "supernet",
}  # fmt: skip


def _from_format_4(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the JSON of a format-4 record to format 6, which has no further figures.

    Format 4 called the state of a stopped trial `pruned`, had `role` instead of `part`, and gave
    results of the method `one_shot` the name of the method that it is built on.

    Raises:
        StudyRefusedError: The role is missing or unknown.
    """
    values: dict[str, Any] = {**stored, "files": {}}
    role, params = values.pop("role", None), values.get("params")
    if not isinstance(role, str) or role not in PARTS_OF_ROLES:
        raise StudyRefusedError(
            f"a stored result of format 4 must have a role of {', '.join(PARTS_OF_ROLES)}, found "
            f"{role!r}; the store is damaged: start a new --out folder"
        )
    values["part"] = PARTS_OF_ROLES[role]
    if values.get("state") == "pruned":
        values["state"] = "stopped"
    named = params if isinstance(params, Mapping) else {}
    if role.startswith("supernet") or any(name.startswith("share.") for name in named):
        values["method"] = "one_shot"
    return values


def _of_older_format(text: str) -> dict[str, Any] | None:
    """Parse the text of a record if it is of an older format; None for anything else."""
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) and stored.get("format") in _LATER else None


def without_classes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options of a task that `TaskInfo` has as attributes of its own."""
    return {key: value for key, value in options.items() if key not in ("classes", "class_names")}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


@cache
def _stored_form() -> type[BaseModel]:
    """Make the model that validates a stored result: all fields of `Result`, and no others."""
    types = {"format": Literal[FORMAT], **get_type_hints(Result, include_extras=True)}
    required: dict[str, Any] = {name: (kind, ...) for name, kind in types.items()}
    return create_model(
        "StoredResult", __config__=ConfigDict(strict=True, extra="forbid"), **required
    )
