"""The network: one encoder that every task runs at widths of its own, chosen for every image."""

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

from gatesearch.methods.den.blocks import FULL, WIDTHS, elastic_blocks, kept_channels
from gatesearch.methods.den.selector import Selector
from gatesearch.models import Parts
from gatesearch.models.activation import rectified
from gatesearch.models.channel_ops import at_positions
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import module_key
from gatesearch.models.graph import execute
from gatesearch.models.nodes import INPUT, Node

# How widths are found in training: some images at random ones, all at drawn or at chosen ones.
Drawing = Literal["mixed", "drawn", "chosen"]
# Of the images of a batch, the share that is at full width under `mixed`, as in the public code;
# at least one image is not.
AT_FULL_WIDTH = 0.75


class ElasticNet(nn.Module):
    """One encoder, run once per task; a selector chooses a width for each image, task and block.

    Channels that are left out are set to zero, for all frames of a batch at once; this computes the
    same as slicing the weights for each image would.

    Args:
        parts: Encoders and heads.

    Attributes:
        blocks: The elastic blocks of the encoder, input first.
        drawing: How widths are found in training; in evaluation they are the most likely ones.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder()
        self.blocks = elastic_blocks(parts.graph)
        self.tasks = parts.tasks
        self.selector = Selector(
            _selector_channels(parts.graph.nodes[0]),
            decisions=len(parts.tasks) * len(self.blocks),
            choices=len(WIDTHS),
            seed=parts.seed,
        )
        self.heads = parts.all_heads()
        self.drawing: Drawing = "chosen"
        self._log_prob: Tensor | None = None
        self._usage: Tensor | None = None
        self._block_of: dict[str, int] = {}
        for index, block in enumerate(self.blocks):
            for node in (*block.inner, block.last):
                self._block_of[node.name] = index
                needed = torch.ones(node.outputs)
                if node in block.inner:
                    needed = torch.full((node.outputs,), float(FULL))
                    for level in range(FULL - 1, 0, -1):
                        needed[: kept_channels(node.outputs, level)] = level
                # (C,) lowest level at which each channel is kept.
                self.register_buffer(_needed(node), needed, persistent=False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        levels = self.levels(image)
        rows = levels.transpose(0, 1).flatten(0, 1)  # (T B, blocks), task by task
        start = {INPUT: torch.cat([image] * len(self.tasks))}  # dropped as soon as it is read
        graph, read = self.encoder.graph, self.heads.nodes(self.encoder.graph)
        values = execute(graph.nodes, start, partial(self._evaluate, rows), keep=read)
        by_task = [values[name].view(len(self.tasks), -1, *values[name].shape[1:]) for name in read]
        return {
            task: self.heads.call_head(task, maps, image.shape[-2:])
            for task, maps in zip(self.tasks, zip(*by_task, strict=True), strict=True)
        }

    def levels(self, image: Tensor) -> Tensor:
        """Find the level of every image, task and block, (B, T, blocks), an index into `WIDTHS`."""
        shape = (-1, len(self.tasks), len(self.blocks))
        if self.training and self.drawing == "mixed":
            free = max(1, round(len(image) * (1 - AT_FULL_WIDTH)))
            levels = torch.full((len(image), *shape[1:]), FULL, device=image.device)
            levels[-free:] = torch.randint(0, len(WIDTHS), (free, *shape[1:]), device=image.device)
            return levels
        if self.training and self.drawing == "drawn":
            log_probs = self.selector(image).log_softmax(-1)
            drawn = torch.multinomial(log_probs.detach().exp().flatten(0, 1), 1)
            chosen = log_probs.flatten(0, 1).gather(1, drawn)
            levels = drawn.view(shape)
            self._log_prob = chosen.view(shape).sum(-1)
            self._usage = usage(levels)
            return levels
        with torch.no_grad():
            logits: Tensor = self.selector(image)
            return logits.argmax(-1).view(shape)

    def take_drawn(self) -> tuple[Tensor, Tensor]:
        """Return what was drawn last, once: (B, T) log-probabilities, with graph, and usage."""
        assert self._log_prob is not None
        assert self._usage is not None
        drawn = self._log_prob, self._usage
        self._log_prob = self._usage = None
        return drawn

    def _evaluate(self, levels: Tensor, node: Node, inputs: list[Tensor]) -> Tensor:
        if node.name not in self._block_of:
            return self.encoder.apply_node(node, inputs)
        level = levels[:, self._block_of[node.name], None]
        kept = level >= self.get_buffer(_needed(node))
        if not node.ends_in_norm:
            y = self.encoder.apply_node(node, inputs)
            return y * at_positions(kept, y).to(y.dtype)
        # Before the ReLU, to the same effect: then the uncut activation is not kept for backward.
        layer = cast(ConvNorm, self.encoder.layer(node.name))
        y = layer.bn(layer.convolved(inputs[0]))
        y = y * at_positions(kept, y).to(y.dtype)
        return rectified(y, layer.ceiling) if layer.relu else y


def usage(levels: Tensor) -> Tensor:
    """Mean share of the inner channels that blocks keep: levels (..., blocks) -> (...)."""
    return torch.tensor(WIDTHS, device=levels.device)[levels].mean(-1)


def _selector_channels(first: Node) -> int:
    """Return half of the channels of a network's first layer, and fewer the larger its stride.

    Layers on patches of an image have as many channels as pixels there have, or more.
    """
    return max(1, first.outputs // max(2, first.stride))


def _needed(node: Node) -> str:
    return f"needed_{module_key(node.name)}"
