"""Height and width of every value of an encoder."""

from gatesearch.models.graph import INPUT, Conv, Graph


def node_sizes(graph: Graph, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Node, or `INPUT` -> (height, width) of its output.

    Args:
        graph: The encoder.
        size: (height, width) of the image, pixels.
    """
    sizes = {INPUT: size}
    for node in graph:
        height, width = sizes[node.sources[0]]
        if isinstance(node, Conv):
            reach = node.dilation * (node.kernel - 1)
            height, width = (
                (side + 2 * node.padding - reach - 1) // node.stride + 1 for side in (height, width)
            )
        elif len(node.sources) == 1:  # the stem's pooling
            height, width = ((side - 1) // 2 + 1 for side in (height, width))
        sizes[node.name] = (height, width)
    return sizes
