"""Plans of searches: what the trials of a search have in common, and how they are drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna
from optuna.study import StudyDirection

from gatesearch.cost import Budget, name_of
from gatesearch.events import Emit
from gatesearch.methods import Context, Method, NetworkSpec
from gatesearch.methods.space import space_of
from gatesearch.methods.specification import SCALAR
from gatesearch.results import Result
from gatesearch.search import one_shot
from gatesearch.search.space import Params, draw, untried_first, weight_space
from gatesearch.store.names import search_name, weight_search_name
from gatesearch.store.store import GAIN, GAIN_AND_COST, PendingTrial, Store
from gatesearch.study import Study

# Trial index -> fixed parameters, or None to let the sampler draw.
Chooser = Callable[[int], Mapping[str, float | str] | None]


@dataclass(frozen=True)
class SearchPlan:
    """One search of a store.

    Attributes:
        name: In the store.
        first: A trial without its own: number, parameters, weighting.
        objectives: What is optimised: Δ_MTL up, and where trials differ in it GFLOPs down.
        draw: Suggests every parameter.
        choose: Called once the networks that trials start from are trained; returns what some
            trials try instead of drawing. None where all draw.
        asked_for: Whether its trials are those that the run was asked for; others are not stopped
            early either.
        stage: What its progress is called.
    """

    name: str
    first: NetworkSpec
    objectives: Sequence[StudyDirection]
    draw: Callable[[optuna.Trial], Params]
    choose: Callable[[], Chooser] | None = None
    asked_for: bool = True
    stage: str = "search"

    def spec(self, trial: PendingTrial) -> NetworkSpec:
        """The network of a trial."""
        weighting = str(trial.params.get("weighting", self.first.weighting))
        return replace(self.first, trial=trial.number, params=trial.params, weighting=weighting)


def method_plan(
    method: Method[Any],
    context: Context,
    store: Store,
    *,
    single_task: Callable[[], Result],
    budgets: tuple[Budget, ...],
    prefer: Mapping[str, float],
    emit: Emit,
) -> SearchPlan:
    """The search for the hyperparameters of a method under budgets.

    Args:
        method: The method.
        context: Data, tasks, runtime.
        store: Holds earlier trials, and what is tried on a supernet.
        single_task: Gives the single-task networks' result, the reference of Δ_MTL.
        budgets: All of them hold for every trial.
        prefer: Task -> how much it matters in the choice among what a supernet offers.
        emit: Receives progress.
    """
    study = context.study
    name, budget = search_name(method.name, name_of(budgets)), name_of(budgets)
    space = space_of(method.space, study)
    if method.supernet is not None:
        # Trials take budgets up to different shares, so their costs differ all the same.
        return SearchPlan(
            name,
            NetworkSpec(method.name, study.seed, 0, budgets=budgets),
            GAIN_AND_COST,
            partial(draw, space=space),
            choose=lambda: one_shot.chooser(
                method, context, store, single_task(), budgets=budgets, prefer=prefer, emit=emit
            ),
        )
    weightings = study.search.weighting
    first = NetworkSpec(method.name, study.seed, 0, budgets=budgets, weighting=weightings[0])
    return SearchPlan(
        name,
        first,
        GAIN if budget else GAIN_AND_COST,
        partial(draw, space=space, weightings=weightings),
        choose=lambda: untried_first(study.search.first_params, _tried(store, name, study.seed)),
    )


def weights_plan(method: str, study: Study) -> SearchPlan:
    """The search for fixed weights of a method's losses, ω_t themselves first."""
    low, high = study.search.scalar
    space = weight_space(study.search, study.task_names)
    plain = dict.fromkeys(space, 1.0)
    return SearchPlan(
        weight_search_name(method, study.seed),
        NetworkSpec(method, study.seed, weighting=SCALAR),
        GAIN,
        partial(draw, space=space),
        choose=lambda: lambda index: plain if index == 0 and low <= 1 <= high else None,
        asked_for=False,
        stage=weight_search_name(method, study.seed),
    )


def _tried(store: Store, name: str, seed: int) -> list[Mapping[str, float | str]]:
    """Parameters of a search's trials with this seed, and of those that will go on."""
    ended = [result.params for result in store.results(name) if result.seed == seed]
    return ended + [trial.params for trial in store.unfinished() if trial.search == name]
