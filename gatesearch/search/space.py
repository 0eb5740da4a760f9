"""Draw the parameters of trials with Optuna, and choose its sampler."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna

from gatesearch.methods.space import Choice, Range
from gatesearch.study import SearchSpec
from gatesearch.trials.phase_training import WEIGHT

Params = dict[str, float | str]


def draw(
    trial: optuna.Trial, space: Mapping[str, Range | Choice], weightings: Sequence[str] = ()
) -> Params:
    """Suggest all parameters of a space on a trial, and a weighting if there are several.

    A `Choice` of one word is not a parameter.
    """
    params: Params = {}
    for name, item in space.items():
        if isinstance(item, Range):
            params[name] = trial.suggest_float(name, item.low, item.high, log=item.log)
        elif len(item.values) > 1:
            params[name] = trial.suggest_categorical(name, item.values)
    if len(weightings) > 1:
        params["weighting"] = trial.suggest_categorical("weighting", weightings)
    return params


def weight_space(spec: SearchSpec, tasks: Sequence[str]) -> dict[str, Range | Choice]:
    """Make the space of `weight.<task>`, the factors of ω_t that the weighting `scalar` tries."""
    low, high = spec.scalar
    return {f"{WEIGHT}{task}": Range(low, high, log=True) for task in tasks}


def untried_first(
    first: Sequence[Mapping[str, float | str]], tried: Sequence[Mapping[str, float | str]]
) -> Callable[[int], dict[str, float | str] | None]:
    """Let the next trials try the study's own configurations, except those that were tried.

    Args:
        first: Configurations of the study (`SearchSpec.first_params`).
        tried: Parameters of the search's trials.

    Returns:
        Trial index -> a configuration, another one in each call; None once all are given out.
    """
    tried_items = [params.items() for params in tried]
    left = [dict(p) for p in first if not any(p.items() <= items for items in tried_items)]
    return lambda index: left.pop(0) if left else None


def sampler(
    spec: SearchSpec, *, seed: int, index: int, parallel: bool = False
) -> optuna.samplers.BaseSampler:
    """Make the sampler of the next trial.

    Its seed depends on the number of trials drawn before. With the same seed after every start, a
    resumed search would draw its first trials again. So an interrupted search draws the same trials
    as one that was not interrupted. With several workers this holds for `random` alone: the other
    samplers depend on the order in which trials end.

    Args:
        spec: Names the sampler and its options.
        seed: The study's seed.
        index: Number of trials of the search drawn before.
        parallel: True if other trials are running; enables TPE's constant liar.
    """
    trial_seed = (seed * 1_000_003 + index * 7919 + 17) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.sampler == "random":
            return optuna.samplers.RandomSampler(seed=trial_seed)
        if spec.sampler == "nsga2":
            # NSGA-II needs a population of 2 or more.
            population = max(2, spec.startup)
            return optuna.samplers.NSGAIISampler(seed=trial_seed, population_size=population)
        return optuna.samplers.TPESampler(
            seed=trial_seed, n_startup_trials=spec.startup, constant_liar=parallel
        )
