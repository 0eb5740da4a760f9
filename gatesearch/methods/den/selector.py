"""The selector: a small network that gives every image logits of widths."""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm


class Selector(nn.Module):
    """A 3x3 convolution and three residual blocks of stride 2, pooled, and one linear layer.

    Skips have no weights: they average 2x2 pixels and are filled up with channels of zeros, as in
    the paper's public code. With 32 channels this is the policy network that AdaShare counts DEN
    with. Its last layer begins with weights of 0 and a bias that prefers the last choice by a
    little, so that all choices are drawn alike and the last one is the most likely.

    Args:
        channels: Channels of the first convolution; each block has twice those before it.
        decisions: Number of decisions for each image.
        choices: Number of choices of each decision.
        seed: Seed of the initial weights.
    """

    def __init__(self, channels: int, *, decisions: int, choices: int, seed: int) -> None:
        super().__init__()
        self.shape = (decisions, choices)
        widths = [channels * 2**i for i in range(4)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((seed * 1009 + 500) % 2**63)
            self.stem = ConvNorm(3, channels, 3)
            self.blocks = nn.ModuleList(
                nn.Sequential(
                    ConvNorm(inputs, outputs, 3, stride=2),
                    ConvNorm(outputs, outputs, 3, relu=False),
                )
                for inputs, outputs in pairwise(widths)
            )
            self.linear = nn.Linear(widths[-1], decisions * choices)
        with torch.no_grad():
            nn.init.zeros_(self.linear.weight)
            bias = torch.zeros(decisions, choices)
            bias[:, -1] = 1e-3
            self.linear.bias.copy_(bias.flatten())

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, 3, H, W) -> logits (B, decisions, choices), float32."""
        x = self.stem(image)
        for block in self.blocks:
            branch = cast(Tensor, block(x))
            skip = F.avg_pool2d(x, 2, 2, ceil_mode=True)
            skip = F.pad(skip, (0, 0, 0, 0, 0, branch.shape[1] - skip.shape[1]))
            x = torch.relu(branch + skip)
        logits = cast(Tensor, self.linear(x.mean((2, 3)))).float()
        return logits.view(-1, *self.shape)
