"""A supernet that is trained for all budgets at once, under another gate pattern in each step.

The gates of a task are ordered by α, and a pattern opens those of the highest α, so that patterns
are nested. Each step draws which share of gates is open. By default one step in five closes all
gates, and one in five opens all (the sandwich rule of slimmable networks, Yu & Huang, ICCV 2019,
https://arxiv.org/abs/1903.05134). The order is learned by the straight-through gradient of the
gates around the threshold that the drawn share sets.

InterroGate trains one supernet per budget; this is ours.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.models.gated_supernet import GatedSupernet


class Nested(nn.Module):
    """A supernet with a random gate pattern in each step.

    Args:
        supernet: The supernet; its α are replaced by small random values, which set an initial
            order of the gates.
        ends: Probability of a step with all gates closed, and of one with all gates open.
        seed: Seed of all draws.

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
        """Draw the pattern of the next step.

        Unless all gates are opened or closed, the tasks have one common share of open gates in half
        of the steps, and a share each in the other half.
        """
        u, common, separate, *shares = torch.rand(
            3 + len(self.supernet.tasks), generator=self._generator
        ).tolist()
        if u < 2 * self.ends:
            shares = [float(u < self.ends)] * len(shares)
        elif separate < 0.5:
            shares = [common] * len(shares)
        self.shares = torch.tensor(shares)
        self.supernet.open_shares(self.shares)

    @property
    def richest(self) -> bool:
        """True if all gates are open in this step."""
        return bool((self.shares == 1).all())

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state that no tensor of the network holds: shares of gates and generator."""
        return {"generator": self._generator.get_state(), "shares": self.shares}

    def set_extra_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the shares and the generator that `get_extra_state` returned."""
        self._generator.set_state(state["generator"].cpu())
        self.shares = state["shares"].cpu()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        if self.richest or bool((self.shares == 0).all()):
            return self.supernet.plain(image, own=self.richest)
        outputs: dict[str, Tensor] = self.supernet(image)
        return outputs
