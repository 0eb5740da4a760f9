"""Cross-stitch networks (Misra et al., CVPR 2016, https://arxiv.org/abs/1604.03539)."""

from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.methods.base import Method
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.mixing import mixing_sum
from gatesearch.models.model_factory import Parts
from gatesearch.strict import Strict


class CrossStitchOptions(Strict):
    """Options of cross-stitch networks.

    Attributes:
        diagonal: Initial w_ii; the other w_ij of a row are equal, and each row sums to 1.
    """

    diagonal: Annotated[float, Field(ge=0, le=1)] = 0.9


class CrossStitchNet(nn.Module):
    """One encoder per task; after every ResNet stage x_i <- sum_j w_ij x_j, channel by channel.

    Args:
        parts: Encoders and heads. The paper starts from trained single-task networks (the study's
            `start` option decides).
        diagonal: Initial w_ii; the other w_ij of a row are equal, and each row sums to 1.
    """

    def __init__(self, parts: Parts, *, diagonal: float = 0.9) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({task: parts.encoder(task) for task in parts.tasks})
        count = len(parts.tasks)
        initial = torch.full((count, count), (1 - diagonal) / max(1, count - 1))
        initial.fill_diagonal_(diagonal if count > 1 else 1.0)
        # (to, from, channel) for each stage after the stem.
        self.stitches = nn.ParameterList(
            initial[..., None].repeat(1, 1, channels) for channels in _stage_channels(parts.graph)
        )
        self.heads = parts.all_heads()
        self.stages_read = parts.graph.features_by_stage(self.heads.nodes(parts.graph))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        encoders = [cast(Encoder, encoder) for encoder in self.encoders.values()]
        streams = [encoder.forward_stage(image, 0)[1] for encoder in encoders]
        features: list[list[Tensor]] = []
        for stage, stitch in enumerate(self.stitches, start=1):
            streams = [
                encoder.forward_stage(x, stage)[1]
                for encoder, x in zip(encoders, streams, strict=True)
            ]
            streams = [mixing_sum(streams, weights) for weights in stitch]
            if stage in self.stages_read:
                name = self.stages_read[stage]
                features.append(
                    [encoder.feature(name, x) for encoder, x in zip(encoders, streams, strict=True)]
                )
        return {
            task: self.heads.call_head(task, maps, image.shape[-2:])
            for task, maps in zip(self.heads, zip(*features, strict=True), strict=True)
        }


def _stage_channels(graph: Graph) -> list[int]:
    return [graph.stage(stage)[-1].outputs for stage in range(1, graph.stages)]


CROSS_STITCH = Method(
    name="cross_stitch",
    paper="Misra et al., CVPR",
    year=2016,
    summary="one encoder per task, mixed linearly behind every stage",
    build=lambda parts, options: CrossStitchNet(parts, diagonal=options.diagonal),
    options=CrossStitchOptions,
    start="stl",
    effort="T encoders, after those of the single-task networks",
    ours="the stitches learn at the rate of the other weights",
)
