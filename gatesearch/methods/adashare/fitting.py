"""Make a policy fit budgets by skipping the blocks that tasks want least (ours)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gatesearch.cost import Budget
from gatesearch.methods.adashare.plan import Policy
from gatesearch.methods.adashare.policy_cost import PolicyCost


class _Skip(NamedTuple):
    """Some tasks that skip a block which they have selected."""

    block: int
    tasks: tuple[int, ...]


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
    wanted = margins.tolist()
    moves: list[_Skip] = []
    while (budget := cost.exceeded(policy, budgets)) is not None:
        now = cost.measure(policy, budget.measure)
        best: tuple[float, _Skip] | None = None
        for move in _moves(policy):
            saved = now - cost.measure(_changed(policy, move, select=False), budget.measure)
            if saved > 0:
                margin = sum(wanted[task][move.block] for task in move.tasks) / saved
                if best is None or margin < best[0]:
                    best = margin, move
        assert best is not None, "skipping all blocks keeps to every budget"
        moves.append(best[1])
        policy = _changed(policy, best[1], select=False)
    for move in reversed(moves[:-1]):
        larger = _changed(policy, move, select=True)
        if cost.exceeded(larger, budgets) is None:
            policy = larger
    return policy


def _moves(policy: Policy) -> list[_Skip]:
    """List every move that leads from a policy."""
    moves: dict[_Skip, None] = {}
    for block in range(len(policy[0])):
        selecting = tuple(task for task, row in enumerate(policy) if row[block])
        together: dict[tuple[bool, ...], tuple[int, ...]] = {}
        for task in selecting:
            moves[_Skip(block, (task,))] = None
            before = policy[task][:block]
            together[before] = (*together.get(before, ()), task)
        moves |= {_Skip(block, tasks): None for tasks in together.values()}
        if selecting:
            moves[_Skip(block, selecting)] = None
    return list(moves)


def _changed(policy: Policy, move: _Skip, *, select: bool) -> Policy:
    rows = list(policy)
    for task in move.tasks:
        row = rows[task]
        rows[task] = (*row[: move.block], select, *row[move.block + 1 :])
    return tuple(rows)
