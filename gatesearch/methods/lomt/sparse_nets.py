"""Single-task networks under group-sparse proximal training: LOMT's first phase.

A group is the weights of one input channel of a convolution or linear layer of an encoder. After
each step of the optimizer, the proximal operator of λ Σ_g sqrt(n_g) |w_g| is applied: a group whose
norm is below a threshold becomes zero, any other is shortened by it.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models import Parts
from gatesearch.models.channel_ops import at_positions
from gatesearch.models.encoder import Encoder
from gatesearch.models.filters import Filters, filters_of

Metric = Literal["adam", "plain"]

# Decay of the mean squares of gradients, and what is added to their root, as in the public code.
BETA, EPSILON = 0.999, 1e-6


class SparseNets(nn.Module):
    """T separate networks, and what their proximal training keeps from step to step.

    Attributes:
        mean_squares: (G,) running mean of the squared gradients of each group, over all
            convolutions of all encoders in order.
        mass: (L,) sum of the weights in that mean, for each of these convolutions.
        sparsity: (T,) percentage of zero groups of each task's encoder after the last epoch.
        stable: () number of epochs in a row in which no task's sparsity has moved much.
    """

    mean_squares: Tensor
    mass: Tensor
    sparsity: Tensor
    stable: Tensor

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        networks = SingleTaskNets(parts)
        self.encoders, self.heads = networks.encoders, networks.heads
        convolutions = self.convolutions()
        groups = sum(group_count(conv) for conv in convolutions)
        self.register_buffer("mean_squares", torch.zeros(groups))
        self.register_buffer("mass", torch.zeros(len(convolutions)))
        self.register_buffer("sparsity", torch.zeros(len(parts.tasks)))
        self.register_buffer("stable", torch.zeros((), dtype=torch.int64))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        size = image.shape[-2:]
        return {
            task: self.heads.call_head(task, encoder(image), size)
            for task, encoder in self.encoders.items()
        }

    def encoder(self, task: str) -> Encoder:
        """Return a task's encoder."""
        return cast(Encoder, self.encoders[task])

    def convolutions(self) -> list[Filters]:
        """List the convolutions and linear layers of all encoders."""
        return [conv for task in self.encoders for conv in convolutions_of(self.encoder(task))]

    @torch.no_grad()
    def shrink(self, *, rate: float, strength: float, metric: Metric) -> None:
        """Apply the proximal operator to all groups whose weights the last step has changed.

        The threshold of a group of n weights is rate · λ · sqrt(n) in the metric `plain`. In the
        metric `adam` it is divided by the root mean square of the group's gradients, as Adam
        divides its steps. A group that no gradient reaches then vanishes within a few steps.

        Args:
            rate: Learning rate of the step.
            strength: λ.
            metric: In which the distance to the weights of the step is measured.
        """
        start = 0
        for i, conv in enumerate(self.convolutions()):
            stop = start + group_count(conv)
            gradient = conv.weight.grad
            if gradient is not None:  # else no frame of the batch had labels of the task
                threshold = torch.full_like(
                    self.mean_squares[start:stop], rate * strength * math.sqrt(group_size(conv))
                )
                if metric == "adam":
                    squares = self.mean_squares[start:stop]
                    squares.lerp_(group_norms(conv, gradient) ** 2 / group_size(conv), 1 - BETA)
                    self.mass[i] += (1 - BETA) * (1 - self.mass[i])
                    threshold /= (squares / self.mass[i]).sqrt() + EPSILON
                shrink_groups(conv, threshold)
            start = stop

    def record(self, tolerance: float) -> dict[str, float]:
        """Measure the sparsity after an epoch.

        Args:
            tolerance: Percentage points by which every task's sparsity may move in an epoch that
                counts as stable. It counts only once every task has zero groups.

        Returns:
            `sparsity.<task>` -> percentage of zero groups.
        """
        shares = {task: sparsity_of(self.encoder(task)) for task in self.encoders}
        now = torch.tensor(list(shares.values()))
        moved = (now - self.sparsity.cpu()).abs()
        settled = bool(((moved < tolerance) & (now > 0)).all())
        self.stable.copy_(self.stable + 1 if settled else torch.zeros_like(self.stable))
        self.sparsity.copy_(now)
        return {f"sparsity.{task}": share for task, share in shares.items()}


def convolutions_of(encoder: Encoder) -> list[Filters]:
    """List the convolutions and linear layers of an encoder, in the order of execution."""
    found = map(filters_of, encoder.layers.values())
    return [filters for filters in found if filters is not None]


def group_count(conv: Filters) -> int:
    """Count the groups of a layer: one for each input channel."""
    return conv.in_features if isinstance(conv, nn.Linear) else conv.in_channels


def group_size(conv: Filters) -> int:
    """Count the weights of a group, n_g."""
    return conv.weight.numel() // group_count(conv)


def group_norms(conv: Filters, values: Tensor) -> Tensor:
    """Compute the norm of every group, (G,).

    Args:
        conv: A convolution or linear layer.
        values: Its weights, or their gradient.
    """
    # Summing over filters first is several times as fast as torch's norm over three dimensions, and
    # in the order of memory, which is channels-last, ten times as fast as in the other.
    squares = values * values
    if isinstance(conv, nn.Linear):
        return squares.sum(0).sqrt()
    if conv.groups == len(squares) > 1:
        return squares.flatten(1).sum(1).sqrt()
    if conv.groups > 1:
        by_group = torch.unflatten(squares.flatten(2).sum(2), 0, (conv.groups, -1))
        return by_group.sum(1).flatten().sqrt()
    if squares.is_contiguous():
        return squares.sum(0).flatten(1).sum(1).sqrt()
    return squares.permute(0, 2, 3, 1).sum(0).flatten(0, 1).sum(0).sqrt()


def shrink_groups(conv: Filters, threshold: Tensor) -> None:
    """Shorten every group by its threshold: w_g <- w_g max(0, |w_g| - t_g) / |w_g|.

    Args:
        conv: The layer; its weights are changed.
        threshold: (G,) t_g.
    """
    norms = group_norms(conv, conv.weight)
    factors = (1 - threshold / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(min=0)
    groups = 1 if isinstance(conv, nn.Linear) else conv.groups
    # (C, inputs of a group), the same for all filters of a group.
    rows = factors.view(groups, 1, -1).expand(-1, len(conv.weight) // groups, -1).flatten(0, 1)
    conv.weight.mul_(at_positions(rows, conv.weight))


def sparsity_of(encoder: Encoder) -> float:
    """Return the percentage of the groups of an encoder that are zero."""
    zero = groups = 0
    for conv in convolutions_of(encoder):
        norms = group_norms(conv, conv.weight.detach())
        zero += int((norms == 0).sum())
        groups += len(norms)
    return 100 * zero / groups
