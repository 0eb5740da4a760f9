"""Residual blocks that can be computed at a part of their inner channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatesearch.errors import UsageError
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import Node, Size

# Shares of the inner channels at the levels 0, 1, 2, 3. A lower level is a part of a higher one.
WIDTHS = (0.0, 0.25, 0.5, 1.0)
FULL = len(WIDTHS) - 1


@dataclass(frozen=True)
class ElasticBlock:
    """A residual block of an encoder.

    Attributes:
        name: Node of its sum.
        stage: Index of its stage.
        branch: Nodes that are computed for the sum's branch alone, in order; the last ends it.
        inner: Those of them whose outputs are cut.
    """

    name: str
    stage: int
    branch: tuple[Node, ...]
    inner: tuple[Node, ...]

    @property
    def last(self) -> Node:
        """The node that ends its branch."""
        return self.branch[-1]

    def macs(self, level: int, sizes: Mapping[str, Size]) -> int:
        """Count the multiply-adds of its branch at a level, computed for the kept channels alone.

        Args:
            level: Index into `WIDTHS`; at 0 the branch is not computed.
            sizes: Node -> size of its output.
        """
        if level == 0:
            return 0
        kept = {node.name: kept_channels(node.outputs, level) for node in self.inner}
        total = 0
        for node in self.branch:
            inputs, outputs = node.input_channels[0], kept.get(node.name, node.outputs)
            each = node.macs_per_channel(sizes)
            total += each * outputs
            if not node.channelwise:
                total -= each // inputs * outputs * (inputs - kept.get(node.sources[0], inputs))
        return total


def kept_channels(channels: int, level: int) -> int:
    """Return how many of a layer's first channels are kept; at least 1 above level 0."""
    return 0 if level == 0 else max(1, int(channels * WIDTHS[level]))


def elastic_blocks(graph: Graph) -> tuple[ElasticBlock, ...]:
    """List the residual blocks of a graph that have inner channels.

    Inner channels are computed by dense layers for the branch alone, do not meet those of the
    shortcut, and are read by dense layers: then the first ones are a narrower block. Blocks without
    a sum are not elastic, as at width 0 nothing would be left of them; neither is attention, nor a
    branch whose inner channels are normed together.

    Raises:
        UsageError: There is none.
    """
    groups = {name: group for group in graph.coupled_channel_groups() for name in group}
    nodes = {node.name: node for node in graph}
    readers: dict[str, list[Node]] = {name: [] for name in nodes}
    for node in graph:
        for source in set(node.sources) & nodes.keys():
            readers[source].append(node)
    blocks = []
    for name in graph.shortcuts:
        branch = graph.branch(name)
        inside = {node.name for node in branch}

        def is_inner(node: Node, inside: set[str] = inside) -> bool:
            group = groups[node.name]
            members = [nodes[member] for member in group]
            read_by = [reader for member in group for reader in readers[member]]
            return group <= inside and _dense_or_channelwise([*members, *read_by])

        inner = tuple(node for node in branch if is_inner(node))
        if inner:
            blocks.append(ElasticBlock(name, nodes[name].stage, branch, inner))
    if not blocks:
        raise UsageError(
            "den computes residual blocks at a part of their inner channels, which dense layers "
            "compute and read; found a backbone without such blocks: set model.backbone to one "
            "that has them, as resnet18 or timm:mobilenetv3_small_100, or leave den out"
        )
    return tuple(blocks)


def _dense_or_channelwise(nodes: Sequence[Node]) -> bool:
    return all(
        node.channelwise or (node.groups == 1 and not node.whole_groups and node.routes is None)
        for node in nodes
    )
