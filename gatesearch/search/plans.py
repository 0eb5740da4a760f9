"""Plans of searches: what all trials of a search share, and how their parameters are drawn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna
from optuna.study import StudyDirection

from gatesearch.cost import Budget, name_of
from gatesearch.events import Emit
from gatesearch.methods import Context, Method, NetworkSpec
from gatesearch.methods.space import first_of, space_of
from gatesearch.methods.specification import SCALAR
from gatesearch.results import Result
from gatesearch.search import one_shot
from gatesearch.search.space import Params, draw, untried_first, weight_space
from gatesearch.store.names import search_name, weight_search_name
from gatesearch.store.optuna_trials import GAIN, GAIN_AND_COST
from gatesearch.store.store import PendingTrial, Store
from gatesearch.study import Study

# Trial index -> fixed parameters, or None to let the sampler draw.
Chooser = Callable[[int], Mapping[str, float | str] | None]


@dataclass(frozen=True)
class SearchPlan:
    """The plan of one search.

    Attributes:
        name: Name of the search in the store.
        first: Specification that its trials share; each has its own number, parameters and
            weighting.
        objectives: Directions of optimisation: Δ_MTL is maximised; GFLOPs are minimised where the
            costs of trials differ.
        n_trials: Total number of its ended trials, earlier ones included.
        draw: Suggests every parameter on a trial; returns parameter -> value.
        choose: Called after the start networks are trained; returns the parameters that trials
            must try instead of drawing. None where all trials draw.
        asked_for: True for a search that the user asked for. Otherwise it is a search for weights
            of losses, whose trials are not shown in the status and not stopped early.
        stage: Name of its progress in events.
    """

    name: str
    first: NetworkSpec
    objectives: Sequence[StudyDirection]
    n_trials: int
    draw: Callable[[optuna.Trial], Params]
    choose: Callable[[], Chooser] | None = None
    asked_for: bool = True
    stage: str = "search"

    def spec(self, trial: PendingTrial) -> NetworkSpec:
        """Specify the network of a trial."""
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
    n_trials: int,
    emit: Emit,
) -> SearchPlan:
    """Plan the search for the hyperparameters of a method under budgets.

    Args:
        method: The method.
        context: Study, data, tasks and device.
        store: Holds earlier trials, and the configurations tried on a supernet.
        single_task: Returns the result of the single-task networks, the reference of Δ_MTL.
        budgets: Upper bounds, all of which hold for every trial.
        prefer: Task -> weight of its gain when networks are chosen from a supernet.
        n_trials: Total number of its trials.
        emit: Receives progress.
    """
    study = context.study
    if method.supernet is not None:
        space = space_of(method.space, study)
        # Its trials spread over the range of cost below the budgets, so both objectives matter.
        return SearchPlan(
            search_name(method.name, name_of(budgets)),
            NetworkSpec(method.name, study.seed, 0, budgets=budgets),
            GAIN_AND_COST,
            n_trials,
            partial(draw, space=space),
            choose=lambda: one_shot.chooser(
                method,
                context,
                store,
                single_task(),
                budgets=budgets,
                prefer=prefer,
                points=n_trials,
                emit=emit,
            ),
        )
    return drawn_plan(method, study, store, budgets=budgets, n_trials=n_trials)


def drawn_plan(
    method: Method[Any],
    study: Study,
    store: Store,
    *,
    budgets: tuple[Budget, ...],
    n_trials: int,
) -> SearchPlan:
    """Plan the search for the hyperparameters of a method whose trials draw them.

    Args:
        method: The method.
        study: The definition.
        store: Holds earlier trials.
        budgets: Upper bounds, all of which hold for every trial.
        n_trials: Total number of its trials.
    """
    name, budget = search_name(method.name, name_of(budgets)), name_of(budgets)
    space = space_of(method.space, study)
    weightings = study.search.weighting
    first = NetworkSpec(method.name, study.seed, 0, budgets=budgets, weighting=weightings[0])
    return SearchPlan(
        name,
        first,
        GAIN if budget else GAIN_AND_COST,
        n_trials,
        partial(draw, space=space, weightings=weightings),
        choose=lambda: untried_first(
            first_of(method.space, study), _tried(store, name, study.seed)
        ),
    )


def weights_plan(method: str, study: Study) -> SearchPlan:
    """Plan the search for fixed weights of a method's losses; it tries ω_t themselves first."""
    low, high = study.search.scalar
    space = weight_space(study.search, study.task_names)
    unchanged = dict.fromkeys(space, 1.0)
    return SearchPlan(
        weight_search_name(method, study.seed),
        NetworkSpec(method, study.seed, weighting=SCALAR),
        GAIN,
        study.search.scalar_trials,
        partial(draw, space=space),
        choose=lambda: lambda index: unchanged if index == 0 and low <= 1 <= high else None,
        asked_for=False,
        stage=weight_search_name(method, study.seed),
    )


def _tried(store: Store, name: str, seed: int) -> list[Mapping[str, float | str]]:
    """List the parameters of a search's ended trials with this seed, and of all unfinished ones."""
    ended = [result.params for result in store.results(name) if result.seed == seed]
    return ended + [trial.params for trial in store.unfinished() if trial.search == name]
