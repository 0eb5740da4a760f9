"""A study: what is trained, on which data, under which protocol, and what is searched.

A study is a TOML file. This module reads it, validates it and gives it a fingerprint; it knows
nothing of torch. Everything below unpacks a study at its edge and takes plain arguments.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gatesearch.errors import UsageError, nearest, unknown

# Raised whenever a change of the code changes what the same definition results in.
RESULTS_VERSION = 3


class _Strict(BaseModel):
    # Schemas are built on first use: `--help` must not wait for them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProtocolSpec(_Strict):
    """What makes two figures comparable: one name for classes, size, encodings and metrics.

    Attributes:
        name: Figures of two protocols are never put side by side.
        size: Height and width of image and labels, in pixels.
        published: Table of published rows to draw along, where the protocol is the paper's.
    """

    name: str
    size: tuple[int, int]
    published: Literal["", "nyud", "pascal"] = ""


class TaskSpec(_Strict):
    """One task: its kind (a name in `gatesearch.tasks.TASKS`), classes, and weight in the loss."""

    kind: str
    classes: int = Field(default=1, ge=1)
    weight: float = Field(default=1.0, ge=0)


class DataSpec(_Strict):
    """Which data set, and how its official training part is split.

    Attributes:
        dataset: A name in `gatesearch.datasets.DATASETS`.
        train_frames: Frames of the official training part to use, spread evenly; 0 = all.
        test_frames: Likewise for the official test part.
        validation: Frames carved from the training part by `validation_seed`; all choices are
            made on them.
        validation_seed: Seed of that carving, the same for every trial.
    """

    dataset: str
    train_frames: int = Field(default=0, ge=0)
    test_frames: int = Field(default=0, ge=0)
    validation: int = Field(gt=0)
    validation_seed: int = 0


class ModelSpec(_Strict):
    """Backbone and heads that every method builds on.

    Attributes:
        backbone: A name in `gatesearch.models.backbones.BACKBONES`.
        width: Multiplier of the backbone's channels; heads are not scaled.
        output_stride: Input pixels a feature; 8, 16 or 32, reached by dilation.
        head: A name in `gatesearch.models.heads.HEADS`.
        head_channels: Channels inside each head.
        init: `scratch`, `pretrained` (ImageNet) or `stl` (the study's own trained single-task
            networks): the same for every method of the study.
        weights: For `pretrained`: `imagenet` (torchvision's) or a .safetensors file.
    """

    backbone: str
    width: float = Field(default=1.0, ge=0.01, le=100)
    output_stride: Literal[8, 16, 32] = 8
    head: str = "deeplabv3"
    head_channels: int = Field(default=256, ge=1)
    init: Literal["scratch", "pretrained", "stl"] = "scratch"
    weights: str = "imagenet"


class GateSpec(_Strict):
    """The InterroGate supernet (the paper leaves all of these open; see docs of each option).

    Attributes:
        granularity: Gates after every convolution, or after every residual block.
        estimator: `ste` (hard forward, straight-through gradient), `sigmoid` (annealed),
            `hard_concrete` (Louizos 2018).
        initial: Initial probability σ(α) of the task's own channel.
        lr: Learning rate of α and β as a multiple of the weights' own.
        temperature: Start and end temperature of `sigmoid` (geometric annealing).
        ramp: Share of the gates' epochs over which λ_s rises from 0 to its full value; 0 in the
            paper. Streams that start alike need time to differ before gates can tell them apart.
        warmup: Share of `training.epochs` trained as one multi-task network, whose weights every
            stream then starts from; done once a seed for all trials. 0 in the paper.
        finetune: Share of `training.epochs`, the last, in which the compact network is trained
            after pruning. 0 in the paper. One learning rate schedule runs through all phases.
        spread: Where a task's open gates are: `learned` leaves them (the paper), `even` opens the
            same share of every layer, those of the highest α (see `evened`).
        round_to: Live channels of every convolution become multiples of this; 1 leaves them. The
            log says what it costs and wins.
    """

    granularity: Literal["conv", "block"] = "conv"
    estimator: Literal["ste", "sigmoid", "hard_concrete"] = "ste"
    initial: float = Field(default=0.5, gt=0, lt=1)
    lr: Positive = 10.0
    temperature: tuple[Positive, Positive] = (1.0, 0.1)
    ramp: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    finetune: float = Field(default=0.0, ge=0, lt=1)
    spread: Literal["learned", "even"] = "learned"
    round_to: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _some_left(self) -> "GateSpec":
        if self.warmup + self.finetune >= 1:
            raise ValueError(
                "warmup + finetune must leave a share of the epochs for the gates, found "
                f"{self.warmup} + {self.finetune}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """(last epoch of the warm-up, last of the gates) of so many; each phase rounds down.

        >>> GateSpec(warmup=0.5, finetune=0.25).phases(10)
        (5, 8)
        >>> GateSpec(warmup=0.5, finetune=0.25).phases(1)
        (0, 1)
        """
        return int(self.warmup * epochs), epochs - int(self.finetune * epochs)


class AugmentSpec(_Strict):
    """Augmentation of whole training batches; each task transforms its own labels.

    Attributes:
        flip: Mirror left to right with probability one half.
        zoom: Factors, at least 1, of cropping and enlarging; depth is divided by the factor.
        scale: Range of free rescaling without change of depth (PASCAL-Context).
        rotate: Largest rotation, degrees.
    """

    flip: bool = True
    zoom: tuple[Annotated[float, Field(ge=1, le=100)], ...] = Field(default=(1.0,), min_length=1)
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    rotate: float = Field(default=0.0, ge=0, le=180)

    @model_validator(mode="after")
    def _ordered(self) -> "AugmentSpec":
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be an ascending range, found {self.scale}")
        return self


class TrainingSpec(_Strict):
    """How every network of the study is trained.

    Attributes:
        epochs: Passes over the training part; there is no choice of epoch, the last one counts.
        lr: Initial learning rate, decayed by `schedule` each step.
        power: Exponent of the `poly` schedule (1 - step / steps) ** power.
        precision: `auto` is bf16 where the device computes it natively, else fp32.
        memory_format: `auto` is measured once a store at the study's own shapes.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["poly", "constant"] = "poly"
    power: Positive = 0.9
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "nchw", "nhwc"] = "auto"
    augment: AugmentSpec = AugmentSpec()


class MethodOptions(BaseModel):
    """Options of one method: arguments of its builder, and `training` keys that differ."""

    model_config = ConfigDict(extra="allow", frozen=True)
    training: dict[str, Any] = {}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the method's builder."""
        return dict(self.model_extra or {})


class SearchSpec(_Strict):
    """What Optuna chooses: λ_s log-uniform, each task's τ_t uniform.

    Attributes:
        mode: `separate` trains a supernet each trial, `one_shot` one for all. Both fit one store.
        sampler: `tpe`, `nsga2` or `random`.
        lambda_s: Range of the weight of the sparsity loss.
        tau: Range of every task's hinge target.
        startup: Random draws before the sampler models anything.
        regulariser: `hinge` bounds σ(α) by τ_t (the paper); `flops` bounds the expected cost by
            the budget of the run. Of several each trial draws one.
        stop: Ends trials that lag behind: `median` of, or not in the better half (`halving`) of,
            earlier trials at the same epoch that cost no more. Judged by Δ_MTL on validation.
        stop_every: Epochs between two judgements; `halving` doubles the distance each time.
        stop_after: Trials that a judgement needs at least.
        weighting: How a trial's losses or gradients are balanced, names in `WEIGHTINGS`. Of several
            each trial draws one; a one-shot supernet is trained with plain ω_t.
        scalar: Range of the factors of ω_t that the weighting `scalar` searches, log-uniform.
        scalar_trials: How many such weights are tried for a method, ω_t first; the best on
            validation are the baseline's.
    """

    mode: Literal["separate", "one_shot"] = "separate"
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    lambda_s: tuple[float, float] = (0.01, 10.0)
    tau: tuple[float, float] = (0.0, 1.0)
    startup: int = Field(default=10, ge=1)
    regulariser: tuple[Literal["hinge", "flops"], ...] = Field(default=("hinge",), min_length=1)
    stop: Literal["none", "median", "halving"] = "none"
    stop_every: int = Field(default=10, ge=1)
    stop_after: int = Field(default=4, ge=1)
    weighting: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    scalar: tuple[float, float] = (0.1, 10.0)
    scalar_trials: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "SearchSpec":
        if not 0 < self.lambda_s[0] <= self.lambda_s[1]:
            raise ValueError(f"lambda_s must be an ascending positive range, found {self.lambda_s}")
        if not 0 <= self.tau[0] <= self.tau[1] <= 1:
            raise ValueError(f"tau must be an ascending range within [0, 1], found {self.tau}")
        if not 0 < self.scalar[0] <= self.scalar[1]:
            raise ValueError(f"scalar must be an ascending positive range, found {self.scalar}")
        return self


class ExecutionSpec(_Strict):
    """How a run guards its work; nothing of this changes results, so it is not in the fingerprint.

    Attributes:
        checkpoint_minutes: Between two checkpoints of a training.
        attempts: How often a training may be cut off without getting further before it counts as
            failed; an orderly stop does not count.
        backup_minutes: Between two backups of the store.
    """

    checkpoint_minutes: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    attempts: int = Field(default=3, ge=1)
    backup_minutes: float = Field(default=10.0, ge=0, allow_inf_nan=False)


class OneShotSpec(_Strict):
    """One training for the whole front (`search.mode = "one_shot"`).

    Attributes:
        ends: Probability of a step with all gates closed, and of one with all gates open.
        distillation: Weight of the distance between a pattern's predictions and those with all
            gates open.
        patterns: Gate patterns that Optuna tries on the validation part, without training.
        statistics: Training frames that a tried pattern's batch norm statistics are taken from.
        epochs: Passes over the training part, warm-up and fine-tuning included; `training.epochs`
            where it is not given. One training stands for all budgets, so a longer one pays.
        warmup: Share of the epochs, the first, as one multi-task network whose weights all streams
            start from: nested patterns learn slowly from scratch.
        finetune: Share of the epochs, the last, in which each chosen network is trained.
    """

    ends: float = Field(default=0.2, ge=0, le=0.5)
    distillation: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    patterns: int = Field(default=1000, ge=1)
    statistics: int = Field(default=256, ge=2)
    epochs: int | None = Field(default=None, ge=1)
    warmup: float = Field(default=0.4, ge=0, lt=1)
    finetune: float = Field(default=0.25, ge=0, lt=1)


class Study(_Strict):
    """A validated study definition.

    Attributes:
        name: Names the store's folder and the report.
        summary: One line for `gatesearch studies`.
        seed: Seed of initialisation, data order and search; `--seed` changes it.
        methods: Baselines trained beside InterroGate, names in `gatesearch.models.METHODS`.
        weightings: How the losses or gradients of these baselines are balanced, each in every way;
            names in `gatesearch.training.WEIGHTINGS`. Single-task networks have nothing to balance.
        balance: Weighting -> its options, as `[balance.cagrad]` with `c = 0.5`.
        report_frames: Frames drawn with predictions in the report.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    summary: str = ""
    seed: int = Field(default=0, ge=0)
    methods: tuple[str, ...] = ("stl", "mtl", "cross_stitch", "mtan")
    weightings: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    report_frames: int = Field(default=3, ge=0, le=16)
    protocol: ProtocolSpec
    tasks: dict[str, TaskSpec] = Field(min_length=1)
    data: DataSpec
    model: ModelSpec
    interrogate: GateSpec = GateSpec()
    training: TrainingSpec
    search: SearchSpec = SearchSpec()
    one_shot: OneShotSpec = OneShotSpec()
    execution: ExecutionSpec = ExecutionSpec()
    options: dict[str, MethodOptions] = {}
    balance: dict[str, dict[str, Any]] = {}

    @model_validator(mode="after")
    def _supernet_has_epochs(self) -> "Study":
        rest = 1 - self.one_shot.warmup - self.one_shot.finetune
        if self.search.mode == "one_shot" and rest <= 0:
            raise ValueError(
                "one_shot.warmup + one_shot.finetune must leave a share of the epochs for the "
                f"supernet, found {self.one_shot.warmup} + {self.one_shot.finetune}"
            )
        return self

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks, in the definition's order."""
        return tuple(self.tasks)

    def training_of(self, method: str, *, one_shot: bool = False) -> TrainingSpec:
        """The training of one method: the study's, with that method's own keys laid over it.

        Args:
            method: Its name.
            one_shot: Whether it is of the one training for the whole front.
        """
        own = dict(self.options.get(method, MethodOptions()).training)
        if one_shot and self.one_shot.epochs is not None:
            own["epochs"] = self.one_shot.epochs
        merged = _merge(self.training.model_dump(), own)
        where = f"study {self.name}, options.{method}.training"
        spec: TrainingSpec = _validate(TrainingSpec, merged, where=where)
        return spec

    def arguments_of(self, method: str) -> dict[str, Any]:
        """Keyword arguments that the study gives the method's builder."""
        return self.options.get(method, MethodOptions()).arguments

    def definition(self) -> dict[str, Any]:
        """All that changes results, as plain JSON values; what `fingerprint` is made of."""
        # The seed is kept with every result; methods and frames only say what is added.
        kept = self.model_dump(
            mode="json",
            exclude={
                "summary": True, "seed": True, "methods": True, "weightings": True,
                "report_frames": True, "execution": True, "search": {"mode"},
            },
        )  # fmt: skip
        return {"results_version": RESULTS_VERSION, **kept}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> "Study":
        """The study of a stored definition; seed and methods are the defaults."""
        kept = {key: value for key, value in definition.items() if key != "results_version"}
        study: Study = _validate(cls, kept, where="the store's definition")
        return study

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change whenever results would."""
        text = json.dumps(self.definition(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys on which two definitions differ, as `key: theirs -> ours`.

    >>> differences({"a": {"b": 1}}, {"a": {"b": 2}})
    ['a.b: 2 -> 1']
    """
    left, right = _flatten(ours), _flatten(theirs)
    return [
        f"{key}: {right.get(key, 'absent')} -> {left.get(key, 'absent')}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key)
    ]


def studies_folder() -> Path:
    """Folder of the built-in studies: inside the wheel, or `studies/` of a checkout."""
    packaged = Path(__file__).parent / "builtin_studies"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "studies"


def builtin_studies() -> dict[str, Path]:
    """The built-in studies, name -> file."""
    return {path.stem: path for path in sorted(studies_folder().glob("*.toml"))}


def load_study(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read and validate a study.

    Args:
        name_or_path: A built-in study's name, or a TOML file.
        overrides: `a.b=value` items, values written as in TOML (a bare word is a string);
            `preset=NAME` lays one of the file's `[presets.NAME]` tables over it.

    Raises:
        UsageError: Unknown study, unknown key (the nearest known one is named), or a bad value.
    """
    path = _find(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    presets = raw.pop("presets", {})
    for item in overrides:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set takes key=value, found '{item}'")
        if key.strip() == "preset":
            if text not in presets:
                raise unknown("preset", text, presets)
            raw = _merge(raw, presets[text])
        else:
            raw = _merge(raw, _nested(key.strip().split("."), _value(text)))
    study: Study = _validate(Study, raw, where=str(path))
    for method in study.options:
        study.training_of(method)
    return study


def _find(name_or_path: str | Path) -> Path:
    builtin = builtin_studies()
    if str(name_or_path) in builtin:
        return builtin[str(name_or_path)]
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"no study file {path}")
        return path
    hint = unknown("study", str(name_or_path), builtin)
    raise UsageError(f"{hint}; a file of your own must end in .toml")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _nested(keys: Sequence[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return dict(value)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = _merge(old, value)
        merged[key] = value
    return merged


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _validate(model: type[_Strict], raw: Mapping[str, Any], *, where: str) -> Any:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise UsageError(f"{where}:\n  " + "\n  ".join(lines)) from error


def _explain(model: type[BaseModel], item: Any) -> str:
    path = [str(part) for part in item["loc"]]
    dotted = ".".join(path)
    if item["type"] == "extra_forbidden":
        return f"unknown key '{dotted}'{nearest(path[-1], _keys_at(model, path[:-1]))}"
    if item["type"] == "missing":
        return f"missing key '{dotted}'"
    if item["type"] == "value_error":
        return f"{dotted}: {item['ctx']['error']}"
    return f"{dotted}: {item['msg']}, found {item['input']!r}"


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        candidates = [] if field is None else [field.annotation, *_arguments(field.annotation)]
        models = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if models:
            model = models[0]
        elif field is not None:
            return []
    return list(model.model_fields)


def _arguments(annotation: Any) -> tuple[Any, ...]:
    return tuple(getattr(annotation, "__args__", ()))
