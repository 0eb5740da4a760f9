"""A multi-task network that learns, while it trains, which channels it can do without.

The importance of a coupled channel group is how much the loss would change, to first order, if its
channels were multiplied by a number s that moves away from 1 (Molchanov et al., "Importance
Estimation for Neural Network Pruning", CVPR 2019, https://arxiv.org/abs/1906.10771):

    I_g = mean over steps of |∂L/∂s| = |Σ W ∂L/∂W|

summed over the weights W that read the channels of the group: the columns of every convolution,
linear layer and head. Ours differs from the paper, which sums over the filters that make a channel:
behind them batch norm makes that sum 0. Norms and activations in between need no weights of their
own, and a group is zero exactly where none of its readers sees it. A group that none of these
weights reads has importance 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.coupling import ChannelGroups
from gatesearch.models.encoder import Encoder
from gatesearch.models.filters import filters_of
from gatesearch.models.heads import Heads
from gatesearch.models.model_factory import OwnHead
from gatesearch.models.narrowing import channel_axes
from gatesearch.training import Hooks


@dataclass(frozen=True)
class Reader:
    """Weights that read channels of coupled groups.

    Attributes:
        weight: A parameter.
        axis: Its axis of input channels.
        groups: (C,) number of the group of each channel.
    """

    weight: Tensor
    axis: int
    groups: Tensor


class RankedNet(nn.Module):
    """A multi-task network with the importance of its coupled channel groups.

    Args:
        parts: Encoder and heads.
        groups: Number G of coupled channel groups.

    Attributes:
        importance: (G,) sum over steps of each group's; in the state dict.
    """

    importance: Tensor

    def __init__(self, parts: Parts, groups: int) -> None:
        super().__init__()
        network = MultiTaskNet(parts)
        self.encoder, self.heads = network.encoder, network.heads
        self.register_buffer("importance", torch.zeros(groups))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        features = self.encoder.features(image, self.heads.nodes(self.encoder.graph))
        size = image.shape[-2:]
        return {task: self.heads.call_head(task, features, size) for task in self.heads}

    def multi_task_state(self) -> dict[str, Tensor]:
        """Return the state dict of the multi-task network."""
        return {name: x for name, x in self.state_dict().items() if name != "importance"}

    @torch.no_grad()
    def record(self, readers: Sequence[Reader], weights: Sequence[Tensor]) -> None:
        """Add the importance of a step.

        Args:
            readers: Weights that read each group, with the gradients of the step.
            weights: Their weights before the step.
        """
        slopes = torch.zeros_like(self.importance)
        for reader, weight in zip(readers, weights, strict=True):
            gradient = reader.weight.grad
            if gradient is not None:  # else no frame of the batch had labels of the task
                products = (weight * gradient).movedim(reader.axis, 0).flatten(1).sum(1)
                slopes.index_add_(0, reader.groups, products.to(slopes))
        self.importance += slopes.abs()


def encoder_readers(encoder: Encoder, groups: ChannelGroups) -> list[Reader]:
    """List the layers of an encoder that combine channels of their source."""
    found = []
    for node in encoder.graph.weighted_nodes:
        filters = filters_of(encoder.layer(node.name))
        if filters is not None and node.coupling == "free":
            numbers = torch.from_numpy(groups.numbers[node.sources[0]])
            found.append(Reader(filters.weight, 1, numbers))
    return found


def head_readers(heads: Heads, parts: Parts, groups: ChannelGroups) -> list[Reader]:
    """List the weights of heads that read features; what a user's own head reads stays anyway."""
    found = []
    for task, spec in parts.heads.items():
        if isinstance(spec, OwnHead):
            continue
        named = dict(heads[task].named_parameters())
        for index, name in enumerate(parts.graph.read_by(bool(spec.features))):
            numbers = torch.from_numpy(groups.numbers[name])
            found += [
                Reader(named[entry], axis, numbers)
                for entry, axis in channel_axes(spec, index).items()
                if entry in named and named[entry].dim() > 1
            ]
    return found


def ranking_hooks(network: RankedNet, parts: Parts, groups: ChannelGroups) -> Hooks:
    """Make the hooks that record importance with the weights that a step's gradients are for.

    Args:
        network: The network.
        parts: What it was built from.
        groups: Its coupled channel groups.
    """
    readers = [
        replace(reader, groups=reader.groups.to(network.importance.device))
        for reader in (
            *encoder_readers(network.encoder, groups),
            *head_readers(network.heads, parts, groups),
        )
    ]
    weights: list[Tensor] = []

    def keep_weights(share: float) -> None:
        weights[:] = [reader.weight.detach().clone() for reader in readers]

    return Hooks(before_step=keep_weights, after_step=lambda: network.record(readers, weights))


def importance_of(network: RankedNet) -> NDArray[np.float64]:
    """(G,) importance of each group, in any unit."""
    return network.importance.double().cpu().numpy()
