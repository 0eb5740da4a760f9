"""Multi-task attention network (Liu et al., CVPR 2019, https://arxiv.org/abs/1803.10704).

This is the ResNet version in the code of a survey (Vandenhende et al., 2021), whose costs papers
report.
"""

import itertools
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.methods.base import Method
from gatesearch.methods.stage_maps import check_maps
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import Parts
from gatesearch.strict import Strict


class MTANOptions(Strict):
    """Options of MTAN.

    Attributes:
        reduction: Channels of a stage divided by channels inside its attention and refinement; 4
            in the survey's code. LibMTL divides by 4 for ResNets of bottlenecks and by 1 for
            ResNet-18 and -34: `reduction = 1` gives its masks there. With ResNet-18 at output
            stride 8 and three DeepLabV3 heads, 96x128, the network then counts 8.0 GMAC in place of
            5.4. LibMTL's own counts 8.7, as its refinement is there two 3x3 convolutions instead of
            a bottleneck.
    """

    reduction: Annotated[int, Field(ge=1)] = 4


class AttentionNet(nn.Module):
    """One shared encoder, and per task and stage a soft attention mask on the stage's output.

    A mask is computed from the input of the stage's last block and, from the second stage on, from
    the task's refined features. One bottleneck block per stage, shared by the tasks, refines the
    masked features to the next stage's width. Heads read the masked features of the stages.

    Args:
        parts: Encoder and heads.
        reduction: Channels of a stage divided by channels inside its attention and refinement.
    """

    def __init__(self, parts: Parts, *, reduction: int = 4) -> None:
        super().__init__()
        graph = parts.graph
        check_maps(graph, "mtan")
        self.encoder: Encoder = parts.encoder()
        stages = range(1, graph.stages)
        widths = [graph.stage(i)[-1].outputs for i in stages]
        inputs = [graph.channels(graph.last_block_input(i)) for i in stages]
        self.halves = [_halves(graph, i + 1) for i in stages]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(parts.seed)
            self.masks = nn.ModuleDict(
                {
                    task: nn.ModuleList(
                        _mask(read + (width if i > 0 else 0), width, reduction)
                        for i, (read, width) in enumerate(zip(inputs, widths, strict=True))
                    )
                    for task in parts.tasks
                }
            )
            self.refine = nn.ModuleList(
                _Bottleneck(width, following, reduction)
                for width, following in itertools.pairwise(widths)
            )
        self.heads = parts.all_heads()
        self.stages_read = graph.features_by_stage(self.heads.nodes(graph))
        self.maps = graph.maps()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        inputs: list[Tensor] = []
        outputs: list[Tensor] = []
        x = image
        for stage in range(self.encoder.graph.stages):
            last_block_input, x = self.encoder.forward_stage(x, stage)
            feature = self.maps.get(stage)
            read, end = last_block_input, x
            if feature is not None:
                end = self.encoder.feature(feature, end)
                read = self.encoder.feature(feature, read)
            inputs.append(read if read.dim() == end.dim() else end)
            outputs.append(end)
        return {
            task: self.heads.call_head(
                task, self._attended(task, inputs[1:], outputs[1:]), image.shape[-2:]
            )
            for task in self.heads
        }

    def _attended(self, task: str, inputs: list[Tensor], outputs: list[Tensor]) -> list[Tensor]:
        """Compute a task's masked features of each stage that heads read.

        Args:
            task: The task.
            inputs: Input of the last block of each stage after the stem.
            outputs: Output of each of these stages.
        """
        refined: Tensor | None = None
        features = []
        for i, mask in enumerate(cast(nn.ModuleList, self.masks[task])):
            read = inputs[i] if refined is None else torch.cat([inputs[i], refined], 1)
            masked = mask(read) * outputs[i]
            if i + 1 in self.stages_read:
                features.append(masked)
            if i < len(self.refine):
                refined = self.refine[i](masked)
                if self.halves[i]:
                    # A strided convolution rounds an odd size up.
                    refined = F.max_pool2d(refined, kernel_size=2, stride=2, ceil_mode=True)
        return features


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
    """Tell whether a stage halves height and width."""
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
    effort="1, and T masks per stage",
    ours="the ResNet form of Vandenhende et al., 2021",
)
