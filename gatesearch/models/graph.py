"""An encoder as data: a list of nodes that plain, gated and compact networks all execute.

A dense node (a convolution) reads every channel of its source; a depthwise convolution and an
element-wise node (pooling, addition) compute channel c from channel c of their sources. That
distinction is all that channel liveness and extraction need to know, so a new kind of encoder is
new nodes, not new pruning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch.nn.functional as F
from torch import Tensor

INPUT = "image"


@dataclass(frozen=True)
class Conv:
    """Convolution without bias, batch norm and, if `relu`, ReLU.

    Attributes:
        ceiling: What the ReLU is cut off at, 6 in mobile networks; None for nothing.
        depthwise: Output channel c reads channel c of the source alone; as many go out as come in.
        ends_block: Whether a block ends here, for lack of a residual sum.
    """

    name: str
    source: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    dilation: int = 1
    relu: bool = True
    ceiling: float | None = None
    depthwise: bool = False
    stage: int = 0
    ends_block: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read."""
        return (self.source,)

    @property
    def reads(self) -> int:
        """Channels that one output channel reads."""
        return 1 if self.depthwise else self.inputs

    @property
    def padding(self) -> int:
        """Keeps the size at stride 1."""
        return self.dilation * (self.kernel // 2)


@dataclass(frozen=True)
class MaxPool:
    """The 3x3 max-pooling of stride 2 behind a ResNet's stem."""

    name: str
    source: str
    outputs: int
    stage: int = 0
    ends_block: ClassVar[bool] = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read."""
        return (self.source,)


@dataclass(frozen=True)
class Add:
    """The sum of a residual branch and its skip, and its ReLU if `relu`; ends a block."""

    name: str
    source: str
    skip: str
    outputs: int
    relu: bool = True
    stage: int = 0
    ends_block: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the nodes read."""
        return (self.source, self.skip)


Node = Conv | MaxPool | Add


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, the last one the encoder's output.

    Attributes:
        nodes: Every node reads `INPUT` or earlier nodes only.
        stride: Input pixels a feature of the output.
    """

    nodes: tuple[Node, ...]
    stride: int

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def outputs(self) -> int:
        """Channels of the last node."""
        return self.nodes[-1].outputs

    @property
    def convs(self) -> tuple[Conv, ...]:
        """The nodes that hold weights."""
        return tuple(node for node in self.nodes if isinstance(node, Conv))

    @property
    def stages(self) -> int:
        """Number of stages, the stem included."""
        return self.nodes[-1].stage + 1

    def stage(self, index: int) -> tuple[Node, ...]:
        """Nodes of one stage."""
        return tuple(node for node in self.nodes if node.stage == index)

    def entering(self, stage: int) -> str:
        """What the last block of a stage reads; of the stem, which has none, what leaves it."""
        nodes = self.stage(stage)
        if stage == 0:
            return nodes[-1].name
        ends = [node.name for node in nodes if node.ends_block]
        return ends[-2] if len(ends) > 1 else nodes[0].sources[0]

    def channels(self, name: str) -> int:
        """Channels of a node."""
        return next(node.outputs for node in self.nodes if node.name == name)

    def coupled_channel_groups(self) -> list[frozenset[str]]:
        """Names of nodes whose channels meet one by one: one node alone, or a residual stream.

        A residual stream is what is summed up in a row of blocks, and their sums. A depthwise
        convolution goes with what it reads.
        """
        group = {node.name: frozenset([node.name]) for node in self.nodes}
        for node in self.nodes:
            if not isinstance(node, Conv) or node.depthwise:
                whole = group[node.name].union(*(group[source] for source in node.sources))
                group |= dict.fromkeys(whole, whole)
        return list(dict.fromkeys(group.values()))

    def gated(self, granularity: str) -> tuple[str, ...]:
        """Names of the nodes behind which gates sit.

        Args:
            granularity: `conv` = every convolution (behind its norm and ReLU, before a residual
                sum); `block` = the stem and the end of every block, a residual sum if it has one.
        """
        if granularity == "conv":
            return tuple(node.name for node in self.convs)
        stem = [node.name for node in self.stage(0) if isinstance(node, Conv)]
        return (*stem, *(node.name for node in self.nodes if node.ends_block))


Value = TypeVar("Value")


def execute(
    nodes: tuple[Node, ...],
    values: dict[str, Value],
    apply: Callable[[Node, list[Value]], Value],
    keep: tuple[str, ...] = (),
) -> dict[str, Value]:
    """Run nodes in order over named values, dropping each value after its last reader.

    Args:
        nodes: What to run.
        values: Values of the sources outside `nodes`.
        apply: Computes a node from its sources' values.
        keep: Names returned beside the last node's.
    """
    last_reader = {source: i for i, node in enumerate(nodes) for source in node.sources}
    wanted = {*keep, nodes[-1].name}
    for i, node in enumerate(nodes):
        values[node.name] = apply(node, [values[source] for source in node.sources])
        for source in set(node.sources):
            if last_reader[source] == i and source not in wanted:
                del values[source]
    return values


def elementwise(node: Node, inputs: list[Tensor]) -> Tensor:
    """The value of a node without weights, (B, C, H, W)."""
    if isinstance(node, Add):
        total = inputs[0] + inputs[1]
        return F.relu(total) if node.relu else total
    if isinstance(node, MaxPool):
        return F.max_pool2d(inputs[0], kernel_size=3, stride=2, padding=1)
    raise TypeError(f"{type(node).__name__} has weights")


def scaled(graph: Graph, width: float) -> Graph:
    """The same graph with every channel count but the image's times `width`."""
    if width == 1.0:
        return graph

    def times(channels: int) -> int:
        return max(1, round(channels * width))

    def narrow(node: Node) -> Node:
        if isinstance(node, Conv):
            inputs = node.inputs if node.source == INPUT else times(node.inputs)
            return replace(node, inputs=inputs, outputs=times(node.outputs))
        return replace(node, outputs=times(node.outputs))

    return Graph(tuple(narrow(node) for node in graph.nodes), graph.stride)
