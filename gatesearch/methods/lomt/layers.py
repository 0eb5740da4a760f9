"""At which layer each decoder reads, and the networks that follow from that."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.methods.lomt.sparse_nets import SparseNets, group_norms
from gatesearch.models import Parts
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import Encoder
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
    graph = encoder.graph
    carried = set(_projections(graph))
    layers = [node.name for node in graph.weighted_nodes if node.name not in carried]
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
    """Return dense convolution -> its input channels that have weights, ascending.

    A layer that is gone keeps its first input, whose weights are zero: behind its norm it still
    gives constants, which other layers may read.
    """
    kept = {}
    for node in encoder.graph.weighted_nodes:
        layer = encoder.layer(node.name)
        if isinstance(layer, ConvNorm) and not node.channelwise:
            norms = group_norms(layer.conv, layer.conv.weight.detach())
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
    """Names of the nodes with weights on skip connections, the second source of a sum."""
    skips = [node.sources[1] for node in graph if len(node.sources) == 2]
    return [node.name for node in graph.weighted_nodes if node.name in skips]


def _channels_that_see_the_image(encoder: Encoder) -> dict[str, Tensor]:
    """Node -> (C,) which of its channels depend on the image through weights that are not zero."""
    seen: dict[str, Tensor] = {INPUT: torch.ones(3, dtype=torch.bool)}
    for node in encoder.graph:
        inputs = [seen[source] for source in node.sources]
        if not node.has_weights:
            seen[node.name] = torch.stack(inputs).any(0)
            continue
        layer = encoder.layer(node.name)
        if not isinstance(layer, ConvNorm):
            seen[node.name] = inputs[0].any().expand(node.outputs)
            continue
        weights = (layer.conv.weight.detach().cpu() != 0).flatten(2).any(2)  # (C, inputs)
        if node.channelwise:
            seen[node.name] = weights[:, 0] & inputs[0]
        else:
            seen[node.name] = (weights & inputs[0]).any(1)
    return seen
