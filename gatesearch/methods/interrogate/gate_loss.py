"""The loss of a supernet's gates, and how the training changes it: temperature and ramp of λ_s."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from gatesearch.cost import Budget, PatternCost
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.models import GatedSupernet
from gatesearch.models.gates import temperature_at


@dataclass
class GateLoss:
    """The loss that closes gates.

    Attributes:
        supernet: Its gates are trained.
        options: Temperature and ramp.
        weight: λ_s.
        tau: (T,) hinge targets in [0, 1].
        cost: Cost of gate patterns for the regulariser `flops`; None for `hinge`.
        budgets: Upper bounds for the regulariser `flops`.
        ramp_share: Share of λ_s that applies now.
    """

    supernet: GatedSupernet
    options: InterroGateOptions
    weight: float
    tau: Tensor
    cost: PatternCost | None = None
    budgets: Sequence[Budget] = ()
    ramp_share: float = 1.0

    def anneal(self, share: float) -> None:
        """Set temperature and ramp for the share of the gate phase that is done, in [0, 1]."""
        self.supernet.temperature = temperature_at(share, self.options.temperature)
        self.ramp_share = min(1.0, share / self.options.ramp) if self.options.ramp else 1.0

    def penalty(self) -> Tensor:
        """Compute the loss, a scalar."""
        if self.cost is None:
            return self.weight * self.ramp_share * self.supernet.sparsity(self.tau)
        hinge = self.cost.budget_hinge(self.supernet.open_probability(), self.budgets)
        return self.weight * self.ramp_share * hinge
