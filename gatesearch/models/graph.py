"""An encoder as data: a list of nodes that plain, gated and compact networks all execute.

Nodes say themselves which channels of their sources each of their channels needs. That is all that
channel liveness and extraction must know, so a new kind of encoder is new nodes, not new pruning.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from gatesearch.errors import UsageError
from gatesearch.models.gate_placement import gate_units
from gatesearch.models.nodes import INPUT, Add, Node


@dataclass(frozen=True)
class Graph:
    """Nodes in order of execution, the last one the encoder's output.

    Attributes:
        nodes: Every node reads `INPUT` or earlier nodes only.
        stride: Input resolution divided by the resolution of the output.
        features: Names of the nodes whose values heads may read, the last node's last; the last
            node alone where none are given.
        strides: Input resolution divided by the resolution of each of these, needed if there are
            several.
    """

    nodes: tuple[Node, ...]
    stride: int
    features: tuple[str, ...] = ()
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.features:
            object.__setattr__(self, "features", (self.nodes[-1].name,))
            object.__setattr__(self, "strides", (self.stride,))
        if self.features[-1] != self.nodes[-1].name or len(self.strides) != len(self.features):
            raise ValueError(
                f"features must end with the last node, {self.nodes[-1].name}, and have a stride "
                f"each, found {self.features} of strides {self.strides}"
            )

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def outputs(self) -> int:
        """Channels of the last node."""
        return self.nodes[-1].outputs

    @property
    def weighted_nodes(self) -> tuple[Node, ...]:
        """The nodes that hold weights."""
        return tuple(node for node in self.nodes if node.has_weights)

    @property
    def stages(self) -> int:
        """Number of stages, the stem included."""
        return self.nodes[-1].stage + 1

    def stage(self, index: int) -> tuple[Node, ...]:
        """Nodes of one stage, those that the last node depends on."""
        return tuple(n for n in self.nodes if n.stage == index and n.name in self._trunk)

    def tail(self, feature: str) -> tuple[Node, ...]:
        """Nodes that make a feature from the end of a stage; none where it is that end itself.

        Tokens inside a transformer, for example, become a map on the way to a head alone.
        """
        needed = self.needed([feature]) - self._trunk
        return tuple(node for node in self.nodes if node.name in needed)

    def trunk(self) -> "Graph":
        """Return the graph of what the last node depends on, its only feature."""
        nodes = tuple(node for node in self.nodes if node.name in self._trunk)
        return Graph(nodes, self.stride)

    @cached_property
    def _trunk(self) -> frozenset[str]:
        return self.needed([self.nodes[-1].name])

    def needed(self, names: Sequence[str]) -> frozenset[str]:
        """Names of some nodes and of all that they depend on."""
        needed = set(names)
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.sources)
        return frozenset(needed)

    @cached_property
    def shortcuts(self) -> dict[str, str]:
        """Residual sum that ends a block -> the one of its sources that is the shortcut, in order.

        That is the source which fewer layers are computed for alone, in whatever order the network
        adds them; with as many for both, the second.
        """
        found = {}
        for node in self.nodes:
            if not (isinstance(node, Add) and node.ends_block):
                continue
            alone = [self.alone(one, other) for one, other in (node.sources, node.sources[::-1])]
            layers = [sum(n.has_weights for n in nodes) for nodes in alone]
            if any(layers):
                found[node.name] = node.sources[int(layers[1] <= layers[0])]
        return found

    def branch(self, block: str) -> tuple[Node, ...]:
        """Nodes that are computed for the residual branch of a sum of `shortcuts` alone."""
        (node,) = (node for node in self.nodes if node.name == block)
        shortcut = self.shortcuts[block]
        (source,) = (name for name in node.sources if name != shortcut)
        return self.alone(source, shortcut)

    def alone(self, name: str, other: str) -> tuple[Node, ...]:
        """Nodes that a node depends on, itself included, and another one does not."""
        needed = self.needed([name]) - self.needed([other])
        return tuple(node for node in self.nodes if node.name in needed)

    def last_block_input(self, stage: int) -> str:
        """Name of what the last block of a stage reads.

        It is the end of the stage in the stem, and where a single block makes the features smaller.
        """
        nodes = self.stage(stage)
        ends = [node.name for node in nodes if stage and node.ends_block]
        return ends[-2] if len(ends) > 1 else nodes[-1].name

    def channels(self, name: str) -> int:
        """Channels of a node."""
        return next(node.outputs for node in self.nodes if node.name == name)

    def coupled_channel_groups(self) -> list[frozenset[str]]:
        """Names of nodes whose channels meet one by one: one node alone, or a residual stream.

        A residual stream is everything that is summed up in a row of blocks, and the sums. A
        depthwise convolution belongs to the group of its source.
        """
        group = {node.name: frozenset([node.name]) for node in self.nodes}
        for node in self.nodes:
            if node.channelwise:
                whole = group[node.name].union(*(group[source] for source in node.sources))
                group |= dict.fromkeys(whole, whole)
        return list(dict.fromkeys(group.values()))

    def gated(self, granularity: str) -> tuple[str, ...]:
        """Names of the nodes with gates behind them.

        Args:
            granularity: `conv` = every convolution and linear layer (behind its norm and layer
                scale, before a residual sum); `block` = the stem and the end of every block, a
                residual sum if it has one; `head` = as `conv`, where all channels of a layer that
                one attention head reads share a gate, and those of a group that is computed whole.

        Raises:
            UsageError: `head` without attention in the graph.
        """
        return tuple(self.gate_units(granularity))

    def gate_units(self, granularity: str) -> dict[str, tuple[int, ...]]:
        """Return gated node -> (C,) number of the gate of each channel; see `gated`."""
        return gate_units(self.nodes, granularity, ends=self.features)

    def scaled(self, width: float) -> "Graph":
        """Return the graph with every channel count but the image's times `width`."""
        if width == 1.0:
            return self
        return replace(self, nodes=tuple(node.scaled(width) for node in self.nodes))

    def read_by(self, reads_stages: bool) -> tuple[str, ...]:
        """Name the features that a head reads: all of them, or the last one alone."""
        return self.features if reads_stages else self.features[-1:]

    def features_by_stage(self, names: Sequence[str]) -> dict[int, str]:
        """Return stage -> the feature that its end is, or that is made from it.

        Raises:
            UsageError: One is not of the end of a stage, or a stage reads something else than the
                end of the one before.
        """
        self._check_stages()
        for name in names:
            if name not in self._stage_of_features:
                raise UsageError(
                    f"a method that mixes whole stages needs heads that read the end of a stage, "
                    f"found feature {name}, which is inside one: set model.head to a head that "
                    "reads the last map, as light"
                )
        return {self._stage_of_features[name]: name for name in names}

    def maps(self) -> dict[int, str]:
        """Return stage -> the feature that its end is or that is made from it, where there is one.

        Raises:
            UsageError: A stage reads something else than the end of the one before.
        """
        self._check_stages()
        return {stage: name for name, stage in self._stage_of_features.items()}

    @cached_property
    def _stage_of_features(self) -> dict[str, int]:
        """Feature -> the stage whose end it is or is made from."""
        ends = {self.stage(index)[-1].name: index for index in range(self.stages)}
        found = {}
        for name in self.features:
            tail = self.tail(name)
            end = tail[0].sources[0] if tail else name
            if end in ends:
                found[name] = ends[end]
        return found

    def _check_stages(self) -> None:
        """Refuse stages that are not computed one from the other.

        Raises:
            UsageError: A stage reads something else than the end of the one before.
        """
        before = INPUT
        for index in range(self.stages):
            nodes = self.stage(index)
            known = {before, *(node.name for node in nodes)}
            for node in nodes:
                if not known.issuperset(node.sources):
                    raise UsageError(
                        "a method that mixes whole stages needs stages that each read the end of "
                        f"the one before alone, found {node.name} of stage {index}, which reads "
                        f"{', '.join(set(node.sources) - known)}: set model.backbone to another"
                    )
            before = nodes[-1].name


def stage_ends(nodes: Sequence[Node]) -> tuple[str, ...]:
    """Name the last node of every stage but the stem."""
    ends = {node.stage: node.name for node in nodes if node.stage}
    return tuple(ends.values())


Value = TypeVar("Value")


def execute(
    nodes: tuple[Node, ...],
    values: dict[str, Value],
    apply: Callable[[Node, list[Value]], Value],
    keep: tuple[str, ...] = (),
) -> dict[str, Value]:
    """Run nodes in order over named values, dropping each value after its last reader.

    Args:
        nodes: The nodes to run.
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
