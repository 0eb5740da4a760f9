"""The two hypernetworks: from (preferences, cost weight) to edges of the tree and shifts of norms.

Both embed (r, c) by two layers, join it with a learned embedding of what they predict for, and end
in a layer that starts at zero. So a fresh controller leaves the streams as they were trained. The
sizes of layers other than the embeddings, and the scale of inputs and first weights, are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

# Logit by which a fresh edge hypernetwork prefers a task's own stream over each other one.
OWN = 2.0


class _Trunk(nn.Module):
    """(r, c) and an item -> hidden features of the item, (items, width)."""

    def __init__(self, tasks: int, items: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(tasks + 1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.items = nn.Parameter(torch.randn(items, width))
        self.join = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU())
        # So that features vary with (r, c) as much as they do with the item.
        for layer in (*self.embed, *self.join):
            if isinstance(layer, nn.Linear) and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, preference: Tensor, cost: Tensor) -> Tensor:
        """(T,) preferences that sum to 1 and c in [0, 1] -> (items, width)."""
        inputs = torch.cat([len(preference) * preference - 1, 2 * cost.reshape(1) - 1])
        embedded = self.embed(inputs)
        hidden: Tensor = self.join(
            torch.cat([embedded.expand(len(self.items), -1), self.items], dim=1)
        )
        return hidden


class EdgeHypernetwork(nn.Module):
    """(r, c) -> for each block and reader, logits of the streams that it may read.

    Args:
        tasks: Number of tasks T.
        blocks: Number of blocks L.
        width: Length of embeddings.
    """

    def __init__(self, *, tasks: int, blocks: int, width: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.trunk = _Trunk(tasks, blocks, width)
        self.edges = _from_zero(width, tasks * tasks)

    def forward(self, preference: Tensor, cost: Tensor) -> Tensor:
        """(T,) preferences and c -> logits (L, T readers, T streams)."""
        edges = self.edges(self.trunk(preference, cost)).unflatten(1, (self.tasks, self.tasks))
        logits: Tensor = edges + OWN * torch.eye(self.tasks, device=edges.device)
        return logits


class WeightHypernetwork(nn.Module):
    """(r, c) -> shifts of γ and β of all batch norms.

    Args:
        tasks: Number of tasks T.
        channels: For each item, a block of a stream or a head, the channels of all its norms.
        width: Length of embeddings.
    """

    def __init__(self, *, tasks: int, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.trunk = _Trunk(tasks, len(channels), width)
        self.shifts = nn.ModuleDict(
            {str(i): _from_zero(width, 2 * count) for i, count in enumerate(channels) if count}
        )

    def forward(self, preference: Tensor, cost: Tensor, items: Sequence[int]) -> dict[int, Tensor]:
        """Predict the shifts of some items.

        Args:
            preference: (T,) preferences that sum to 1.
            cost: c in [0, 1].
            items: Indices of items.

        Returns:
            Item -> (2, channels) shifts of γ and of β, for those that have norms.
        """
        hidden = self.trunk(preference, cost)
        return {
            item: self.shifts[str(item)](hidden[item]).unflatten(0, (2, -1))
            for item in items
            if str(item) in self.shifts
        }


def _from_zero(width: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
