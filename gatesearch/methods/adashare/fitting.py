"""Make a policy fit budgets by skipping the blocks that tasks want least (ours)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from gatesearch.cost import Budget
from gatesearch.methods.adashare.plan import Policy, plan, residual_blocks
from gatesearch.methods.adashare.policy_cost import PolicyCost


class _Skip(NamedTuple):
    """Some tasks that skip a block which they have selected."""

    block: int
    tasks: frozenset[int]


def fit_policy(
    policy: Policy, margins: Tensor, cost: PolicyCost, budgets: Sequence[Budget]
) -> Policy:
    """Skip blocks until a policy keeps to all budgets.

    One task alone, all tasks that compute a block together, or all that select it skip it in one
    move: where tasks compute a block together, skipping by one of them only adds cost. Each move is
    the one of the smallest logit margin, summed over its tasks, per unit of the cost that it saves
    of the budget that is exceeded most. Moves that later ones have made needless are taken back,
    the last one first.

    Args:
        policy: (T, L) as it was drawn.
        margins: (T, L) logit of selecting a block less that of skipping it.
        cost: Cost of policies.
        budgets: Upper bounds, which the policy that skips all blocks must keep to.
    """
    moves: list[_Skip] = []
    while (budget := cost.excess(policy, budgets)) is not None:
        now = cost.measure(policy, budget.measure)
        best: tuple[float, _Skip] | None = None
        for move in _moves(policy, cost):
            saved = now - cost.measure(_changed(policy, move, select=False), budget.measure)
            if saved <= 0:
                continue
            margin = sum(float(margins[task, move.block]) for task in move.tasks)
            if best is None or margin / saved < best[0]:
                best = margin / saved, move
        assert best is not None, "skipping all blocks keeps to every budget"
        moves.append(best[1])
        policy = _changed(policy, best[1], select=False)
    for move in reversed(moves[:-1]):
        larger = _changed(policy, move, select=True)
        if cost.excess(larger, budgets) is None:
            policy = larger
    return policy


def _moves(policy: Policy, cost: PolicyCost) -> Iterator[_Skip]:
    """Yield every move that leads from a policy."""
    blocks = residual_blocks(cost.graph)
    number = {name: i for i, name in enumerate(blocks)}
    moves: dict[_Skip, None] = {}
    for value in plan(cost.graph, policy, separate=cost.separate).values:
        if value.node.name in number:
            moves[_Skip(number[value.node.name], frozenset(value.tasks))] = None
    for i in range(len(blocks)):
        tasks = frozenset(task for task, row in enumerate(policy) if row[i])
        moves |= {_Skip(i, frozenset([task])): None for task in sorted(tasks)}
        if tasks:
            moves[_Skip(i, tasks)] = None
    yield from moves


def _changed(policy: Policy, move: _Skip, *, select: bool) -> Policy:
    return tuple(
        tuple(select if i == move.block else selected for i, selected in enumerate(row))
        if task in move.tasks
        else row
        for task, row in enumerate(policy)
    )
