"""The blocks of a backbone, between which streams can branch."""

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.graph import Graph, execute
from gatesearch.models.nodes import Node
from gatesearch.models.nodes.group_norm import GroupNormLayer
from gatesearch.models.nodes.layer_norm import LayerNormLayer

Norm = nn.BatchNorm2d | LayerNormLayer | GroupNormLayer


@dataclass(frozen=True)
class Block:
    """Consecutive nodes of a graph, of which later nodes read the last one only.

    Attributes:
        nodes: Its nodes in order of execution.
        source: What it reads: `INPUT`, or the last node of the block before.
    """

    nodes: tuple[Node, ...]
    source: str

    @property
    def name(self) -> str:
        """Name of its last node."""
        return self.nodes[-1].name


def blocks_of(graph: Graph) -> tuple[Block, ...]:
    """Cut a backbone into its stem and its residual or inverted blocks.

    A cut is made behind every node past which nothing is read, if it ends a block or the stem.

    Args:
        graph: The encoder.
    """
    last_reader = {source: i for i, node in enumerate(graph) for source in node.sources}
    stem = len(graph.stage(0))
    blocks: list[Block] = []
    first = 0
    for i, node in enumerate(graph.nodes):
        ends = node.ends_block or i + 1 == stem or i + 1 == len(graph.nodes)
        before = [*graph.nodes[first].sources, *(n.name for n in graph.nodes[first:i])]
        if ends and all(last_reader[name] <= i for name in before if name in last_reader):
            blocks.append(Block(graph.nodes[first : i + 1], graph.nodes[first].sources[0]))
            first = i + 1
    return tuple(blocks)


class StreamBlock(nn.Module):
    """One block of one stream, as a module of its own that shares the stream's weights."""

    def __init__(self, encoder: Encoder, block: Block) -> None:
        super().__init__()
        self.encoder = encoder
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Compute the block's last node from its source."""
        nodes = self.block.nodes
        return execute(nodes, {self.block.source: x}, self.encoder.apply_node)[nodes[-1].name]

    def norms(self) -> dict[str, Norm]:
        """List the norms of the block that scale and shift: path below this module -> norm."""
        return {
            path: norm
            for key in (module_key(node.name) for node in self.block.nodes if node.has_weights)
            for path, norm in norms_of(self.encoder.layers[key], f"encoder.layers.{key}").items()
        }


def norms_of(module: nn.Module, prefix: str = "") -> dict[str, Norm]:
    """List the norms of a module that scale and shift, over a batch or channels: path -> norm.

    Args:
        module: The module; it may be a norm itself.
        prefix: Path of the module.
    """
    return {
        path: norm
        for path, norm in module.named_modules(prefix=prefix)
        if isinstance(norm, Norm) and norm.weight is not None
    }


def channels_of(norm: Norm) -> int:
    """Count the channels of a norm that scales and shifts."""
    return len(cast(Tensor, norm.weight))
