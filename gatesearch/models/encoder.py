"""A plain encoder: one stream over a graph."""

from typing import cast

from torch import Tensor, nn

from gatesearch.models.activation import rectified
from gatesearch.models.depthwise import depthwise
from gatesearch.models.graph import INPUT, Conv, Graph, Node, elementwise, execute


class ConvNorm(nn.Module):
    """Convolution, batch norm and, if asked, ReLU: the weights of one `Conv` node.

    Initialised as torchvision's ResNets: Kaiming normal by fan-out, unit norms.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        relu: bool = True,
        ceiling: float | None = None,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=stride,
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=inputs if depthwise else 1,
            bias=False,
        )
        if not self.conv.weight.is_meta:  # drawing nothing takes torch seconds to set up
            nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        self.bn = nn.BatchNorm2d(outputs)
        self.relu, self.ceiling = relu, ceiling

    @classmethod
    def of(cls, node: Conv) -> "ConvNorm":
        """The module of a node."""
        return cls(
            node.inputs,
            node.outputs,
            node.kernel,
            stride=node.stride,
            dilation=node.dilation,
            relu=node.relu,
            ceiling=node.ceiling,
            depthwise=node.depthwise,
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H', W')."""
        x = self.bn(self.convolved(x))
        return rectified(x, self.ceiling) if self.relu else x

    def convolved(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return depthwise(x, self.conv) if self.conv.groups > 1 else cast(Tensor, self.conv(x))


class Encoder(nn.Module):
    """One stream over a graph: image (B, 3, H, W) -> features (B, C, H / stride, W / stride)."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict({key(node.name): ConvNorm.of(node) for node in graph.convs})

    def layer(self, name: str) -> ConvNorm:
        """The weights of a `Conv` node."""
        return cast(ConvNorm, self.layers[key(name)])

    def apply_node(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """The value of one node."""
        if isinstance(node, Conv):
            return cast(Tensor, self.layer(node.name)(inputs[0]))
        return elementwise(node, inputs)

    def forward(self, image: Tensor) -> Tensor:
        """Features of the last node."""
        return execute(self.graph.nodes, {INPUT: image}, self.apply_node)[self.graph.nodes[-1].name]

    def forward_stage(self, x: Tensor, stage: int) -> tuple[Tensor, Tensor]:
        """One stage: (what enters its last block, what leaves it); for the stem both are its end.

        Args:
            x: The image for stage 0, else what left the stage before.
            stage: Index of the stage.
        """
        nodes, before = self.graph.stage(stage), self.graph.entering(stage)
        values = execute(nodes, {nodes[0].sources[0]: x}, self.apply_node, keep=(before,))
        return values[before], values[nodes[-1].name]


def key(name: str) -> str:
    """A node's name as a key of a module dict, which holds no dots."""
    return name.replace(".", "_")
