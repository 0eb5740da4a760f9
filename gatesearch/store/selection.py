"""Choose a network of a store, under budgets and by the weights of tasks. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from gatesearch.comparisons import REPEAT
from gatesearch.cost.budget import Budget, parse_budget, read_budget, reference_of, task_of
from gatesearch.cost.cost import Cost
from gatesearch.errors import UsageError, shell_command, unknown
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, StudyRecord, gain_of


@dataclass(frozen=True)
class Selection:
    """A chosen network, and the best one of the other kind: found by a search, or not.

    Attributes:
        result: The network within the budgets that has the highest Δ_MTL on the validation part,
            with tasks weighted by preference; of several equal ones, the cheapest.
        gain: Its Δ_MTL, percent.
        other: The best network of the other kind within the budgets, chosen in the same way; None
            where there is none.
        other_gain: Its Δ_MTL, percent; NaN where there is none.
    """

    result: Result
    gain: float
    other: Result | None = None
    other_gain: float = math.nan


def select(
    record: StudyRecord,
    *,
    budgets: Sequence[str] = (),
    prefer: Mapping[str, float] | None = None,
    run: str = "gatesearch run",
) -> Selection:
    """Choose the best network of a store within budgets, of trials, baselines and controls alike.

    Args:
        record: Contents of a store.
        budgets: Upper bounds, all of which hold, in the forms that `parse_budget` reads.
        prefer: Task -> weight of its gain; 1 for tasks that are not named.
        run: The command that runs the study, for errors.

    Raises:
        UsageError: A budget is a multiple of a baseline that is missing, or no finished network
            keeps to the budgets or has a Δ_MTL; the error names the cheapest, or says why there is
            no Δ_MTL.
    """
    bounds = _parsed(record, budgets, run)
    networks = (*record.trials, *record.baselines, *record.controls)
    finished = [r for r in networks if r.state == "complete"]
    if not finished:
        failed = [r for r in (*record.trials, *record.baselines) if r.state == "failed"]
        reason = f"; {failed[-1].name} failed: {failed[-1].reason}" if failed else ""
        raise UsageError(
            f"the store of {record.name} holds no finished network to select{reason}; go on with: "
            f"{run}"
        )
    gains = {id(r): gain_of(record, r, "validation", prefer) for r in finished}
    defined = [r for r in finished if not gains[id(r)].fault]
    if not defined:
        raise UsageError(
            f"Δ_MTL is undefined for all {len(finished)} finished networks of {record.name}: "
            f"{gains[id(finished[0])].fault}; train longer in a store of its own (--set "
            "training.epochs=N --out DIR)"
        )
    within = [r for r in defined if _fits(r, bounds)]
    if not within:
        _check_within_reach(record, bounds)
        raise _too_costly(defined, bounds, budgets, run)

    def best(results: Sequence[Result]) -> Result | None:
        return max(results, key=lambda r: (gains[id(r)].percent, -r.gflops), default=None)

    chosen = best(within)
    assert chosen is not None
    other = best([r for r in within if is_found(r) != is_found(chosen)])
    other_gain = math.nan if other is None else gains[id(other)].percent
    return Selection(chosen, gains[id(chosen)].percent, other, other_gain)


def is_found(result: Result) -> bool:
    """Tell whether a search found the network: a trial, or a repetition of one."""
    return result.trial is not None or result.control == REPEAT


def _too_costly(
    results: Sequence[Result], bounds: Sequence[Budget], budgets: Sequence[str], run: str
) -> UsageError:
    """Make the error that no network keeps to the budgets."""
    least = min(results, key=lambda r: r.gflops)
    unmeasured = ""
    if any(budget.task for budget in bounds):
        counted = [r for r in results if r.task_gflops]
        unmeasured = (
            f"; what each task costs alone was counted for {len(counted)} of them, as it is of "
            "compact networks when they are trained"
        )
    if any(budget.measure == "latency" for budget in bounds):
        measured = [r for r in results if r.latency_ms is not None]
        unmeasured += (
            f"; latency was measured for {len(measured)} of them, those that a budget of latency "
            "bounded"
        )
    options = shell_command(*chain.from_iterable(("--budget", text) for text in budgets))
    return UsageError(
        f"none of {len(results)} finished networks, baselines included, keeps to "
        f"{', '.join(budgets)}; the cheapest, {least.name}, takes {least.gflops:.4g} GFLOPs and "
        f"{least.params_m:.4g} M parameters{unmeasured}; search under it: {run} {options}"
    )


def _ends(record: StudyRecord) -> dict[str, Cost]:
    finished = [r for r in record.baselines if r.state == "complete" and r.width == 1]
    return {r.method: cost_of(r) for r in finished}


def _parsed(record: StudyRecord, budgets: Sequence[str], run: str) -> list[Budget]:
    """Read budgets; only those that are multiples of a baseline need it.

    A bound above the most expensive network of a search is one too: other baselines cost more.
    """
    ends, bounds = _ends(record), []
    for text in budgets:
        if (task := task_of(text)) and task not in record.higher_is_better:
            raise unknown("task", task, record.higher_is_better)
        reference = reference_of(text)
        if reference and reference not in ends:
            raise UsageError(
                f"budget {text} is a multiple of the cost of {reference}, which this store does "
                f"not have; state it as 892G or 20M, or train {reference}: {run} --methods "
                "stl,mtl --n-trials 0"
            )
        bounds.append(read_budget(text, mtl=ends.get(MULTI_TASK), stl=ends.get(SINGLE_TASK)))
    return bounds


def _check_within_reach(record: StudyRecord, bounds: Sequence[Budget]) -> None:
    """Refuse bounds below the cost of any network that a search could find.

    Raises:
        UsageError: One is.
    """
    ends = _ends(record)
    if not {MULTI_TASK, SINGLE_TASK} <= ends.keys():
        return
    mtl, stl = ends[MULTI_TASK], ends[SINGLE_TASK]
    if any(cost_of(trial).macs < mtl.macs for trial in record.trials if trial.state == "complete"):
        return  # a method of this store goes below the multi-task network
    for bound in bounds:
        if bound.measure != "latency" and not bound.task and bound.share(mtl) > 1:
            parse_budget(bound.text, mtl=mtl, stl=stl)


def _fits(result: Result, budgets: Sequence[Budget]) -> bool:
    for budget in budgets:
        if budget.measure == "latency":
            if result.latency_ms is None or result.latency_ms > 1e3 * budget.limit:
                return False
        else:
            unknown_share = budget.task and budget.task not in result.task_gflops
            if unknown_share or budget.share(cost_of(result)) > 1:
                return False
    return True


def cost_of(result: Result) -> Cost:
    """Compute the cost from stored figures, rounded to whole operations and parameters."""
    return Cost(
        macs=round(result.gflops * 5e8),
        backbone_macs=round(result.backbone_gflops * 5e8),
        params=round(result.params_m * 1e6),
        task_macs={task: round(gflops * 5e8) for task, gflops in result.task_gflops.items()},
    )
