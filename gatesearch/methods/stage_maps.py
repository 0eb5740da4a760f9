"""The check of methods that compute convolutions between the stages of an encoder."""

from gatesearch.cost.sizes import node_sizes
from gatesearch.errors import UsageError
from gatesearch.models.graph import Graph

# Of an image, (H, W), by which maps are told from other values and from single pixels.
ANY_SIZE = (256, 256)


def check_maps(graph: Graph, method: str) -> None:
    """Refuse an encoder of which a stage gives no map.

    Args:
        graph: The encoder.
        method: Its name.

    Raises:
        UsageError: A stage ends in tokens, of which no feature makes a map.
    """
    sizes, maps = node_sizes(graph, ANY_SIZE), graph.maps()
    for stage in range(1, graph.stages):
        name = maps.get(stage, graph.stage(stage)[-1].name)
        if len(sizes[name]) != 2:
            raise UsageError(
                f"{method} needs maps (B, C, H, W) at the end of every stage; found {name} at the "
                f"end of stage {stage}, which gives tokens: set model.backbone to a network that "
                f"gives such a map of every stage, as those of timm, or leave {method} out"
            )
