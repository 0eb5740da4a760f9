"""Tables of a study's file: keys, bounds and meanings.

Methods define their options themselves (`gatesearch.methods`).
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from gatesearch.errors import nearest
from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Side of a window over that of the frame.
Side = Annotated[float, Field(ge=0.01, le=1)]


class ProtocolSpec(Strict):
    """The protocol of measurement. Only figures of the same protocol are comparable.

    Attributes:
        name: Stands for classes, size, encodings and metrics. A report never compares figures of
            two protocols. By default the name of the study.
        size: Height and width of images and labels, pixels.
        published: Table of published results of the same protocol to show in the report; empty for
            none.
    """

    name: str
    size: tuple[Annotated[int, Field(ge=1, le=2**15)], Annotated[int, Field(ge=1, le=2**15)]]
    published: Literal["", "nyud", "pascal"] = ""


class _Open(BaseModel):
    """A table that takes keys beyond its own, which those who know them check later.

    A further key that is near to one of the table's is taken for a typing error, and refused.
    """

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_misspelt(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping):
            for key in raw:
                hint = "" if key in cls.model_fields else nearest(key, cls.model_fields, cutoff=0.8)
                if hint:
                    raise ValueError(f"unknown key '{key}'{hint}")
        return raw

    @property
    def further(self) -> dict[str, Any]:
        """The keys beyond the table's own."""
        return dict(self.model_extra or {})


class TaskSpec(_Open):
    """One task.

    All further keys are options of its kind (`gatesearch.tasks`).

    Attributes:
        kind: A name in `gatesearch.tasks.TASKS`.
        classes: Number of classes, or their names; 1 for a kind without classes.
        class_names: Names of the classes by index, for reports; empty where none are given. A list
            of names given as `classes` becomes these.
        weight: ω_t, the weight of its loss.
        label: Where its labels lie. For the data set `folder`: a pattern of files, as
            `masks/{id}.png`, or columns of a table, as `labels.csv:age`. For others: a field of the
            data set; the task's name by default.
        head: A name in `gatesearch.models.heads.HEADS`; by default that of its kind, or
            `model.head`.
    """

    kind: str
    classes: int = Field(default=1, ge=1, le=2**15 - 1)
    class_names: tuple[str, ...] = ()
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    label: str = ""
    head: str = ""

    @model_validator(mode="before")
    @classmethod
    def _count_names(cls, raw: Any) -> Any:
        """Turn a list of names given as `classes` into their number and `class_names`."""
        if isinstance(raw, Mapping) and isinstance(raw.get("classes"), list | tuple):
            names = raw["classes"]
            return {**raw, "classes": len(names), "class_names": names}
        return raw

    @model_validator(mode="after")
    def _one_name_each(self) -> "TaskSpec":
        names = self.class_names
        if names and len(names) != self.classes:
            raise ValueError(
                f"class_names must name every class, {self.classes}, found {len(names)}"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"names of classes must differ, found {', '.join(names)}")
        return self

    @property
    def kind_options(self) -> dict[str, Any]:
        """Options for the kind."""
        names = {"class_names": self.class_names} if self.class_names else {}
        return {"classes": self.classes, **names, **self.further}


def _bounded(frames: int | str) -> int | str:
    if isinstance(frames, int) and not 0 <= frames <= 10**9:
        bound = "greater than or equal to 0" if frames < 0 else "less than or equal to 1000000000"
        raise ValueError(f"Input should be {bound}, found {frames}")
    return frames


class DataSpec(_Open):
    """The data set, and how its official training part is split.

    All further keys are options of the data set (`Dataset.options`).

    Attributes:
        dataset: A name in `gatesearch.datasets.DATASETS`.
        train_frames: Number of frames of the official training part to use, spread evenly; 0 = all.
        test_frames: Number of frames of the official test part to use, spread evenly; 0 = all.
        validation: Number of frames of the training part that become the validation part, on which
            all choices are made. 0 takes the validation part that the data set has. For data sets
            that take one (`folder`), a file that lists the frames of that part.
        validation_seed: Seed by which these frames are chosen, the same for every trial.
        tasks: Tasks whose labels the data set has, in a study of several; all of them if empty.
        share: Share of the frames of an epoch that it gives, in a study of several
            (`Study.mixing`), relative to those of the others.
    """

    dataset: str
    train_frames: int = Field(default=0, ge=0, le=10**9)
    test_frames: int = Field(default=0, ge=0, le=10**9)
    validation: Annotated[int | str, AfterValidator(_bounded)] = 0
    validation_seed: int = Field(default=0, ge=-(2**63), le=2**63 - 1)
    tasks: tuple[str, ...] = ()
    share: Positive | None = None

    @property
    def carved(self) -> int:
        """Number of frames to take from the training part for validation."""
        return self.validation if isinstance(self.validation, int) else 0


class ModelSpec(Strict):
    """Backbone and heads that every method builds on.

    Attributes:
        backbone: A name in `gatesearch.models.backbones.BACKBONES`, `timm:NAME`,
            `torchvision:NAME`, or a name that `gs.register_backbone` was given.
        width: Multiplier of the backbone's channels; heads are not scaled.
        output_stride: Input resolution divided by feature resolution, reached by dilation: 8, 16
            or 32. `auto` is 8, and for an imported backbone what it has.
        head: A name in `gatesearch.models.heads.HEADS`.
        head_channels: Channels inside each head.
        init: Initial weights of every method: `scratch` (random), `pretrained` (ImageNet), or `stl`
            (those of the study's trained single-task networks).
        weights: For `pretrained`: `imagenet` (torchvision's; those of `efficientnet_lite0` need the
            extra `efficientnet`), or a .safetensors file with the same names of tensors. For an
            imported backbone what its package publishes, or any file with a state dict of it.
    """

    backbone: str = "resnet18"
    width: float = Field(default=1.0, ge=0.01, le=100)
    output_stride: Literal[4, 8, 16, 32, "auto"] = "auto"
    head: str = "deeplabv3"
    head_channels: int = Field(default=256, ge=1, le=2**16)
    init: Literal["scratch", "pretrained", "stl"] = "scratch"
    weights: str = "imagenet"


class ColourSpec(Strict):
    """Random changes of the colours of training images, in units of torchvision's `ColorJitter`.

    Attributes:
        brightness: b; brightness is multiplied by a factor in [max(0, 1 - b), 1 + b].
        contrast: c; contrast is multiplied by a factor in [max(0, 1 - c), 1 + c].
        saturation: s; saturation is multiplied by a factor in [max(0, 1 - s), 1 + s].
        hue: h; hue is turned by a share of the circle of colours in [-h, h].
    """

    brightness: float = Field(default=0.0, ge=0, le=100)
    contrast: float = Field(default=0.0, ge=0, le=100)
    saturation: float = Field(default=0.0, ge=0, le=100)
    hue: float = Field(default=0.0, ge=0, le=0.5)


class AugmentSpec(Strict):
    """Augmentation of whole training batches; labels of every kind follow.

    Attributes:
        flip: Mirror left to right with probability 1/2.
        zoom: Factors, at least 1, by which a window of the frame is enlarged; depth is divided by
            the factor.
        scale: Range of factors by which frames are rescaled without a change of depth
            (PASCAL-Context). Above 1, a window of 1 / factor of either side is enlarged to the
            frame.
        rotate: Largest rotation, degrees.
        crop: Range of the sides of a random window that is enlarged to the frame, as shares of the
            frame's sides, without a change of depth. Width and height are drawn each by itself, so
            that the aspect ratio changes too, as with torchvision's `RandomResizedCrop` (which
            draws the area and the aspect ratio).
        colour: Random changes of colours, which no label follows.
    """

    flip: bool = True
    zoom: tuple[Annotated[float, Field(ge=1, le=100)], ...] = Field(default=(1.0,), min_length=1)
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    rotate: float = Field(default=0.0, ge=0, le=180)
    crop: tuple[Side, Side] = (1.0, 1.0)
    colour: ColourSpec = ColourSpec()

    @model_validator(mode="after")
    def _ordered(self) -> "AugmentSpec":
        for key in ("scale", "crop"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} must be an ascending range, found {(low, high)}")
        return self

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out options at their default that stores begun before them do not have."""
        table: dict[str, Any] = serialize(self)
        for key in ("crop", "colour"):
            if getattr(self, key) == type(self).model_fields[key].default:
                table.pop(key, None)
        return table


class TrainingSpec(Strict):
    """Training settings of every network of the study.

    Attributes:
        epochs: Passes over the training part. The network after the last one counts.
        batch_size: Frames per step.
        lr: Initial learning rate, decayed by `schedule` after each step.
        weight_decay: Decay of the weights of convolutions and linear layers.
        momentum: Momentum of `sgd`.
        power: Exponent of the `poly` schedule (1 - step / steps) ** power.
        precision: `auto` is bf16 if the device computes it natively, else fp32.
        memory_format: `auto` is the faster one, measured once per store at the study's shapes.
        augment: Augmentation of training batches.
    """

    epochs: int = Field(ge=1, le=10**6)
    batch_size: int = Field(default=8, ge=2, le=10**6)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Positive = 1e-3
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    schedule: Literal["poly", "constant"] = "poly"
    power: Positive = 0.9
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "nchw", "nhwc"] = "auto"
    augment: AugmentSpec = AugmentSpec()


class BaselinesSpec(Strict):
    """Baselines at other widths, by which the report draws curves.

    Attributes:
        widths: Factors of `model.width` at which they are trained too, single-task networks always
            among them; 1 is trained in any case.
        methods: Methods that are trained at these widths, beside `stl`.
    """

    widths: tuple[Annotated[float, Field(ge=0.01, le=100)], ...] = ()
    methods: tuple[str, ...] = ("mtl",)


class MethodOptions(BaseModel):
    """Options of one method. The method defines all keys but these (`Method.options`).

    Attributes:
        training: Keys of `[training]` with another value for this method.
        start: Initial weights: `study` = as `model.init` says, `stl` = always those of the trained
            single-task networks; the method's default (`Method.start`) when None.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    training: dict[str, Any] = {}
    start: Literal["study", "stl"] | None = None

    @property
    def own(self) -> dict[str, Any]:
        """Options that the method itself defines."""
        return dict(self.model_extra or {})


class SearchSpec(Strict):
    """How the hyperparameters of the tuned methods are searched.

    Any other key of the table that holds a list is the range of a hyperparameter, as
    `lambda_s = [0.1, 10.0]` or `tau = [0.0, 1.0]`. It applies to every tuned method that has a
    hyperparameter of that name. Methods define their hyperparameters and default ranges
    (`Method.space`).

    Attributes:
        sampler: `tpe`, `nsga2` or `random`.
        space: Hyperparameter -> its range (low, high), or the values to choose from.
        first: Configurations that a search tries before it draws any: hyperparameter -> value, or
            hyperparameter -> task -> value. Those that it has tried already are skipped.
        startup: Number of random draws before the sampler builds a model.
        stop: Rule that stops trials early. A trial is compared, by Δ_MTL on validation, with
            earlier trials at the same epoch that cost no more. `median` stops those below the
            median; `halving` stops all but the better half, at epochs that double (asynchronous
            successive halving); `none` stops no trial.
        stop_every: Epochs between two judgements; with `halving`, epochs before the first.
        stop_after: Minimum number of earlier trials for a judgement.
        weighting: Ways to balance a trial's losses or gradients, names in
            `gatesearch.training.weightings.WEIGHTINGS`. If there are several, each trial draws one.
        scalar: Range of the factors of ω_t that the weighting `scalar` searches, log-uniform.
        scalar_trials: Number of such weights that are tried per method, ω_t first. The best on
            validation become those of the baseline.
    """

    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    space: dict[str, tuple[float | str, ...]] = Field(default={})
    first: tuple[dict[str, float | str | dict[str, float | str]], ...] = ()
    startup: int = Field(default=10, ge=1, le=10**6)
    stop: Literal["none", "median", "halving"] = "none"
    stop_every: int = Field(default=10, ge=1, le=10**6)
    stop_after: int = Field(default=4, ge=1, le=10**6)
    weighting: tuple[str, ...] = Field(default=("uniform",), min_length=1)
    scalar: tuple[float, float] = (0.1, 10.0)
    scalar_trials: int = Field(default=10, ge=1, le=10**6)

    @model_validator(mode="before")
    @classmethod
    def _gather_space(cls, raw: Any) -> Any:
        """Move keys that hold lists, and are no keys of this table, into `space`."""
        if not isinstance(raw, Mapping):
            return raw
        if "mode" in raw:  # of gatesearch 0.1.0
            raise ValueError('mode is gone; write tune = ["one_shot"] at the top of the study')
        ranges = {
            key: value
            for key, value in raw.items()
            if key not in cls.model_fields and isinstance(value, list | tuple)
        }
        rest = {key: value for key, value in raw.items() if key not in ranges}
        return {**rest, "space": {**rest.get("space", {}), **ranges}}

    @model_validator(mode="after")
    def _check_scalar(self) -> "SearchSpec":
        if not 0 < self.scalar[0] <= self.scalar[1] < math.inf:
            raise ValueError(
                f"scalar must be an ascending positive range of finite numbers, found {self.scalar}"
            )
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
    """How a run protects its work. It changes no results, so it is not in the fingerprint.

    Attributes:
        checkpoint_minutes: Minutes between two checkpoints of a training.
        attempts: Number of times that the process of a training may die alone before it keeps
            another checkpoint; once more, and it counts as failed. Neither stopping a run in order
            nor deaths of the whole run (power, a signal to all its processes) count.
        backup_minutes: Minimum minutes between two backups of the store.
    """

    checkpoint_minutes: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    attempts: int = Field(default=3, ge=1, le=10**6)
    backup_minutes: float = Field(default=10.0, ge=0, allow_inf_nan=False)
