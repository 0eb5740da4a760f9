"""The tables of a study's file, each with its keys, their bounds and what they mean."""

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


class GateSpec(Strict):
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
            same share of every layer, those of the highest α (see `evened`). Patterns of the
            one-shot search stay as they were tried.
        align: Whether tasks own the same channels, as many each as before, and the same ones all
            along a residual stream (see `aligned`); what is cut then computes and moves less for
            the same shares. False in the paper; not in the one-shot search.
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
    align: bool = False
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
    """Options of one method: arguments of its builder, and `training` keys that differ."""

    model_config = ConfigDict(extra="allow", frozen=True)
    training: dict[str, Any] = {}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for the method's builder."""
        return dict(self.model_extra or {})


class Configuration(Strict):
    """λ_s and every task's τ_t of one trial."""

    lambda_s: Positive
    tau: dict[str, Annotated[float, Field(ge=0, le=1)]]

    @property
    def params(self) -> dict[str, float]:
        """As a trial's parameters: `lambda_s` and `tau.<task>`."""
        return {"lambda_s": self.lambda_s, **{f"tau.{t}": value for t, value in self.tau.items()}}


class SearchSpec(Strict):
    """What Optuna chooses: λ_s log-uniform, each task's τ_t uniform.

    Attributes:
        mode: `separate` trains a supernet each trial, `one_shot` one for all. Both fit one store.
        sampler: `tpe`, `nsga2` or `random`.
        lambda_s: Range of the weight of the sparsity loss.
        tau: Range of every task's hinge target.
        first: Configurations that every separate search tries before any is drawn, unless it has
            tried them: known good ones, or one to repeat with other seeds.
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
    first: tuple[Configuration, ...] = ()
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
        for given in self.first:
            for name, value in given.params.items():
                low, high = self.lambda_s if name == "lambda_s" else self.tau
                if not low <= value <= high:
                    raise ValueError(f"first: {name} must be in [{low}, {high}], found {value}")
        return self


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


class OneShotSpec(Strict):
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
