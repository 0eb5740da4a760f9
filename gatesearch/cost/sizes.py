"""Height and width of every value of an encoder."""

from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Size


def node_sizes(graph: Graph, size: Size) -> dict[str, Size]:
    """Compute the output size of every node: node, or `INPUT` -> (height, width).

    Args:
        graph: The encoder.
        size: (height, width) of the image, pixels.
    """
    sizes = {INPUT: size}
    for node in graph:
        sizes[node.name] = node.output_size(sizes)
    return sizes
