"""The specification of a network to train, as plain values that any process can read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.cost import Budget, name_of
from gatesearch.results import Result, network_name


@dataclass(frozen=True)
class NetworkSpec:
    """A network to train.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        seed: Seed of initialisation, data order and augmentation.
        trial: Number of the trial in the store; None for a baseline or a start network.
        params: Parameter -> value that the search chose for a trial: hyperparameters of its
            method, and `weighting` where that is searched too. In a search for weights of losses:
            `weight.<task>`.
        budgets: Upper bounds on the cost of a trial's network.
        part: Empty for a baseline or trial. For a start network, whose weights other networks of
            the method start from, the name that the method gives it, such as `warm-up`.
        weighting: How losses or gradients are balanced, a name in
            `gatesearch.training.weightings.WEIGHTINGS`.
    """

    method: str
    seed: int
    trial: int | None = None
    params: Mapping[str, float | str] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()
    part: str = ""
    weighting: str = "uniform"

    @property
    def label(self) -> str:
        """Name in messages: `trial 3`, `mtl`, `warm-up`, `mtl + scalar, trial 5`."""
        if self.trial is None:
            return self.part or network_name(self.method, self.weighting)
        trial = f"trial {self.trial}"
        return f"{network_name(self.method, SCALAR)}, {trial}" if self.tries_weights else trial

    @property
    def tries_weights(self) -> bool:
        """True for a trial of a search for the weights of losses."""
        return self.trial is not None and self.weighting == SCALAR

    @property
    def budget(self) -> str:
        """Common name of the budgets; empty without any."""
        return name_of(self.budgets)

    def folder(self, out: Path) -> Path:
        """Return the folder that holds the network and the files of its training.

        Args:
            out: The store's folder.
        """
        if self.trial is not None:
            return trial_folder(out, self.trial)
        seed = f"seed{self.seed}"
        if self.part:
            return out / "starts" / "-".join([self.method, self.part, seed])
        weighting = [] if self.weighting == "uniform" else [self.weighting]
        return out / "baselines" / "-".join([self.method, *weighting, seed])

    @classmethod
    def of(cls, result: Result) -> "NetworkSpec":
        """Specify the network of a result; `params` and `budgets` are left empty."""
        return cls(
            result.method, result.seed, result.trial, part=result.part, weighting=result.weighting
        )


# The weighting whose fixed weights are searched.
SCALAR = "scalar"


def trial_folder(out: Path, number: int) -> Path:
    """Return the folder of a trial in a store's folder."""
    return out / "trials" / f"{number:04d}"
