"""Options of InterroGate and of its one-shot form, and what a search chooses for each."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gatesearch.methods.space import Choice, Range, Space
from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

# λ_s is the weight of the sparsity loss, τ_t the hinge target of each task. `hinge` bounds σ(α) by
# τ_t (the paper), `flops` the expected cost by the budget of the run.
SPACE: Space = {
    "lambda_s": Range(0.01, 10.0, log=True),
    "tau": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
    "regulariser": Choice(("hinge",), legal=("hinge", "flops")),
}
# The share of its gates that each task opens.
ONE_SHOT_SPACE: Space = {"share": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0))}


def phase_ends(epochs: int, *, warmup: float, finetune: float) -> tuple[int, int]:
    """(last epoch of the warm-up, last before fine-tuning); each phase rounds down."""
    return int(warmup * epochs), epochs - int(finetune * epochs)


class InterroGateOptions(Strict):
    """The InterroGate supernet; the paper leaves all of these open.

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
    def _some_left(self) -> "InterroGateOptions":
        if self.warmup + self.finetune >= 1:
            raise ValueError(
                "warmup + finetune must leave a share of the epochs for the gates, found "
                f"{self.warmup} + {self.finetune}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """(last epoch of the warm-up, last of the gates) of so many; each phase rounds down.

        >>> InterroGateOptions(warmup=0.5, finetune=0.25).phases(10)
        (5, 8)
        >>> InterroGateOptions(warmup=0.5, finetune=0.25).phases(1)
        (0, 1)
        """
        return phase_ends(epochs, warmup=self.warmup, finetune=self.finetune)


class OneShotOptions(Strict):
    """One training for the whole front (`tune = ["one_shot"]`).

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

    @model_validator(mode="after")
    def _some_left(self) -> "OneShotOptions":
        if self.warmup + self.finetune >= 1:
            raise ValueError(
                "warmup + finetune must leave a share of the epochs for the supernet, found "
                f"{self.warmup} + {self.finetune}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """(last epoch of the warm-up, last of the supernet) of so many; each phase rounds down."""
        return phase_ends(epochs, warmup=self.warmup, finetune=self.finetune)
