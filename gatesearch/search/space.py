"""What Optuna draws, and with which sampler."""

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
    """Every number of a space, and its words and the weighting where there is a choice."""
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
    """`weight.<task>`: factors of ω_t for the weighting `scalar`."""
    low, high = spec.scalar
    return {f"{WEIGHT}{task}": Range(low, high, log=True) for task in tasks}


def untried_first(
    first: Sequence[Mapping[str, float | str]], tried: Sequence[Mapping[str, float | str]]
) -> Callable[[int], dict[str, float | str] | None]:
    """Trial index -> the next configuration of the study that no trial has; None once all have.

    Args:
        first: `SearchSpec.first_params`.
        tried: Parameters of the search's trials.
    """
    known = [params.items() for params in tried]
    left = [dict(p) for p in first if not any(p.items() <= items for items in known)]
    return lambda index: left.pop(0) if left else None


def sampler(
    spec: SearchSpec, *, seed: int, index: int, parallel: bool = False
) -> optuna.samplers.BaseSampler:
    """The sampler of the next trial.

    Its seed depends on the number of trials before it: a sampler seeded alike on every start would
    draw the first trials of a resumed study once more. So a study that was interrupted also draws
    what it would have drawn without; with several workers that holds for `random` alone, since what
    the others know depends on who ended first.

    Args:
        spec: Which sampler.
        seed: The study's.
        index: Trials of the search drawn before it.
        parallel: True if other trials are running; enables TPE's constant liar.
    """
    trial_seed = (seed * 1_000_003 + index * 7919 + 17) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.sampler == "random":
            return optuna.samplers.RandomSampler(seed=trial_seed)
        if spec.sampler == "nsga2":
            # A population is two at least.
            population = max(2, spec.startup)
            return optuna.samplers.NSGAIISampler(seed=trial_seed, population_size=population)
        return optuna.samplers.TPESampler(
            seed=trial_seed, n_startup_trials=spec.startup, constant_liar=parallel
        )
