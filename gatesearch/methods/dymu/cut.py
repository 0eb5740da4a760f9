"""From the controlled supernet to the plain network of one tree."""

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from gatesearch.methods.dymu.blocks import norms_of
from gatesearch.methods.dymu.supernet import DymuNet, Shifted
from gatesearch.methods.dymu.tree import Tree
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.layer import Layer, LayerSlice
from gatesearch.models.nodes import IMAGE_CHANNELS, Node, Step
from gatesearch.pruning import CompactNet
from gatesearch.pruning.description import AnyStep, Description, HeadDescription
from gatesearch.pruning.streams import routed


def cut(supernet: DymuNet, tree: Tree, preference: Tensor, cost: Tensor) -> CompactNet:
    """Build the plain network of a tree, in evaluation mode, on the CPU.

    Every block that a head depends on is computed once. Norms have the shifts that the weight
    hypernetwork predicts for (r, c) added to their γ and β. In evaluation mode its outputs are
    those of `DymuNet.through` up to rounding.

    Args:
        supernet: The supernet; it is not changed.
        tree: The tree.
        preference: (T,) r, which sums to 1.
        cost: c in [0, 1].
    """
    steps: list[Step] = []
    layers: dict[str, tuple[Node, int, int]] = {}  # step -> node, its block and stream
    image: ChannelSource = (ChannelSlice(tensor=0, stop=IMAGE_CHANNELS),)
    ends: dict[int, ChannelSource] = {}  # stream -> channels of its block before
    for index, block in enumerate(supernet.blocks):
        outputs = {}
        for stream in tree.nodes[index]:
            read = {block.source: ends[tree.parents[index - 1][stream]] if index else image}
            for node in block.nodes:
                sources = [read[name] for name in node.sources]
                if node.routes is not None:
                    read[node.name] = routed(node.routes, sources)
                    continue
                name = module_key(node.name)
                if node.has_weights:
                    name = f"{name}_{supernet.tasks[stream]}"
                    layers[name] = (node, index, stream)
                steps.append(node.step(name=name, sources=sources, outputs=node.outputs))
                read[node.name] = (ChannelSlice(tensor=len(steps), stop=node.outputs),)
            outputs[stream] = read[block.name]
        ends = outputs
    features = [ends[stream] for stream in tree.parents[-1]]
    heads = {
        task: HeadDescription.of(spec, [source])
        for (task, spec), source in zip(supernet.head_specs.items(), features, strict=True)
    }
    description = Description(steps=cast(tuple[AnyStep, ...], tuple(steps)), heads=heads)
    compact = CompactNet(
        description, {task: copy.deepcopy(head).cpu() for task, head in supernet.heads.items()}
    )
    _copy_weights(compact, supernet, layers, supernet.shifts(preference, cost, tree))
    return compact.to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def _copy_weights(
    compact: CompactNet,
    supernet: DymuNet,
    layers: dict[str, tuple[Node, int, int]],
    shifts: dict[int, Shifted],
) -> None:
    """Copy the weights of every step's node, and put shifted norms in their place."""
    for name, (node, block, stream) in layers.items():
        encoder = cast(Encoder, supernet.streams[supernet.tasks[stream]])
        layer = compact.convs[name]
        inputs = node.input_channels[0] // node.groups  # of a group
        whole = LayerSlice(encoder.layer(node.name), np.arange(node.outputs), np.arange(inputs))
        cast(Layer, layer).copy_channels([whole])
        shifted = shifts[supernet.block_item(block, stream)]
        _shift_norms(layer, shifted, f"encoder.layers.{module_key(node.name)}")
    for task, name in enumerate(supernet.tasks):
        _shift_norms(compact.heads[name], shifts[supernet.head_item(task)], f"only.{name}")


def _shift_norms(module: nn.Module, shifted: Shifted, prefix: str) -> None:
    for path, norm in norms_of(module, prefix).items():
        cast(Tensor, norm.weight).copy_(shifted[f"{path}.weight"])
        cast(Tensor, norm.bias).copy_(shifted[f"{path}.bias"])


def shares_alone(supernet: DymuNet, tree: Tree) -> dict[str, tuple[float, ...]]:
    """Return for each task and block 1 where the block that its head depends on serves it alone."""
    return {task: tuple(map(float, tree.alone(t))) for t, task in enumerate(supernet.tasks)}
