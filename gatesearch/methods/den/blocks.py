"""Residual blocks that can be computed at a part of their inner channels."""

from collections.abc import Mapping
from dataclasses import dataclass

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
        inner: Nodes of its branch whose outputs are cut, in order.
        last: Node that ends its branch; it reads the last inner one.
    """

    name: str
    stage: int
    inner: tuple[Node, ...]
    last: Node

    def macs(self, level: int, sizes: Mapping[str, Size]) -> int:
        """Count the multiply-adds of its branch at a level, computed for the kept channels alone.

        Args:
            level: Index into `WIDTHS`; at 0 the branch is not computed.
            sizes: Node -> size of its output.
        """
        if level == 0:
            return 0
        total, kept = 0, self.inner[0].input_channels[0]
        for node in (*self.inner, self.last):
            inputs = node.input_channels[0]
            outputs = node.outputs if node is self.last else kept_channels(node.outputs, level)
            full = node.outputs * node.macs_per_channel(sizes)
            total += full // node.outputs * outputs
            if not node.channelwise:
                total -= full // node.outputs // inputs * outputs * (inputs - kept)
            kept = outputs
        return total


def kept_channels(channels: int, level: int) -> int:
    """Return how many of a layer's first channels are kept; at least 1 above level 0."""
    return 0 if level == 0 else max(1, int(channels * WIDTHS[level]))


def elastic_blocks(graph: Graph) -> tuple[ElasticBlock, ...]:
    """List the residual blocks of a graph: each sum of a branch of two layers or more and a skip.

    Blocks without a sum are not elastic: at width 0 nothing would be left of them.
    """
    nodes = {node.name: node for node in graph}
    blocks = []
    for node in graph:
        if not node.ends_block or len(node.sources) < 2:
            continue
        source, skip = node.sources
        entries = {skip, *nodes[skip].sources}
        branch = [nodes[source]]
        while branch[0].sources[0] not in entries:
            branch.insert(0, nodes[branch[0].sources[0]])
        if len(branch) > 1:
            blocks.append(ElasticBlock(node.name, node.stage, tuple(branch[:-1]), branch[-1]))
    return tuple(blocks)
