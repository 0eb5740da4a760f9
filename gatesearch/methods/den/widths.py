"""Widths that a trained network chooses on a part of the data: their cost and distribution."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from gatesearch.cost import Cost, count_macs
from gatesearch.cost.sizes import node_sizes
from gatesearch.methods.base import Context
from gatesearch.methods.den.blocks import FULL, WIDTHS
from gatesearch.methods.den.elastic import ElasticNet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import Size
from gatesearch.training import FrameData
from gatesearch.training.split_data import normalize


@torch.no_grad()
def chosen_levels(network: ElasticNet, frames: FrameData, context: Context) -> Tensor:
    """Return the level of every frame, task and block, (N, T, blocks), on the processor."""
    network.eval()
    levels = []
    for batch in frames.in_order(context.study.training.batch_size):
        with context.runtime.autocast():
            image = context.runtime.image(normalize(batch["image"]))
            levels.append(network.levels(image).cpu())
    return torch.cat(levels)


def left_out(network: ElasticNet, size: Size) -> Tensor:
    """Count the multiply-adds that a block saves at each level, (blocks, levels) int64."""
    sizes = node_sizes(network.encoder.graph, size)
    rows = [[block.macs(level, sizes) for level in range(len(WIDTHS))] for block in network.blocks]
    macs = torch.tensor(rows, dtype=torch.int64)
    return macs[:, FULL:] - macs


def saved_macs(levels: Tensor, table: Tensor) -> Tensor:
    """Sum the multiply-adds that are saved: levels (..., blocks) -> (...) int64.

    Args:
        levels: Chosen levels.
        table: What `left_out` returns.
    """
    return table.expand(*levels.shape, -1).gather(-1, levels[..., None])[..., 0].sum(-1)


def expected_cost(network: nn.Module, context: Context) -> Cost:
    """Count the mean cost over the validation part, of convolutions over the kept channels alone.

    The full cost is that of one pass per task at full width and the selector.
    """
    assert isinstance(network, ElasticNet)
    full = count_macs(network, context.input_shape)
    levels = chosen_levels(network, context.validation, context)
    table = left_out(network, context.study.protocol.size)
    saved = round(float(saved_macs(levels, table).sum(-1).double().mean()))
    return replace(full, macs=full.macs - saved, backbone_macs=full.backbone_macs - saved)


def width_figures(
    network: nn.Module, frames: FrameData, context: Context
) -> dict[str, dict[str, float]]:
    """Describe the widths that are chosen on a part of the data.

    Returns:
        Task -> shares of (frame, block) pairs at each width, mean width of the blocks of each
        stage, and the GFLOPs of the task's pass through the encoder: mean over the frames, lowest
        and highest.
    """
    assert isinstance(network, ElasticNet)
    levels = chosen_levels(network, frames, context)
    size = context.study.protocol.size
    saved = saved_macs(levels, left_out(network, size))
    gflops = 2e-9 * (encoder_macs(network.encoder.graph, size) - saved).double()
    widths = torch.tensor(WIDTHS)[levels]
    stages = torch.tensor([block.stage for block in network.blocks])
    figures = {}
    for t, task in enumerate(network.tasks):
        own = {
            f"blocks at width {100 * width:g} %, share": float(
                (levels[:, t] == level).double().mean()
            )
            for level, width in enumerate(WIDTHS)
        }
        own |= {
            f"mean width, stage {stage}": float(widths[:, t, stages == stage].double().mean())
            for stage in dict.fromkeys(stages.tolist())
        }
        own |= {
            "encoder GFLOPs, mean": float(gflops[:, t].mean()),
            "encoder GFLOPs, lowest": float(gflops[:, t].min()),
            "encoder GFLOPs, highest": float(gflops[:, t].max()),
        }
        figures[task] = own
    return figures


def encoder_macs(graph: Graph, size: Size) -> int:
    """Count the multiply-adds of one pass through an encoder at full width."""
    sizes = node_sizes(graph, size)
    return sum(n.outputs * n.macs_per_channel(sizes) for n in graph)
