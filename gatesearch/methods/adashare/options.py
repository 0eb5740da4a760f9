"""Options and search space of AdaShare."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gatesearch.methods.adashare.policies import Written
from gatesearch.methods.space import Range, Space
from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]

# Around the published weights: .001 to .05 of L_sparsity and .005 to .1 of L_sharing.
SPACE: Space = {
    "lambda_sparsity": Range(1e-4, 0.5, log=True, legal=(1e-9, 1e6)),
    "lambda_sharing": Range(5e-4, 1.0, log=True, legal=(1e-9, 1e6)),
}


class AdaShareOptions(Strict):
    """Options of AdaShare. Defaults are those of the authors' code for NYU v2 with three tasks.

    Lengths are shares of `training.epochs`: the code takes 4,000 steps of warm-up, 16,000 in which
    the policy is learned, and 20,000 in which the chosen network is trained.

    Attributes:
        lambda_sparsity: Weight of L_sparsity where no search chooses it.
        lambda_sharing: Weight of L_sharing where no search chooses it.
        losses: Form of both: `printed` as in the paper; `code` as in the authors' code, whose
            L_sharing is on logits and weighs the last blocks most, and whose L_sparsity is the mean
            of -log(1 - α) over blocks (see `policy_loss`).
        warmup: Share of the epochs, the first, in which all tasks select all blocks; done once per
            seed for all trials, unless these start from single-task networks.
        search: Share of the epochs, the next, in which weights and policy learn in turns; the rest
            trains the chosen network.
        curriculum: Share of the policy's epochs over which its blocks are freed, from the last
            block to the first; the code takes 48 of about 333 turns.
        temperature: Of the Gumbel softmax at the beginning and at the end of the policy's epochs;
            it falls by one factor after each policy turn. The code's factor .965 leads from 5 to .1
            in 110 turns, and further in longer trainings.
        policy_lr: Learning rate of the policy, as a multiple of that of the weights.
        samples: Number of policies that are drawn, of which validation chooses one.
        retrain_from: Weights that the chosen network is trained from: the `start` of the training
            (paper), or the `supernet`'s, with which the policy was learned. It keeps the latter
            where no epoch is left to train it.
        prefixes: `shared` computes once what several tasks compute alike. `separate` runs every
            task in a pass of its own, as the costs in the paper count it.
        policy: A policy that is given and not learned: `nyu3` or `cityscapes2` (published), a JSON
            file relative to the study's, else to the working folder, or a table, task -> 0 or 1 for
            each residual block. The network is then built with it and trained for all epochs.
    """

    lambda_sparsity: Weight = 0.001
    lambda_sharing: Weight = 0.05
    losses: Literal["printed", "code"] = "printed"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    search: float = Field(default=0.4, gt=0, le=1)
    curriculum: float = Field(default=0.15, ge=0, le=1)
    temperature: tuple[Temperature, Temperature] = (5.0, 0.1)
    policy_lr: Positive = 10.0
    samples: int = Field(default=8, ge=1, le=1000)
    retrain_from: Literal["start", "supernet"] = "start"
    prefixes: Literal["shared", "separate"] = "shared"
    policy: Written | None = None

    @model_validator(mode="after")
    def _within_the_epochs(self) -> "AdaShareOptions":
        if self.warmup + self.search > 1:
            raise ValueError(
                f"warmup + search must be at most 1, found {self.warmup} + {self.search}"
            )
        return self

    def phases(self, epochs: int) -> tuple[int, int]:
        """Return (last epoch of the warm-up, last in which the policy is learned).

        The policy gets at least one epoch.

        >>> AdaShareOptions().phases(20)
        (2, 10)
        >>> AdaShareOptions().phases(1)
        (0, 1)
        """
        warm = int(self.warmup * epochs)
        return warm, max(warm + 1, round((self.warmup + self.search) * epochs))
