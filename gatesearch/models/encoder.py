"""A plain encoder: one stream over a graph."""

from typing import cast

from torch import Tensor, nn

from gatesearch.models.graph import Graph, execute
from gatesearch.models.layer import Layer
from gatesearch.models.nodes import INPUT, Node


class Encoder(nn.Module):
    """One stream over a graph: image (B, 3, H, W) -> features (B, C, H / stride, W / stride)."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict(
            {module_key(node.name): layer for node in graph if (layer := node.build()) is not None}
        )

    def layer(self, name: str) -> Layer:
        """Return the module that holds the weights of a node."""
        return cast(Layer, self.layers[module_key(name)])

    def apply_node(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Compute one node from the values of its sources."""
        has_module = node.has_weights or node.drops_images
        return node.run(inputs, self.layers[module_key(node.name)] if has_module else None)

    def forward(self, image: Tensor) -> Tensor:
        """Compute the features of the last node."""
        return execute(self.graph.nodes, {INPUT: image}, self.apply_node)[self.graph.nodes[-1].name]

    def features(self, image: Tensor, names: tuple[str, ...]) -> list[Tensor]:
        """Compute the values of some nodes, (B, C, h, w) each."""
        if names == (self.graph.nodes[-1].name,):
            return [self(image)]  # a call, which forward hooks see
        values = execute(self.graph.nodes, {INPUT: image}, self.apply_node, keep=names)
        return [values[name] for name in names]

    def feature(self, name: str, end: Tensor) -> Tensor:
        """Compute a feature (B, C, h, w) from the end of its stage, which it may be itself."""
        tail = self.graph.tail(name)
        if not tail:
            return end
        return execute(tail, {tail[0].sources[0]: end}, self.apply_node)[name]

    def forward_stage(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """Run one stage: (input of its last block, output); for the stem both are its output.

        Args:
            x: The image for stage 0, else the output of the stage before.
            stage: Index of the stage.
        """
        nodes, last_block_input = self.graph.stage(stage), self.graph.last_block_input(stage)
        first_input = {nodes[0].sources[0]: x}
        values = execute(nodes, first_input, self.apply_node, keep=(last_block_input,))
        return values[last_block_input], values[nodes[-1].name]


def module_key(name: str) -> str:
    """Return a node's name as a key of a module dict, which holds no dots."""
    return name.replace(".", "_")
