"""Multi-task attention network (Liu et al., CVPR 2019, https://arxiv.org/abs/1803.10704).

The ResNet form of the survey code (Vandenhende et al., 2021), which the published costs belong to.
"""

import itertools
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.methods.base import Method
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import Parts
from gatesearch.strict import Strict


class MTANOptions(Strict):
    """Options of MTAN.

    Attributes:
        reduction: Channels of a stage over channels inside its attention and refinement.
    """

    reduction: Annotated[int, Field(ge=1)] = 4


class AttentionNet(nn.Module):
    """One shared encoder; a soft attention mask per task and stage on what leaves the stage.

    The mask reads what enters the stage's last block and, from the second stage on, the task's own
    refined features. One bottleneck block a stage, shared by the tasks, refines the masked features
    to the next stage's width; heads read the last masked features.

    Args:
        parts: Encoder and heads.
        reduction: Channels of a stage over channels inside its attention and refinement.
    """

    def __init__(self, parts: Parts, *, reduction: int = 4) -> None:
        super().__init__()
        graph = parts.graph
        self.encoder: Encoder = parts.encoder()
        stages = range(1, graph.stages)
        widths = [graph.stage(i)[-1].outputs for i in stages]
        entering = [graph.channels(graph.last_block_input(i)) for i in stages]
        self.halves = [_halves(graph, i + 1) for i in stages]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            self.masks = nn.ModuleDict(
                {
                    task: nn.ModuleList(
                        _mask(before + (width if i > 0 else 0), width, reduction)
                        for i, (before, width) in enumerate(zip(entering, widths, strict=True))
                    )
                    for task in parts.tasks
                }
            )
            self.refine = nn.ModuleList(
                _Bottleneck(width, following, reduction)
                for width, following in itertools.pairwise(widths)
            )
        self.heads = parts.all_heads()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        entering, leaving = [], []
        x = image
        for stage in range(self.encoder.graph.stages):
            before, x = self.encoder.forward_stage(x, stage)
            entering.append(before)
            leaving.append(x)
        return {
            task: head(self._attended(task, entering[1:], leaving[1:]), image.shape[-2:])
            for task, head in self.heads.items()
        }

    def _attended(self, task: str, entering: list[Tensor], leaving: list[Tensor]) -> Tensor:
        refined: Tensor | None = None
        masked = leaving[0]
        for i, mask in enumerate(cast(nn.ModuleList, self.masks[task])):
            seen = entering[i] if refined is None else torch.cat([entering[i], refined], 1)
            masked = mask(seen) * leaving[i]
            if i < len(self.refine):
                refined = self.refine[i](masked)
                if self.halves[i]:
                    refined = F.max_pool2d(refined, kernel_size=2, stride=2)
        return masked


class _Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with a projected skip."""

    def __init__(self, inputs: int, outputs: int, reduction: int) -> None:
        super().__init__()
        inner = max(1, outputs // reduction)
        self.branch = nn.Sequential(
            ConvNorm(inputs, inner, 1),
            ConvNorm(inner, inner, 3),
            ConvNorm(inner, outputs, 1, relu=False),
        )
        self.skip = ConvNorm(inputs, outputs, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.skip(x))


def _mask(inputs: int, outputs: int, reduction: int) -> nn.Sequential:
    inner = max(1, outputs // reduction)
    return nn.Sequential(
        ConvNorm(inputs, inner, 1), ConvNorm(inner, outputs, 1, relu=False), nn.Sigmoid()
    )


def _halves(graph: Graph, stage: int) -> bool:
    """Whether a stage starts by halving the size."""
    if stage >= graph.stages:
        return False
    return any(node.stride == 2 for node in graph.stage(stage))


MTAN = Method(
    name="mtan",
    paper="Liu et al., CVPR",
    year=2019,
    summary="one encoder, attention masks for each task and stage",
    build=lambda parts, options: AttentionNet(parts, reduction=options.reduction),
    options=MTANOptions,
)
