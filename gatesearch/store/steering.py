"""Controllability of the methods of a store that can be steered at run time. Needs no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gatesearch.controllability import (
    budgets_hit,
    even_requests,
    preference_hypervolume,
    relative_losses,
    uniformity,
)
from gatesearch.cost.budget import Budget, read_budget, reference_of
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, StudyRecord, reference
from gatesearch.store.selection import cost_of

# Parameters `NAME.<task>` of a trial that say how much its network favours each task: preferences,
# and the shares of gates that the one-shot form opens.
PREFERENCES = ("prefer", "share")


@dataclass(frozen=True)
class Controllability:
    """How well the networks of one method, budget and seed follow preferences and budgets.

    Attributes:
        method: A name in `gatesearch.methods.METHODS`.
        budget: Upper bounds of the trials, as `Result.budget`; empty without any.
        seed: Seed of the networks.
        hypervolume: See `preference_hypervolume`; NaN if it is undefined.
        uniformity: Mean of `uniformity` over the networks; NaN if it is undefined.
        budgets_hit: See `budgets_hit`. Under budgets, each network is one request. Without, the
            requests are those of `even_requests`. NaN if a baseline is missing of which the budget
            is a multiple.
        n: Number of networks.
    """

    method: str
    budget: str
    seed: int
    hypervolume: float
    uniformity: float
    budgets_hit: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Convert it to plain JSON values; undefined figures are null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in vars(self).items()
        }


def controllability(record: StudyRecord) -> list[Controllability]:
    """Measure the controllability of every method of a store that can be steered.

    These are the methods whose trials have a parameter of `PREFERENCES` for every task. Metrics
    are those of the validation part, which all trials have.

    Returns:
        One entry per method, budget and seed, in the order of the trials.
    """
    groups: dict[tuple[str, str, int], list[Result]] = {}
    for trial in record.trials:
        if trial.state == "complete" and preferences_of(trial, record) is not None:
            groups.setdefault((trial.method, trial.budget, trial.seed), []).append(trial)
    return [_measured(record, *key, trials) for key, trials in groups.items()]


def preferences_of(trial: Result, record: StudyRecord) -> list[float] | None:
    """Return how much a trial's network favours each task; None where nothing says so."""
    for name in PREFERENCES:
        values = [trial.numbers.get(f"{name}.{task.name}") for task in record.tasks]
        given = [value for value in values if value is not None and value >= 0]
        if given and len(given) == len(values):
            return given
    return None


def _measured(
    record: StudyRecord, method: str, budget: str, seed: int, trials: Sequence[Result]
) -> Controllability:
    base = reference(record, trials[0], "validation") or {}
    losses = [
        relative_losses(trial.metrics.get("validation", {}), base, record.higher_is_better)
        for trial in trials
    ]
    known = [all(map(math.isfinite, row)) for row in losses]
    agreement = [
        uniformity(row, preferences_of(trial, record) or [])
        for row, trial, whole in zip(losses, trials, known, strict=True)
        if whole
    ]
    agreement = [value for value in agreement if math.isfinite(value)]
    if budget:
        shares = _budget_shares(record, budget, trials)
    else:
        shares = even_requests([trial.gflops for trial in trials if trial.gflops > 0])
    return Controllability(
        method=method,
        budget=budget,
        seed=seed,
        hypervolume=preference_hypervolume(losses) if any(known) else math.nan,
        uniformity=math.fsum(agreement) / len(agreement) if agreement else math.nan,
        budgets_hit=budgets_hit(shares),
        n=len(trials),
    )


def _budget_shares(record: StudyRecord, budget: str, trials: Sequence[Result]) -> list[float]:
    """Compute the largest share of any budget that each trial takes.

    Returns:
        A share per trial; empty if a baseline is missing of which a budget is a multiple.
    """
    finished = [r for r in record.baselines if r.state == "complete" and r.width == 1]
    ends = {r.method: cost_of(r) for r in finished}
    bounds: list[Budget] = []
    for text in budget.split("+"):
        bound = text.partition("@")[0]  # without the device of a latency
        reference_method = reference_of(bound)
        if reference_method and reference_method not in ends:
            return []
        bounds.append(read_budget(bound, mtl=ends.get(MULTI_TASK), stl=ends.get(SINGLE_TASK)))
    return [max(_share(trial, bound) for bound in bounds) for trial in trials]


def _share(trial: Result, budget: Budget) -> float:
    if budget.measure == "latency":
        return math.nan if trial.latency_ms is None else 1e-3 * trial.latency_ms / budget.limit
    if budget.task and budget.task not in trial.task_gflops:
        return math.nan
    return budget.share(cost_of(trial))
