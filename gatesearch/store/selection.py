"""Choose a network of a store, under budgets and by the weights of tasks. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatesearch.cost.budget import Budget, parse_budget
from gatesearch.cost.cost import Cost
from gatesearch.errors import UsageError
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, StudyRecord, delta


@dataclass(frozen=True)
class Selection:
    """A chosen network, and the baselines that do better.

    Attributes:
        result: The trial within the budgets that has the highest Δ_MTL on the validation part,
            with tasks weighted by preference; of several equal ones, the cheapest.
        gain: Its Δ_MTL, percent.
        better: Baselines within the budgets that have a higher Δ_MTL, best first.
    """

    result: Result
    gain: float
    better: tuple[Result, ...]


def select(
    record: StudyRecord, *, budgets: Sequence[str] = (), prefer: Mapping[str, float] | None = None
) -> Selection:
    """Choose the best trial within budgets.

    Args:
        record: Contents of a store.
        budgets: Upper bounds, all of which hold, in the forms that `parse_budget` reads.
        prefer: Task -> weight of its gain; 1 for tasks that are not named.

    Raises:
        UsageError: A budget is out of reach, or no finished trial keeps to the budgets; the error
            names the cheapest trial.
    """
    bounds = _parsed(record, budgets)
    trials = [trial for trial in record.trials if trial.state == "complete"]
    if not trials:
        raise UsageError(
            f"the store of {record.name} holds no finished trial to select; search first: "
            f"gatesearch run --study {record.name} --search one_shot --points 8"
        )
    gains = {id(r): delta(record, r, "validation", prefer) for r in (*trials, *record.baselines)}
    within = [r for r in trials if _fits(r, bounds) and math.isfinite(gains[id(r)])]
    if not within:
        least = min(trials, key=lambda trial: trial.gflops)
        raise UsageError(
            f"none of {len(trials)} finished trials keeps to {', '.join(budgets)}; the cheapest, "
            f"trial {least.trial}, takes {least.gflops:.4g} GFLOPs and {least.params_m:.4g} M "
            f"parameters; search under it: gatesearch run --study {record.name} --budget "
            f"{budgets[0] if budgets else '1xMTL'}"
        )
    best = max(within, key=lambda r: (gains[id(r)], -r.gflops))
    better = [
        r
        for r in record.baselines
        if r.state == "complete" and _fits(r, bounds) and gains[id(r)] > gains[id(best)]
    ]
    ordered = sorted(better, key=lambda r: -gains[id(r)])
    return Selection(best, gains[id(best)], tuple(ordered))


def _parsed(record: StudyRecord, budgets: Sequence[str]) -> list[Budget]:
    if not budgets:
        return []
    ends = {r.method: _cost(r) for r in record.baselines if r.state == "complete"}
    if MULTI_TASK not in ends or SINGLE_TASK not in ends:
        raise UsageError(
            "budgets are checked against the baselines mtl and stl, and this store does not have "
            f"both; train them: gatesearch run --study {record.name} --methods stl,mtl --n-trials 0"
        )
    # Any latency is within reach of some device.
    return [
        parse_budget(text, mtl=ends[MULTI_TASK], stl=ends[SINGLE_TASK], latency=(0.0, math.inf))
        for text in budgets
    ]


def _fits(result: Result, budgets: Sequence[Budget]) -> bool:
    for budget in budgets:
        if budget.measure == "latency":
            if result.latency_ms is None or result.latency_ms > 1e3 * budget.limit:
                return False
        elif budget.share(_cost(result)) > 1:
            return False
    return True


def _cost(result: Result) -> Cost:
    """Compute the cost from stored figures, rounded to whole operations and parameters."""
    return Cost(
        macs=round(result.gflops * 5e8),
        backbone_macs=round(result.backbone_gflops * 5e8),
        params=round(result.params_m * 1e6),
    )
