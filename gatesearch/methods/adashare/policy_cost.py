"""The exact cost of a policy's network by formula, without building it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatesearch.cost import Budget, count_macs
from gatesearch.cost.budget import Measure
from gatesearch.cost.sizes import node_sizes
from gatesearch.methods.adashare.plan import Policy, plan, residual_blocks
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.graph import Graph


@dataclass(frozen=True)
class PolicyCost:
    """Cost of the policies of one encoder with heads.

    Multiply-adds are summed over the values that the network computes (`plan`), parameters over the
    nodes that compute one, and both are what fvcore counts on the network.

    Attributes:
        graph: The encoder.
        tasks: Number of tasks T.
        node_macs: Node with weights -> multiply-adds of computing it once.
        node_params: Node with weights -> its parameters.
        head_macs: Multiply-adds of all heads.
        head_params: Parameters of all heads.
        separate: Every task has a pass of its own.
    """

    graph: Graph
    tasks: int
    node_macs: Mapping[str, int]
    node_params: Mapping[str, int]
    head_macs: int
    head_params: int
    separate: bool = False

    @classmethod
    def of(cls, parts: Parts, size: tuple[int, int], *, separate: bool = False) -> "PolicyCost":
        """Build it for images of `size` (height, width)."""
        network = MultiTaskNet(parts)
        whole = count_macs(network, (1, 3, *size), cross_check=False)
        sizes = node_sizes(parts.graph, size)
        weighted = parts.graph.weighted_nodes
        return cls(
            graph=parts.graph,
            tasks=len(parts.tasks),
            node_macs={n.name: n.outputs * n.macs_per_channel(sizes[n.name]) for n in weighted},
            node_params={n.name: n.outputs * n.params_per_channel for n in weighted},
            head_macs=whole.macs - whole.backbone_macs,
            head_params=sum(p.numel() for p in network.heads.parameters()),
            separate=separate,
        )

    def macs(self, policy: Policy) -> int:
        """Count the multiply-adds of a policy's network, heads included."""
        return self.head_macs + sum(self.node_macs[name] for name in self._computed(policy))

    def params(self, policy: Policy) -> int:
        """Count the parameters of a policy's network; those of a node are held once."""
        return self.head_params + sum(
            self.node_params[name] for name in set(self._computed(policy))
        )

    def measure(self, policy: Policy, measure: Measure) -> int:
        """Return what a budget of a measure bounds."""
        return self.macs(policy) if measure == "macs" else self.params(policy)

    def excess(self, policy: Policy, budgets: Sequence[Budget]) -> Budget | None:
        """Return the budget that a policy exceeds most; None if it keeps to all."""
        shares = {b: self.measure(policy, b.measure) / b.limit for b in budgets}
        worst = max(budgets, key=lambda budget: shares[budget], default=None)
        return worst if worst is not None and shares[worst] > 1 else None

    @property
    def least(self) -> Policy:
        """The policy of the lowest cost: all tasks skip all blocks."""
        return ((False,) * len(residual_blocks(self.graph)),) * self.tasks

    def training_macs(self, freed: int) -> int:
        """Count the multiply-adds of a pass of the supernet in training.

        Up to the first freed block all tasks compute the same, once; behind it each its own.

        Args:
            freed: Number of the last blocks whose policy is learned.
        """
        blocks = residual_blocks(self.graph)
        first = blocks[len(blocks) - freed]
        total, passes = self.head_macs, 1
        for node in self.graph:
            total += passes * self.node_macs.get(node.name, 0)
            if node.name == first:
                passes = self.tasks
        return total

    def _computed(self, policy: Policy) -> list[str]:
        """Names of the nodes with weights that are computed, each as often as it is."""
        values = plan(self.graph, policy, separate=self.separate).values
        return [value.node.name for value in values if value.node.has_weights]
