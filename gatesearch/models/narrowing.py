"""An encoder, and the heads that read it, without some coupled channel groups.

The narrowed network computes what the whole one does if these channels are set to zero behind every
node that makes them. Norms over all channels, as layer norm, are over those that are left instead:
there zero is a value like another, so that is what removing channels means.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.coupling import ChannelGroups, Kept, channel_groups
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.heads import HEADS, Feature
from gatesearch.models.layer import LayerSlice
from gatesearch.models.model_factory import HeadSpec, OwnHead, Parts, below
from gatesearch.models.nodes import Node
from gatesearch.models.nodes.step import Ids


def groups_of(parts: Parts) -> ChannelGroups:
    """Find the coupled channel groups of an encoder; those that heads of a user's own read stay."""
    fixed = {
        f"read by the head of {task}, which is not gatesearch's": parts.graph.read_by(
            bool(spec.features)
        )
        for task, spec in parts.heads.items()
        if isinstance(spec, OwnHead)
    }
    return channel_groups(parts.graph, fixed)


def narrowed_graph(graph: Graph, channels: Mapping[str, Ids]) -> Graph:
    """Return an encoder's graph with some channels only.

    Args:
        graph: The whole one.
        channels: `ChannelGroups.channels` of the groups that are kept.

    Raises:
        UsageError: A node is left without any channel.
    """
    for node in graph:
        if not len(channels[node.name]):
            raise UsageError(
                f"every node of an encoder must keep a channel, found none of {node.name}; keep "
                "one of its coupled channel groups"
            )
    nodes = tuple(
        node.cut([channels[source] for source in node.sources], channels[node.name])
        for node in graph
    )
    return replace(graph, nodes=nodes)


def narrowed_encoder(encoder: Encoder, narrow: Graph, channels: Mapping[str, Ids]) -> Encoder:
    """Return an encoder over a narrowed graph with the weights of the whole one, on the CPU.

    Nothing is drawn from torch's generator.

    Args:
        encoder: The whole one.
        narrow: `narrowed_graph` of its graph.
        channels: The channels that are kept.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        cut = Encoder(narrow)
        for node in encoder.graph.weighted_nodes:
            inputs = _columns(node, [channels[source] for source in node.sources])
            part = LayerSlice(encoder.layer(node.name), channels[node.name], inputs)
            cut.layer(node.name).copy_channels([part])
    return cut.train(encoder.training)


def narrowed_heads(
    heads: Mapping[str, HeadSpec | OwnHead], graph: Graph, channels: Mapping[str, Ids]
) -> dict[str, HeadSpec | OwnHead]:
    """Return task -> head for the channels that are kept.

    Args:
        heads: Task -> head of the whole encoder.
        graph: The whole encoder's.
        channels: The channels that are kept.
    """
    return {
        task: spec if isinstance(spec, OwnHead) else _narrowed_head(spec, graph, channels)
        for task, spec in heads.items()
    }


def narrowed_head_state(
    spec: HeadSpec, state: Mapping[str, Tensor], graph: Graph, channels: Mapping[str, Ids]
) -> dict[str, Tensor]:
    """Return the state of a head that reads the channels that are kept.

    Which axis of which tensor belongs to a feature is seen by building the head for one channel
    more: it grows by one there.

    Args:
        spec: The whole head.
        state: Its state dict.
        graph: The whole encoder's.
        channels: The channels that are kept.

    Raises:
        UsageError: A tensor of the head grows otherwise.
    """
    found = dict(state)
    for index, name in enumerate(graph.read_by(bool(spec.features))):
        kept = torch.from_numpy(channels[name])
        for entry, axis in channel_axes(spec, index).items():
            found[entry] = found[entry].index_select(axis, kept.to(found[entry].device))
    return found


def narrowed_parts(parts: Parts, groups: ChannelGroups, kept: Kept) -> Parts:
    """Return the parts of networks without some groups; weights to start from are cut likewise.

    Weights that are drawn are those of a network of that width.

    Args:
        parts: Of the whole networks.
        groups: `groups_of` these.
        kept: (G,) whether each group is kept.
    """
    graph, channels = parts.graph, groups.channels(kept)
    narrow = narrowed_graph(graph, channels)

    def encoder_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with torch.random.fork_rng(devices=[]):
            whole = Encoder(graph)
        whole.load_state_dict(state)
        return narrowed_encoder(whole, narrow, channels).state_dict()

    stl: dict[str, Tensor] = {}
    for task in parts.tasks if parts.stl is not None else ():
        encoder = encoder_state(below(parts.stl or {}, f"encoders.{task}."))
        head = _head_state(parts, task, below(parts.stl or {}, f"heads.{task}."), channels)
        stl |= {f"encoders.{task}.{name}": x for name, x in encoder.items()}
        stl |= {f"heads.{task}.{name}": x for name, x in head.items()}
    return replace(
        parts,
        graph=narrow,
        heads=narrowed_heads(parts.heads, graph, channels),
        pretrained=None if parts.pretrained is None else encoder_state(parts.pretrained),
        stl=None if parts.stl is None else stl,
    )


def narrowed_multi_task_state(
    parts: Parts, state: Mapping[str, Tensor], groups: ChannelGroups, kept: Kept
) -> dict[str, Tensor]:
    """Return the state dict of a multi-task network without some groups.

    Args:
        parts: Of the whole network.
        state: Its state dict, `encoder.*` and `heads.TASK.*`.
        groups: `groups_of` these.
        kept: (G,) whether each group is kept.
    """
    whole = replace(parts, pretrained=below(state, "encoder."), stl=None)
    encoder = narrowed_parts(whole, groups, kept).pretrained
    assert encoder is not None
    found = {f"encoder.{name}": x for name, x in encoder.items()}
    for task in parts.tasks:
        head = below(state, f"heads.{task}.")
        cut = _head_state(parts, task, head, groups.channels(kept))
        found |= {f"heads.{task}.{name}": x for name, x in cut.items()}
    return found


def _head_state(
    parts: Parts, task: str, state: Mapping[str, Tensor], channels: Mapping[str, Ids]
) -> Mapping[str, Tensor]:
    spec = parts.heads[task]
    if isinstance(spec, OwnHead):
        return state
    return narrowed_head_state(spec, state, parts.graph, channels)


def _columns(node: Node, inputs: Sequence[Ids]) -> Ids:
    """Return the input channels of a layer's filters that are kept."""
    if node.coupling == "free":
        return inputs[0]
    return np.arange(node.input_channels[0] // node.groups)


def _narrowed_head(spec: HeadSpec, graph: Graph, channels: Mapping[str, Ids]) -> HeadSpec:
    widths = [len(channels[name]) for name in graph.read_by(bool(spec.features))]
    features = tuple(
        replace(feature, channels=width)
        for feature, width in zip(spec.features, widths, strict=bool(spec.features))
    )
    return replace(spec, inputs=widths[-1], features=features)


def channel_axes(spec: HeadSpec, index: int) -> dict[str, int]:
    """Return entry of a head's state dict -> its axis of the channels of a feature it reads."""
    features = [
        Feature(feature.channels + (i == index), feature.stride)
        for i, feature in enumerate(spec.features)
    ]
    last = not features or index == len(features) - 1
    wider = replace(spec, inputs=spec.inputs + last, features=tuple(features))
    with torch.device("meta"):
        shapes = [_shapes(head.build()) for head in (spec, wider)]
    axes = {}
    for entry, shape in shapes[0].items():
        grown = [b - a for a, b in zip(shape, shapes[1][entry], strict=True)]
        if not any(grown):
            continue
        if sorted(grown) != [0] * (len(grown) - 1) + [1]:
            raise UsageError(
                f"a head that is narrowed must have weights with an axis of its input channels, "
                f"found {entry} of '{spec.kind}', which grows from {tuple(shape)} to "
                f"{tuple(shapes[1][entry])} with one more; take one of {', '.join(HEADS)}"
            )
        axes[entry] = grown.index(1)
    return axes


def _shapes(head: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in head.state_dict().items()}
