"""The figures of one network, frozen, and their JSON form."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model

from gatesearch.errors import StudyRefusedError
from gatesearch.files import first_fault
from gatesearch.results.older_formats import LATER, from_format_4, of_older_format

Split = Literal["validation", "test"]
State = Literal["complete", "failed", "stopped"]

STATES: tuple[State, ...] = get_args(State)

# Name of the method with one network per task, with which Δ_MTL compares.
SINGLE_TASK = "stl"
# Name of the method that shares everything but the heads.
MULTI_TASK = "mtl"

# Raised by 1 whenever the JSON format of a Result changes.
FORMAT = 9


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
            highest bit. Empty for networks that were not cut by a gate pattern. Results of earlier
            versions also have 1 for open gates whose channels nothing reads.
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
        if version not in (4, *LATER, FORMAT):
            raise StudyRefusedError(
                f"a stored result must have format 4, 6, 7, 8 or {FORMAT}, found {version!r}; "
                "read it with the gatesearch that wrote it, or start a new --out folder"
            )
        values = from_format_4(stored) if version == 4 else stored
        later = LATER.get(6 if version == 4 else version, set())
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
            if (older := of_older_format(text)) is not None:
                return cls.from_json(older)
            raise StudyRefusedError(
                f"a stored result is damaged: {first_fault(error)}; the store is damaged: start a "
                "new --out folder"
            ) from error
        return cls(**{name: value for name, value in stored.items() if name != "format"})


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
