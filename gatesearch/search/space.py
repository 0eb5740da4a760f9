"""What Optuna draws: λ_s log-uniform, each task's τ_t uniform, regulariser and weighting."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.study import StudyDirection

from gatesearch.study import Configuration, SearchSpec

Params = dict[str, float | str]


ONE_SHOT = "one-shot"
SCALAR = "scalar"


def search_of(budget: str, *, one_shot: bool) -> str:
    """Name of the search that a trial belongs to; empty for the free one."""
    return " ".join([ONE_SHOT, budget]).strip() if one_shot else budget


def scalar_search(method: str, seed: int) -> str:
    """Name of the search for the weights of a method's losses."""
    return f"{SCALAR} {method} seed {seed}"


def is_scalar(search: str) -> bool:
    """Whether a search is one for weights of losses."""
    return search.startswith(f"{SCALAR} ")


def directions(search: str) -> list[StudyDirection]:
    """Δ_MTL up, GFLOPs down; Δ_MTL alone where all trials cost alike: as a budget asks, or one."""
    if is_scalar(search):
        return [StudyDirection.MAXIMIZE]
    both = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]
    return both if search in ("", ONE_SHOT) or search.startswith(f"{ONE_SHOT} ") else both[:1]


def draw(trial: optuna.Trial, spec: SearchSpec, tasks: tuple[str, ...]) -> Params:
    """`lambda_s`, `tau.<task>`, and `regulariser` and `weighting` where there is a choice."""
    drawn: Params = {"lambda_s": trial.suggest_float("lambda_s", *spec.lambda_s, log=True)}
    for task in tasks:
        drawn[f"tau.{task}"] = trial.suggest_float(f"tau.{task}", *spec.tau)
    if len(spec.regulariser) > 1:
        drawn["regulariser"] = trial.suggest_categorical("regulariser", spec.regulariser)
    if len(spec.weighting) > 1:
        drawn["weighting"] = trial.suggest_categorical("weighting", spec.weighting)
    return drawn


def listed(
    first: Sequence[Configuration], tried: Sequence[Mapping[str, float | str]]
) -> Callable[[int], dict[str, float] | None]:
    """What a search is to try next of the study's configurations; None when it has tried all.

    Args:
        first: Of the study.
        tried: Parameters of the search's trials.
    """
    known = [params.items() for params in tried]
    left = [c.params for c in first if not any(c.params.items() <= items for items in known)]
    return lambda index: left.pop(0) if left else None


def draw_weights(trial: optuna.Trial, spec: SearchSpec, tasks: tuple[str, ...]) -> Params:
    """`weight.<task>`: factors of ω_t for the weighting `scalar`."""
    return {
        f"weight.{task}": trial.suggest_float(f"weight.{task}", *spec.scalar, log=True)
        for task in tasks
    }


def weight_factors(params: Mapping[str, float | str]) -> dict[str, float]:
    """Task -> factor of ω_t that `draw_weights` drew; empty where it did not."""
    prefix = "weight."
    return {n.removeprefix(prefix): float(v) for n, v in params.items() if n.startswith(prefix)}


def draw_shares(trial: optuna.Trial, tasks: tuple[str, ...]) -> Params:
    """`share.<task>`: which share of its gates each task opens in a one-shot supernet."""
    return {f"share.{task}": trial.suggest_float(f"share.{task}", 0.0, 1.0) for task in tasks}


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
        parallel: Whether trials run beside it, which TPE then takes for bad ones.
    """
    own = (seed * 1_000_003 + index * 7919 + 17) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.sampler == "random":
            return optuna.samplers.RandomSampler(seed=own)
        if spec.sampler == "nsga2":
            # A population is two at least.
            population = max(2, spec.startup)
            return optuna.samplers.NSGAIISampler(seed=own, population_size=population)
        return optuna.samplers.TPESampler(
            seed=own, n_startup_trials=spec.startup, constant_liar=parallel
        )


def shares(params: Mapping[str, float | str], tasks: tuple[str, ...]) -> list[float]:
    """Share of open gates of a one-shot supernet, in the order of the tasks."""
    return [float(params[f"share.{task}"]) for task in tasks]


def taus(params: Mapping[str, float | str], tasks: tuple[str, ...]) -> list[float]:
    """τ_t in the order of the tasks."""
    return [float(params[f"tau.{task}"]) for task in tasks]
