"""At which layer each decoder reads, and the networks that follow from that."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.cost.sizes import node_sizes
from gatesearch.errors import UsageError
from gatesearch.methods.lomt.sparse_nets import SparseNets, group_norms
from gatesearch.methods.stage_maps import ANY_SIZE
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder
from gatesearch.models.filters import filters_of
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec
from gatesearch.models.nodes import INPUT
from gatesearch.pruning import CompactNet, HeadAt, Stream, compact_streams


def last_layer(encoder: Encoder) -> str:
    """Name the last layer of a sparse encoder that still has weights for what the image shows.

    A layer is gone when all its groups are zero, or when it reads nothing that depends on the
    image, because the layers before it are gone. Behind a residual branch that is gone, features
    still come by the skip connection. Projections of skip connections are not counted: they carry
    on what other layers computed, and the plots of the public code leave them out as well. The
    first layer counts as there even if nothing is left.

    Args:
        encoder: An encoder after group-sparse training.
    """
    carried = set(_projections(encoder.graph))
    layers = [name for name in _layers(encoder) if name not in carried]
    seen = _channels_that_see_the_image(encoder)
    alive = [name for name in layers if seen[name].any()]
    return alive[-1] if alive else layers[0]


def reading_node(graph: Graph, layer: str) -> str:
    """Name the node that a decoder reads to have the features of a layer.

    It is the layer with its norm and ReLU, and where only a residual sum or a pooling reads the
    layer, that node. So a decoder of the last layer of a block reads the end of the block, and one
    of the encoder's last layer what every decoder of a multi-task network reads.
    """
    while True:
        readers = [node for node in graph if layer in node.sources]
        if len(readers) != 1 or readers[0].has_weights:
            return layer
        layer = readers[0].name


def kept_inputs(encoder: Encoder) -> dict[str, NDArray[np.int64]]:
    """Return dense convolution or linear layer -> its input channels that have weights, ascending.

    A layer that is gone keeps its first input, whose weights are zero: behind its norm it still
    gives constants, which other layers may read.
    """
    kept = {}
    for node in encoder.graph.weighted_nodes:
        filters = filters_of(encoder.layer(node.name))
        if filters is not None and node.groups == 1 and not node.channelwise:
            norms = group_norms(filters, filters.weight.detach())
            alive = np.flatnonzero(norms.cpu().numpy() > 0)
            kept[node.name] = alive if len(alive) else np.zeros(1, dtype=np.int64)
    return kept


def cut_sparse(sparse: SparseNets, specs: Mapping[str, HeadSpec]) -> CompactNet:
    """Cut the channels that nothing reads out of sparse single-task networks.

    Args:
        sparse: The networks; they are not changed.
        specs: Task -> its head as plain numbers.
    """
    streams = []
    for task, spec in specs.items():
        encoder = sparse.encoder(task)
        head = HeadAt(encoder.graph.nodes[-1].name, spec, copy.deepcopy(sparse.heads[task]))
        streams.append(Stream(encoder, {task: head}, kept_inputs(encoder)))
    return compact_streams(streams)


def layer_optimized(parts: Parts, reads: Mapping[str, str]) -> CompactNet:
    """Build the multi-task network whose heads read an encoder at nodes of their own.

    It ends behind the last node that any head needs. All weights are those that `Parts` gives every
    method, but for heads of another width than the encoder's last node has: these are fresh.

    Args:
        parts: Encoder and heads.
        reads: Task -> node that its head reads.
    """
    heads = {task: _head_at(parts, task, node) for task, node in reads.items()}
    return compact_streams([Stream(parts.encoder(), heads)])


def specs_of(parts: Parts) -> dict[str, HeadSpec]:
    """Return task -> its head as plain numbers, which every head of a study is."""
    specs = {}
    for task, spec in parts.heads.items():
        assert isinstance(spec, HeadSpec)
        specs[task] = spec
    return specs


def _head_at(parts: Parts, task: str, node: str) -> HeadAt:
    spec = specs_of(parts)[task]
    width = parts.graph.channels(node)
    if spec.inputs == width:
        return HeadAt(node, spec, parts.head(task))
    spec = replace(spec, inputs=width)
    fresh = replace(parts, heads={**parts.heads, task: spec}, stl=None)
    return HeadAt(node, spec, fresh.head(task))


def _projections(graph: Graph) -> list[str]:
    """Names of the nodes with weights that are computed for a shortcut alone."""
    found = []
    for block, shortcut in graph.shortcuts.items():
        (source,) = graph.branch(block)[-1:]
        found += [n.name for n in graph.alone(shortcut, source.name) if n.has_weights]
    return found


def check_graph(graph: Graph) -> None:
    """Refuse an encoder with other values than maps, which decoders cannot read.

    Raises:
        UsageError: There is such a value.
    """
    sizes = node_sizes(graph, ANY_SIZE)
    for node in graph:
        if len(sizes[node.name]) != 2 or (node.whole_groups and len(node.sources) > 1):
            raise UsageError(
                "lomt lets a decoder read the encoder at any layer, which must then give a map "
                f"(B, C, H, W); found {node.name}, which gives tokens or windows of them: set "
                "model.backbone to a network of convolutions, as resnet18 or "
                "timm:mobilenetv3_small_100, or leave lomt out"
            )


def _layers(encoder: Encoder) -> list[str]:
    """Names of the convolutions and linear layers, but those that compute one pixel, as gates."""
    sizes = node_sizes(encoder.graph, ANY_SIZE)
    return [
        node.name
        for node in encoder.graph.weighted_nodes
        if filters_of(encoder.layer(node.name)) is not None and math.prod(sizes[node.name]) > 1
    ]


def _channels_that_see_the_image(encoder: Encoder) -> dict[str, Tensor]:
    """Node -> (C,) which of its channels depend on the image through weights that are not zero."""
    seen: dict[str, Tensor] = {INPUT: torch.ones(3, dtype=torch.bool)}
    for node in encoder.graph:
        inputs = [seen[source] for source in node.sources]
        filters = filters_of(encoder.layer(node.name)) if node.has_weights else None
        if node.routes is not None:
            seen[node.name] = torch.stack([inputs[source][c] for source, c in node.routes])
        elif filters is not None:
            weights = filters.weight.detach().cpu() != 0
            # (groups, C of a group, inputs of a group, pixels of the kernel)
            weights = weights.reshape(node.groups, -1, weights.shape[1], weights[0, 0].numel())
            by_group = weights.any(3)
            read = inputs[0].view(node.groups, 1, -1)
            seen[node.name] = (by_group & read).any(2).flatten()
        elif node.channelwise:
            seen[node.name] = torch.stack(inputs).any(0)
        else:  # a norm over channels, or attention
            read = torch.stack([x.view(node.groups, -1).any(1) for x in inputs]).any(0)
            seen[node.name] = read.repeat_interleave(node.outputs // node.groups)
    return seen
