"""What to train, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gatesearch.cost import Budget, name_of
from gatesearch.results import Result, network_name


@dataclass(frozen=True)
class NetworkSpec:
    """What to train: plain values, so that any process can.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        seed: Of initialisation, data order, augmentation.
        trial: Number in the store; None for a baseline.
        params: What the search chose for a trial: hyperparameters of its method, `weighting` where
            that is searched too; `weight.<task>` of a trial that tries weights of losses.
        budgets: Upper bounds on the cost of a trial's network.
        part: Empty for a network to compare; else what of its method others start from, as the
            method names it, such as `warm-up`.
        weighting: How losses or gradients are balanced.
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
        """What people read: `trial 3`, `mtl`, `warm-up`, `mtl + scalar, trial 5`."""
        if self.trial is None:
            return self.part or network_name(self.method, self.weighting)
        trial = f"trial {self.trial}"
        return f"{network_name(self.method, SCALAR)}, {trial}" if self.tries_weights else trial

    @property
    def tries_weights(self) -> bool:
        """Whether it is a trial of a search for the weights of losses."""
        return self.trial is not None and self.weighting == SCALAR

    @property
    def budget(self) -> str:
        """The budgets' common name; empty for none."""
        return name_of(self.budgets)

    def folder(self, out: Path) -> Path:
        """The folder of its network.

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
        """The specification of a trained network, as far as its folder depends on it."""
        return cls(
            result.method, result.seed, result.trial, part=result.part, weighting=result.weighting
        )


# The weighting whose fixed weights are searched.
SCALAR = "scalar"


def trial_folder(out: Path, number: int) -> Path:
    """The folder of a trial's network in a store's folder."""
    return out / "trials" / f"{number:04d}"
