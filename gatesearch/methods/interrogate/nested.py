"""A supernet that learns all budgets at once: every step another of its nested gate patterns.

The gates of a task are ordered by α, and a pattern opens the first so many of them. Each step draws
how many, in one step of five none and in one of five all (the sandwich rule of slimmable networks,
Yu & Huang, ICCV 2019, https://arxiv.org/abs/1903.05134), and the order itself is learned by the
gates' own straight-through gradient, taken around the threshold that was drawn. InterroGate trains
one supernet a budget; this is ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.models.gated_supernet import GatedSupernet


class Nested(nn.Module):
    """A supernet under drawn patterns.

    Args:
        supernet: Starts with all gates alike; their order is drawn anew.
        ends: Probability of a step with all gates closed, and of one with all open.
        seed: Of all draws.

    Attributes:
        shares: (T,) share of open gates of each task in this step.
    """

    def __init__(self, supernet: GatedSupernet, *, ends: float, seed: int) -> None:
        super().__init__()
        self.supernet = supernet
        self.ends = ends
        self._generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for alpha in supernet.alpha.values():
                alpha.copy_(1e-2 * torch.randn(alpha.shape, generator=self._generator))
        self.shares = torch.zeros(len(supernet.tasks))

    def draw(self) -> None:
        """The pattern of the next step; one share for all tasks in half of those between."""
        u, common, separate, *own = torch.rand(
            3 + len(self.supernet.tasks), generator=self._generator
        ).tolist()
        if u < 2 * self.ends:
            own = [float(u < self.ends)] * len(own)
        elif separate < 0.5:
            own = [common] * len(own)
        self.shares = torch.tensor(own)
        self.supernet.open_shares(self.shares)

    @property
    def richest(self) -> bool:
        """Whether all gates are open."""
        return bool((self.shares == 1).all())

    def get_extra_state(self) -> dict[str, Tensor]:
        """What parameters do not tell: the pattern of this step and the state of the draws."""
        return {
            "generator": self._generator.get_state(),
            "shares": self.shares,
            "threshold": self.supernet.get_buffer("threshold").clone(),
        }

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on with the pattern and the draws of `get_extra_state`."""
        self._generator.set_state(state["generator"].cpu())
        self.shares = state["shares"].cpu()
        self.supernet.get_buffer("threshold").copy_(state["threshold"])

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        if self.richest or bool((self.shares == 0).all()):
            return self.supernet.plain(image, own=self.richest)
        outputs: dict[str, Tensor] = self.supernet(image)
        return outputs
