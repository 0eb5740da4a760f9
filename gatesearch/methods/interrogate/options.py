"""Options and search spaces of InterroGate and of its one-shot form."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gatesearch.methods.space import Choice, Range, Space
from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# λ_s is the weight of the sparsity loss, and τ_t the hinge target of each task. The regulariser
# `hinge` penalises the mean probability of an open gate above τ_t (the paper), `flops` the expected
# cost above the run's budget; see `gatesearch.models.gates.Estimator` for the probability.
SPACE: Space = {
    "lambda_s": Range(0.01, 10.0, log=True),
    "tau": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
    "regulariser": Choice(("hinge",), legal=("hinge", "flops")),
}
# The share of its gates that each task opens.
ONE_SHOT_SPACE: Space = {"share": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0))}


def phase_ends(epochs: int, *, warmup: float, finetune: float) -> tuple[int, int]:
    """Return (last epoch of the warm-up, last before fine-tuning).

    The shares of both are rounded down to whole epochs.

    Args:
        epochs: Epochs of all phases.
        warmup: Share of the epochs for the warm-up.
        finetune: Share of the epochs for fine-tuning.
    """
    return int(warmup * epochs), epochs - int(finetune * epochs)


class InterroGateOptions(Strict):
    """Options of InterroGate; the paper states none of them unless noted.

    Attributes:
        granularity: Gates behind every convolution and linear layer (`conv`), or behind every
            residual block (`block`). `head` is `conv` with one gate for all channels of a layer
            that one attention head reads, as attention kernels compute whole heads; it needs a
            backbone with attention.
        estimator: `ste` (hard forward, straight-through gradient), `sigmoid` (annealed),
            `hard_concrete` (Louizos 2018, annealed). The regularisers see σ(α), and with
            `hard_concrete` the probability that a drawn gate is above 0, which is larger.
        initial: Initial probability σ(α) that a task computes a channel in its own stream.
        lr: Learning rate of α and β, as a multiple of that of the weights.
        temperature: Start and end temperature of `sigmoid` and `hard_concrete`, annealed
            geometrically over the gate phase; `ste` has none.
        ramp: Share of the gate phase over which λ_s rises from 0 to its full value; 0 in the paper.
            Streams start with the same weights, and gates can only choose once they differ.
        warmup: Share of `training.epochs`, the first, trained as one multi-task network, whose
            weights every stream then starts from; done once per seed for all trials. 0 in the
            paper.
        finetune: Share of `training.epochs`, the last, in which the compact network is trained
            after pruning. 0 in the paper. One learning rate schedule runs through all phases.
        spread: `learned` keeps the gates that were learned to be open (the paper). `even` opens the
            same share of gates in every layer, those of the highest α (see
            `equalize_layer_shares`). Patterns of the one-shot search are not changed.
        align: True makes all tasks open the same channels, and the same ones along a residual
            stream, without changing how many each opens (see `align_tasks`). The compact network
            then computes and copies less. False in the paper. Patterns of the one-shot search are
            not changed.
        mix: What the shared stream continues from behind its gates: `tasks` = the mix of all tasks'
            features with the weights β (the paper, equation 3), `shared` = its own features (ours).
            Then no stream needs the channels of all tasks, and the compact network has no mixes.
        ranking: Share of `training.epochs`, behind the warm-up and at least one, in which a trial
            under a budget below the multi-task network's cost trains as one and ranks channels; the
            encoder is then narrowed. Ours; trials under other budgets have no such epochs.
        shared: Share of what such a budget leaves beside the heads that the narrowed encoder takes
            with all gates closed. The rest is for channels of tasks' own.
        round_to: The numbers of live channels of every convolution are rounded to multiples of
            this; 1 leaves them. FLOPs and latency without and with rounding are logged.
    """

    granularity: Literal["conv", "block", "head"] = "conv"
    estimator: Literal["ste", "sigmoid", "hard_concrete"] = "ste"
    initial: float = Field(default=0.5, gt=0, lt=1)
    lr: Positive = 10.0
    temperature: tuple[Positive, Positive] = (1.0, 0.1)
    ramp: float = Field(default=0.0, ge=0, le=1)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    finetune: float = Field(default=0.0, ge=0, lt=1)
    spread: Literal["learned", "even"] = "learned"
    align: bool = False
    mix: Literal["tasks", "shared"] = "tasks"
    ranking: float = Field(default=0.1, gt=0, le=1)
    shared: float = Field(default=0.8, gt=0, le=1)
    round_to: int = Field(default=1, ge=1, le=10**6)

    @model_validator(mode="after")
    def _some_left(self) -> "InterroGateOptions":
        if self.warmup + self.finetune >= 1:
            raise ValueError(
                "warmup + finetune must leave a share of the epochs for the gates, found "
                f"{self.warmup} + {self.finetune}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """Return (last epoch of the warm-up, last of the gates); see `phase_ends`.

        >>> InterroGateOptions(warmup=0.5, finetune=0.25).phases(10)
        (5, 8)
        >>> InterroGateOptions(warmup=0.5, finetune=0.25).phases(1)
        (0, 1)
        """
        return phase_ends(epochs, warmup=self.warmup, finetune=self.finetune)


class OneShotOptions(Strict):
    """Options of the one-shot form (`tune = ["one_shot"]`), which trains once for the whole front.

    Attributes:
        ends: Probability of a step with all gates closed, and of one with all gates open.
        distillation: Weight of the distance between a pattern's predictions and those with all
            gates open.
        patterns: Number of gate patterns that Optuna tries on the validation part without training;
            by default as many as take about a quarter of the supernet's training (see
            `default_patterns`).
        statistics: Number of training frames for the batch norm statistics of a tried pattern.
        epochs: Passes over the training part, warm-up and fine-tuning included; `training.epochs`
            where it is not given. One supernet serves all budgets, so a longer training pays off.
        warmup: Share of the epochs, the first, trained as one multi-task network, whose weights all
            streams then start from: nested patterns learn slowly from scratch.
        finetune: Share of the epochs, the last, in which each chosen network is trained.
    """

    ends: float = Field(default=0.2, ge=0, le=0.5)
    distillation: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    patterns: int | None = Field(default=None, ge=1, le=10**6)
    statistics: int = Field(default=256, ge=2, le=10**9)
    epochs: int | None = Field(default=None, ge=1, le=10**6)
    warmup: float = Field(default=0.4, ge=0, lt=1)
    finetune: float = Field(default=0.25, ge=0, lt=1)

    @model_validator(mode="after")
    def _some_left(self) -> "OneShotOptions":
        if self.warmup + self.finetune >= 1:
            raise ValueError(
                "warmup + finetune must leave a share of the epochs for the supernet, found "
                f"{self.warmup} + {self.finetune}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """Return (last epoch of the warm-up, last of the supernet); see `phase_ends`."""
        return phase_ends(epochs, warmup=self.warmup, finetune=self.finetune)


# Bounds of the default number of gate patterns. The upper one was the default of gatesearch 0.1.0.
_FEWEST_PATTERNS, MOST_PATTERNS = 16, 1000


def default_patterns(*, epochs: int, train: int, validation: int, statistics: int) -> int:
    """Return how many gate patterns are tried where the study does not say.

    They take about a quarter of the training of the supernet, counted in forward passes of one
    frame: a training step costs three per frame, and a tried pattern one for each frame of its
    batch norm statistics and of the validation part. The count depends on nothing that is measured,
    so a search that goes on tries the same patterns.

    Args:
        epochs: Epochs of the supernet's training, those of the warm-up included.
        train: Number of training frames.
        validation: Number of validation frames.
        statistics: Number of training frames for the batch norm statistics of a pattern.

    >>> default_patterns(epochs=75, train=715, validation=80, statistics=256)  # studies/nyud
    119
    >>> default_patterns(epochs=1, train=48, validation=16, statistics=256)
    16
    """
    training = 3 * epochs * train
    pattern = min(statistics, train) + validation
    return max(_FEWEST_PATTERNS, min(training // (4 * pattern), MOST_PATTERNS))
