"""The tables of a study's file, each with its keys, their bounds and what they mean.

Options of methods are not here: each method has its own (`gatesearch.methods`).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ProtocolSpec(Strict):
    """What makes two figures comparable: one name for classes, size, encodings and metrics.

    Attributes:
        name: Figures of two protocols are never put side by side.
        size: Height and width of image and labels, in pixels.
        published: Table of published rows to draw along, where the protocol is the paper's.
    """

    name: str
    size: tuple[int, int]
    published: Literal["", "nyud", "pascal"] = ""


class TaskSpec(Strict):
    """One task: its kind (a name in `gatesearch.tasks.TASKS`), classes, and weight in the loss."""

    kind: str
    classes: int = Field(default=1, ge=1)
    weight: float = Field(default=1.0, ge=0)


class DataSpec(Strict):
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


class ModelSpec(Strict):
    """Backbone and heads that every method builds on.

    Attributes:
        backbone: A name in `gatesearch.models.backbones.BACKBONES`.
        width: Multiplier of the backbone's channels; heads are not scaled.
        output_stride: Input pixels a feature; 8, 16 or 32, reached by dilation.
        head: A name in `gatesearch.models.heads.HEADS`.
        head_channels: Channels inside each head.
        init: `scratch`, `pretrained` (ImageNet) or `stl` (the study's own trained single-task
            networks): the same for every method of the study.
        weights: For `pretrained`: `imagenet` (torchvision's; those of `efficientnet_lite0` come
            with the extra `efficientnet`) or a .safetensors file with their names.
    """

    backbone: str
    width: float = Field(default=1.0, ge=0.01, le=100)
    output_stride: Literal[8, 16, 32] = 8
    head: str = "deeplabv3"
    head_channels: int = Field(default=256, ge=1)
    init: Literal["scratch", "pretrained", "stl"] = "scratch"
    weights: str = "imagenet"


class AugmentSpec(Strict):
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


class TrainingSpec(Strict):
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
    """Options of one method; which keys of its own it has, the method says (`gatesearch.methods`).

    Attributes:
        training: Keys of `[training]` that differ for this method.
        start: `study` starts as `model.init` says, `stl` always from the trained single-task
            networks; the method's own default when None.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    training: dict[str, Any] = {}
    start: Literal["study", "stl"] | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The keys that only this method has."""
        return dict(self.model_extra or {})


class SearchSpec(Strict):
    """How hyperparameters of the tuned methods are searched.

    Any other key of the table that holds a list is the range of a hyperparameter, as
    `lambda_s = [0.1, 10.0]` or `tau = [0.0, 1.0]`: it holds for every tuned method that has one of
    that name. Which there are, and what they are by default, the method says.

    Attributes:
        sampler: `tpe`, `nsga2` or `random`.
        space: Hyperparameter -> its range (low, high), or the values to choose from.
        first: Configurations that a search tries before any is drawn, unless it has tried them:
            hyperparameter -> value, or -> task -> value.
        startup: Random draws before the sampler models anything.
        stop: Ends trials that lag behind others at the same epoch that cost no more, judged by
            Δ_MTL on validation: `median` those below the median, `halving` all but the better half
            at epochs that double (asynchronous successive halving).
        stop_every: Epochs between two judgements; `halving` doubles the distance each time.
        stop_after: Trials that a judgement needs at least.
        weighting: How a trial's losses or gradients are balanced, names in `WEIGHTINGS`. Of several
            each trial draws one.
        scalar: Range of the factors of ω_t that the weighting `scalar` searches, log-uniform.
        scalar_trials: How many such weights are tried for a method, ω_t first; the best on
            validation are the baseline's.
    """

    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    space: dict[str, tuple[float | str, ...]] = Field(default={})
    first: tuple[dict[str, float | str | dict[str, float | str]], ...] = ()
    startup: int = Field(default=10, ge=1)
    stop: Literal["none", "median", "halving"] = "none"
    stop_every: int = Field(default=10, ge=1)
    stop_after: int = Field(default=4, ge=1)
    weighting: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    scalar: tuple[float, float] = (0.1, 10.0)
    scalar_trials: int = Field(default=10, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _gather_space(cls, raw: Any) -> Any:
        """Take keys that hold lists, and that the table itself does not know, for ranges."""
        if not isinstance(raw, Mapping):
            return raw
        if "mode" in raw:  # of gatesearch 0.1.0
            raise ValueError('mode is gone; write tune = ["one_shot"] at the top of the study')
        ranges = {
            key: value
            for key, value in raw.items()
            if key not in cls.model_fields and isinstance(value, list | tuple)
        }
        known = {key: value for key, value in raw.items() if key not in ranges}
        return {**known, "space": {**known.get("space", {}), **ranges}}

    @model_validator(mode="after")
    def _check_scalar(self) -> "SearchSpec":
        if not 0 < self.scalar[0] <= self.scalar[1]:
            raise ValueError(f"scalar must be an ascending positive range, found {self.scalar}")
        return self

    @property
    def first_params(self) -> list[dict[str, float | str]]:
        """`first` with one entry per parameter: `{"lambda_s": 3.0, "tau.semseg": 1.0}`."""
        return [_flat(configuration) for configuration in self.first]


def _flat(
    configuration: Mapping[str, float | str | Mapping[str, float | str]],
) -> dict[str, float | str]:
    flat: dict[str, float | str] = {}
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{task}": per_task for task, per_task in value.items()}
        else:
            flat[name] = value
    return flat


class ExecutionSpec(Strict):
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
