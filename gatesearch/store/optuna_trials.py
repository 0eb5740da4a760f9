"""Optuna's studies and trials, as a store keeps them: drawn, read, and copied.

A search is an Optuna study. A trial of it that has an attribute `names.NUMBER` was begun; one
without it was left by a kill in the middle of drawing.
"""

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from gatesearch.store import names
from gatesearch.store.integrity import TrialRows

# Δ_MTL is maximised and GFLOPs are minimised; Δ_MTL alone where all trials of a search cost the
# same.
GAIN_AND_COST: Sequence[StudyDirection] = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
GAIN: Sequence[StudyDirection] = GAIN_AND_COST[:1]


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector, which would scan everything read so far again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def ask(
    study: optuna.Study,
    sampler: optuna.samplers.BaseSampler,
    draw: Callable[[optuna.Trial], Mapping[str, float | str]],
    params: Mapping[str, float | str] | None = None,
) -> tuple[optuna.Trial, dict[str, float | str]]:
    """Draw the next trial of an Optuna study: the trial and its parameters.

    Args:
        study: The Optuna study.
        sampler: The sampler of this trial.
        draw: Suggests every parameter on the trial; returns parameter -> value.
        params: Fixed parameters; the sampler draws the others, or all of them when None.
    """
    study.sampler = sampler
    if params is not None:
        study.enqueue_trial(dict(params))
    trial = study.ask()
    return trial, dict(draw(trial))


def name_metrics(handle: optuna.Study) -> None:
    """Name the objectives of an Optuna study, for its dashboard."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        handle.set_metric_names(names.METRICS[: len(handle.directions)])


def rows_of(
    study: optuna.Study,
    trial: FrozenTrial,
    *,
    state: TrialState = TrialState.COMPLETE,
    values: Sequence[float] = (),
) -> TrialRows:
    """Describe a trial as Optuna's tables are going to hold it."""
    return TrialRows(
        # Names of studies have no spaces.
        study.study_name.partition(" ")[2],
        trial.number,
        state.name,
        [float(value) for value in values],
        {
            name: [float(drawn.to_internal_repr(trial.params[name])), distribution_to_json(drawn)]
            for name, drawn in trial.distributions.items()
        },
        dict(trial.system_attrs),
    )


def distributions_as_json(distributions: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Convert parameter -> distribution to parameter -> JSON of the distribution."""
    return {name: distribution_to_json(drawn) for name, drawn in distributions.items()}


def without_results(trial: FrozenTrial) -> FrozenTrial:
    """Copy a trial without its result; one that was never begun counts as failed."""
    return create_trial(
        state=trial.state if names.NUMBER in trial.user_attrs else TrialState.FAIL,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


@without_garbage_collection()
def begun_trials(search: optuna.Study) -> list[FrozenTrial]:
    """List the trials of a search that were begun."""
    return [
        trial for trial in search.get_trials(deepcopy=False) if names.NUMBER in trial.user_attrs
    ]


def ended_trials(search: optuna.Study) -> list[FrozenTrial]:
    """List the trials of a search that ended, with any outcome."""
    return [trial for trial in begun_trials(search) if trial.state.is_finished()]
