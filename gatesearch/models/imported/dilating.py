"""Strides beyond an output stride turned into dilation."""

from collections.abc import Sequence
from dataclasses import replace

from gatesearch.models.conv_norm import both
from gatesearch.models.imported.stages import Block
from gatesearch.models.nodes import INPUT, Attention, Conv, MaxPool, Node, Pool, Rearrange


def strides_of(nodes: Sequence[Node]) -> dict[str, int]:
    """Return input pixels for each position, along height and along width, of every value."""
    strides = {INPUT: 1}
    for node in nodes:
        # Keys and values may have fewer positions than the queries.
        sources = node.sources[:1] if isinstance(node, Attention) else node.sources
        strides[node.name] = max(strides[source] for source in sources) * node.stride
    return strides


def dilated(
    nodes: Sequence[Node], blocks: Sequence[Block], output_stride: int
) -> list[Node] | None:
    """Return the nodes with every stride beyond `output_stride` turned into dilation.

    The block in which a stride was keeps the dilation of the features that it reads, and all after
    it take the new one, as in `gatesearch.models.resnet`.

    Args:
        nodes: In order of execution.
        blocks: Instances of the classes of blocks.
        output_stride: Input resolution divided by that of the output.

    Returns:
        None where a node cannot be dilated: a pooling, a patch, a convolution of even kernel.
    """
    strides, dilations = {INPUT: 1}, {INPUT: 1}
    block_of = {i: block for block in blocks for i in range(block.start, block.stop)}
    entered: dict[Block, int] = {}
    result: list[Node] = []
    for i, node in enumerate(nodes):
        stride = max(strides[source] for source in node.sources)
        dilation = max(dilations[source] for source in node.sources)
        base = entered.setdefault(block_of[i], dilation) if i in block_of else dilation
        beyond = node.stride > 1 and stride * node.stride > output_stride
        step = node.stride
        if isinstance(node, Conv):
            if beyond:
                dilation, step = dilation * node.stride, 1
                node = replace(node, stride=1)
            kernel = both(node.kernel)
            even = any(side % 2 == 0 for side in kernel)
            if (beyond or base > 1) and (even or node.padding is not None):
                return None
            if base > 1 and kernel != (1, 1):
                node = replace(node, dilation=node.dilation * base)
        elif beyond or (dilation > 1 and _needs_neighbours(node)):
            return None
        strides[node.name], dilations[node.name] = stride * step, dilation
        result.append(node)
    return result


def _needs_neighbours(node: Node) -> bool:
    """Whether a node without weights reads several positions, or positions by their number."""
    if isinstance(node, Pool):
        return node.windows.divide is None
    return isinstance(node, MaxPool | Rearrange)
