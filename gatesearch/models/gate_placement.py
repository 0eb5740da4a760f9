"""Where gates lie in an encoder, and which channels share one.

The paper has gates behind every convolution, and in transformers behind query, key, value,
projection and both MLP layers. It leaves open where the norm, the activation and the layer scale
behind a layer belong, and whether norms have gates. Here a gate lies behind those with weights: a
stream's own scale then acts on its own channels alone, and what a stream computes with weights of
its own lies before a gate. So with all gates closed every task reads the shared stream, as in a
multi-task network. For the same reason norms over channels have no gates, unless none follows on
the way to a head, as behind the last norm of a transformer.

A norm over channels, attention and a grouped convolution compute whole groups of channels. With a
gate for each channel a group is computed as soon as one of its gates is open. `head` gives those
groups one gate each.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gatesearch.errors import UsageError
from gatesearch.models.nodes import Node


def gate_units(
    nodes: Sequence[Node], granularity: str, *, ends: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Choose the nodes with gates behind them, and which of their channels share a gate.

    Args:
        nodes: The nodes of an encoder, in order of execution.
        granularity: See `Graph.gated`.
        ends: Names of the nodes that heads read.

    Returns:
        Gated node -> (C,) number of the gate of each channel, in order of execution. The numbers
        count up in order of first use; without shared gates they are 0 to C - 1.

    Raises:
        UsageError: `head` without attention in the encoder.
    """
    attention = [node for node in nodes if _is_attention(node)]
    if granularity == "head" and not attention:
        raise UsageError(
            'interrogate.granularity "head" needs attention in the backbone, which gives whole '
            'heads gates; found none; take "conv", a gate for each channel'
        )
    gated = _gated(nodes, granularity, ends)
    together: dict[str, list[Tensor]] = defaultdict(list)
    if granularity == "head":
        for name, node in gated.items():
            if node.whole_groups:
                together[name].append(_group_rows(node))
        for node in attention:
            for name, rows in _read_by_groups(node, nodes, gated):
                together[name].append(rows)
    return {
        node.name: _units(node.outputs, together[node.name]) for node in nodes if node.name in gated
    }


def _gated(nodes: Sequence[Node], granularity: str, ends: Sequence[str]) -> dict[str, Node]:
    """Return gated node -> the node at the beginning of the chain that it ends."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        for source in node.sources:
            readers[source].append(node)
    if granularity == "block":
        layers = [n for n in nodes if n.ends_block or (n.stage == 0 and n.takes_gates)]
    else:
        layers = [node for node in nodes if node.takes_gates]
    gated = {_chain_end(layer, readers, ends): layer for layer in layers}
    # Weights whose values would reach a head through no gate.
    ungated = set(ends)
    for node in reversed(nodes):
        if node.name in ungated and node.name not in gated:
            if node.has_weights:
                gated[_chain_end(node, readers, ends)] = node
            else:
                ungated.update(node.sources)
    return gated


def _chain_end(node: Node, readers: Mapping[str, Sequence[Node]], ends: Sequence[str]) -> str:
    """Name the node behind which the gates of a layer lie.

    It ends the chain of nodes that each compute every channel from the same channel of the one
    before alone, and are its only readers: batch norm, activation, layer scale, position embedding,
    and stochastic depth where one of these follows it. A sum has two sources and ends the chain
    before it. A convolution fused with its norm, and a linear layer, has its gates right behind it,
    unless weights follow in the chain: these gates are fused with it in training, and before an
    activation they choose the same.
    """
    chain = [node]
    while chain[-1].name not in ends and len(readers[chain[-1].name]) == 1:
        (reader,) = readers[chain[-1].name]
        if not reader.channelwise or len(reader.sources) != 1 or reader.takes_gates:
            break
        chain.append(reader)
    while chain[-1].drops_images and len(chain) > 1:
        chain.pop()
    fused = (node.ends_in_norm or node.is_linear) and not any(
        behind.has_weights for behind in chain[1:]
    )
    return node.name if fused else chain[-1].name


def _is_attention(node: Node) -> bool:
    """Whether its groups are heads: each is computed whole, from several sources."""
    return node.whole_groups and len(node.sources) > 1 and not node.takes_gates


def _read_by_groups(
    attention: Node, nodes: Sequence[Node], gated: Mapping[str, Node]
) -> list[tuple[str, Tensor]]:
    """List the gated nodes that heads read, with (heads, C) which channels each head reads.

    The way back from a head to the gates leads through nodes that keep channels apart: those that
    renumber channels, channelwise ones, and norms of each head.
    """
    needed = {attention.name: _group_rows(attention)}
    found = []
    for node in reversed(nodes):
        if node.name not in needed:
            continue
        rows = needed[node.name]
        if node.name in gated:
            found.append((node.name, rows))
            continue
        by_heads = node.channelwise or node.groups == attention.groups
        if node.routes is None and not (by_heads and (node is attention or len(node.sources) == 1)):
            continue
        for source, channels in zip(node.sources, node.needed_inputs(rows), strict=True):
            needed[source] = (
                torch.maximum(needed[source], channels) if source in needed else channels
            )
    return found


def _group_rows(node: Node) -> Tensor:
    """(groups, outputs) 1 where a channel is of a group."""
    return torch.eye(node.groups, device="cpu").repeat_interleave(node.outputs // node.groups, 1)


def _units(channels: int, together: Sequence[Tensor]) -> tuple[int, ...]:
    """Number units of channels: those that share a row of any of the (n, C) tables are one."""
    units = torch.arange(channels, device="cpu")
    for row in (row > 0 for rows in together for row in rows):
        if bool(row.any()):
            units[torch.isin(units, units[row])] = units[row].min()
    return tuple(units.unique(return_inverse=True)[1].tolist())
