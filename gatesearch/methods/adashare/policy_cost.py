"""The exact cost of a policy's network by formula, without building it.

Tasks whose policies agree on the first l blocks compute these together. So with N_l the number of
different beginnings of length l among the policies of all tasks, and S_l that among the policies
that select the block behind it,

    cost = heads + Σ_l N_l · (what is computed whether or not a block is selected, up to the next
                              block: stem, shortcuts, blocks without one)
                 + Σ_l S_l · (the branch of the block)

where N_l and S_l are numbers of tasks if each has a pass of its own. Parameters of a branch count
once if any task selects the block, and all others once.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    """Cost of the policies of one encoder with heads, as fvcore counts it on their networks.

    Attributes:
        tasks: Number of tasks T.
        trunk_macs: (L + 1) multiply-adds of what is computed in any case before each of the L
            blocks, its shortcut included, and behind the last.
        branch_macs: (L) multiply-adds of the branch of each block.
        trunk_params: Parameters of all that is computed in any case.
        branch_params: (L) parameters of the branch of each block.
        head_macs: Multiply-adds of all heads.
        head_params: Parameters of all heads.
        separate: Every task has a pass of its own.
    """

    tasks: int
    trunk_macs: tuple[int, ...]
    branch_macs: tuple[int, ...]
    trunk_params: int
    branch_params: tuple[int, ...]
    head_macs: int
    head_params: int
    separate: bool = False

    @classmethod
    def of(cls, parts: Parts, size: tuple[int, int], *, separate: bool = False) -> "PolicyCost":
        """Build it for images of `size` (height, width)."""
        network = MultiTaskNet(parts)
        whole = count_macs(network, (1, 3, *size), cross_check=False)
        sizes = node_sizes(parts.graph, size)
        macs = {n.name: n.outputs * n.macs_per_channel(sizes) for n in parts.graph}
        params = {n.name: n.params for n in parts.graph.weighted_nodes}
        trunk, branches = _divided(parts.graph)
        return cls(
            tasks=len(parts.tasks),
            trunk_macs=_totals(trunk, macs),
            branch_macs=_totals(branches, macs),
            trunk_params=sum(_totals(trunk, params)),
            branch_params=_totals(branches, params),
            head_macs=whole.macs - whole.backbone_macs,
            head_params=sum(p.numel() for p in network.heads.parameters()),
            separate=separate,
        )

    def macs(self, policy: Policy) -> int:
        """Count the multiply-adds of a policy's network, heads included."""
        total, groups = self.head_macs, [list(range(len(policy)))]
        if self.separate:
            groups = [[task] for task in groups[0]]
        for block, branch in enumerate(self.branch_macs):
            split = [_split(policy, group, block) for group in groups]
            total += len(groups) * self.trunk_macs[block]
            total += branch * sum(1 for selecting, _ in split if selecting)
            groups = [part for parts in split for part in parts if part]
        return total + len(groups) * self.trunk_macs[-1]

    def params(self, policy: Policy) -> int:
        """Count the parameters of a policy's network."""
        selected = map(any, zip(*policy, strict=True))
        branches = sum(p for p, held in zip(self.branch_params, selected, strict=True) if held)
        return self.head_params + self.trunk_params + branches

    def measure(self, policy: Policy, measure: Measure) -> int:
        """Return what a budget of a measure bounds."""
        return self.macs(policy) if measure == "macs" else self.params(policy)

    def exceeded(self, policy: Policy, budgets: Sequence[Budget]) -> Budget | None:
        """Return the budget that a policy exceeds most; None if it keeps to all."""
        shares = [self.measure(policy, budget.measure) / budget.limit for budget in budgets]
        largest = max(shares, default=0.0)
        return budgets[shares.index(largest)] if largest > 1 else None

    @property
    def least(self) -> Policy:
        """The policy of the lowest cost: all tasks skip all blocks."""
        return ((False,) * len(self.branch_macs),) * self.tasks

    def training_macs(self, freed: int) -> int:
        """Count the multiply-adds of a pass of the supernet in training.

        Up to the first freed block all tasks compute the same, once; behind it each its own.

        Args:
            freed: Number of the last blocks whose policy is learned.
        """
        once = len(self.branch_macs) - freed + 1
        shared = sum(self.trunk_macs[:once]) + sum(self.branch_macs[:once])
        own = sum(self.trunk_macs[once:]) + sum(self.branch_macs[once:])
        return self.head_macs + shared + self.tasks * own


def _divided(graph: Graph) -> tuple[list[list[str]], list[list[str]]]:
    """Divide the nodes of an encoder by when they are computed.

    Returns:
        For each block, and behind the last, the nodes that are computed in any case; for each block
        those that are computed where it is selected.
    """
    blocks = residual_blocks(graph)
    trunk: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    in_any_case = _computed(graph, [False] * len(blocks))
    number = 0
    for node in graph:
        if node.name in in_any_case:
            trunk[number].append(node.name)
        number += node.name in blocks
    alone = [_computed(graph, [i == k for i in range(len(blocks))]) for k in range(len(blocks))]
    return trunk, [[name for name in names if name not in in_any_case] for names in alone]


def _computed(graph: Graph, row: Sequence[bool]) -> list[str]:
    """Names of the nodes that one task with this policy computes."""
    return [value.node.name for value in plan(graph, (tuple(row),)).values]


def _totals(names: Iterable[Iterable[str]], amounts: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sum(amounts.get(name, 0) for name in part) for part in names)


def _split(policy: Policy, group: Sequence[int], block: int) -> tuple[list[int], list[int]]:
    """Split tasks into those that select a block and those that skip it."""
    selecting = [task for task in group if policy[task][block]]
    return selecting, [task for task in group if not policy[task][block]]
