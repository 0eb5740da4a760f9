"""Try configurations of a trained supernet without training, and choose networks to fine-tune.

Optuna tries configurations of the method's space. The method cuts the network of each from the
supernet and measures it on the validation part, without training it. Networks to fine-tune are then
chosen along the whole range of cost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from gatesearch.cost import Budget
from gatesearch.errors import UsageError
from gatesearch.events import Emit, Progress
from gatesearch.measures import gain
from gatesearch.methods import Context, Method, NetworkSpec, Supernet, TrainingRequest, start_of
from gatesearch.methods.space import Choice, Range, space_of
from gatesearch.results import Result
from gatesearch.search.space import Params, draw
from gatesearch.store import names
from gatesearch.store.optuna_trials import ask
from gatesearch.store.patterns import keep_pattern, pattern_metrics, was_measured
from gatesearch.store.store import Store
from gatesearch.trials.kept_networks import network_state

# Number of configurations that are tried first: all parameters at the lowest value, at the highest,
# and evenly between.
_EVEN = 9
# Population size of NSGA-II.
_POPULATION = 24


def chooser(
    method: Method[Any],
    context: Context,
    store: Store,
    single_task: Result,
    *,
    budgets: Sequence[Budget],
    prefer: Mapping[str, float],
    points: int,
    emit: Emit,
) -> Callable[[int], Params]:
    """Try the configurations that were not tried yet, and return how trials choose among all.

    Args:
        method: The method of the supernet.
        context: Study, data, tasks and device.
        store: Holds the trained supernet and the configurations tried earlier.
        single_task: Result of the single-task networks, the reference of Δ_MTL.
        budgets: Upper bounds on the chosen networks.
        prefer: Task -> weight of its gain in the choice; 1 for tasks that are not named.
        points: Number of networks to choose in all.
        emit: Receives progress.

    Returns:
        Trial index in its search -> parameters of its network.

    Raises:
        UsageError: Fewer configurations than points are within the budgets.
    """
    study = context.study
    spec = NetworkSpec(method.name, study.seed, 0, budgets=tuple(budgets))
    start = start_of(spec, study)
    assert start is not None
    assert method.supernet is not None
    out = store.folder
    trained = next(r for r in store.bases if NetworkSpec.of(r).folder(out) == start.folder(out))
    request = TrainingRequest(spec, context, lambda: network_state(trained, out=out), emit)
    supernet = method.supernet(request, budgets)
    patterns = store.patterns(method.name, study.seed)
    metrics = single_task.metrics["validation"]
    space = space_of(method.space, study)
    directions = {name: task.higher_is_better for name, task in context.tasks.items()}
    key = names.pattern_count_key(method.name, study.seed)
    count = _stored_count(store.attribute(key), patterns, supernet)
    while True:
        store.keep(key, count)
        _try_configurations(supernet, space, patterns, context, metrics, count=count, emit=emit)
        scores, networks = [], set()
        for trial in _tried(patterns):
            network = supernet.network(trial.params)
            if network in networks:
                continue
            networks.add(network)
            macs, share = supernet.cost(trial.params)
            gained = gain(pattern_metrics(trial), metrics, directions, prefer)
            percent = -math.inf if gained.fault else gained.percent
            scores.append(PatternScore(trial.params, macs, share, percent))
        within = sum(score.share <= 1 for score in scores)
        if within >= points or count >= supernet.most_patterns:
            # Refuses more networks than there are before any is trained.
            chosen(scores, points, method=method.name)
            return lambda point: dict(chosen(scores, point + 1)[-1].params)
        count = min(count + _POPULATION, supernet.most_patterns)


def _stored_count(stored: int | None, patterns: optuna.Study, supernet: Supernet) -> int:
    """Return the number of configurations to try: the study's, or what the store began with.

    A default of another version must not add configurations to those that networks were chosen
    from. gatesearch 0.1.0 wrote no number, and tried `most_patterns`.
    """
    if supernet.patterns == supernet.most_patterns:
        return supernet.patterns
    if stored is not None:
        return stored
    return supernet.most_patterns if patterns.get_trials(deepcopy=False) else supernet.patterns


@dataclass(frozen=True)
class PatternScore:
    """A configuration that was tried, with cost and gain of its network.

    Attributes:
        params: Parameter -> value.
        macs: Multiply-adds of its network.
        share: Largest share of any budget that the network takes; at most 1 within the budgets.
        gain: Δ_MTL on the validation part, percent, without fine-tuning; -inf if it is undefined.
    """

    params: Mapping[str, float]
    macs: float
    share: float
    gain: float


def chosen(
    tried: Sequence[PatternScore], points: int, *, method: str = "one_shot"
) -> list[PatternScore]:
    """Choose configurations along the range of cost; more points do not change the first ones.

    Point i aims at a cost between the lowest and the highest: first at both ends, then at the
    middles of the gaps between earlier aims (van der Corput's sequence). Of the configurations that
    no earlier point has taken, it takes the one of the highest gain whose cost is at most its aim
    and at least an eighth of the range below it. If there is none, it takes the one of the highest
    gain of all below its aim, and if there is none either, the cheapest.

    Args:
        tried: Configurations; those over a budget are left out.
        points: Number of networks to choose.
        method: The method, whose option the error names.

    Raises:
        UsageError: Fewer configurations than points are within the budgets.
    """
    within = [item for item in tried if item.share <= 1]
    if len(within) < points:
        raise UsageError(
            f"{points} networks need as many patterns within the budget, found {len(within)} of "
            f"{len(tried)} tried; raise the budget, ask for fewer --points, or try more in a store "
            f"of its own: --set {method}.patterns=N --out DIR"
        )
    least, most = min(item.macs for item in within), max(item.macs for item in within)
    taken: list[PatternScore] = []
    for i in range(points):
        aim = least + _fraction(i) * (most - least)
        free = [item for item in within if item not in taken]
        below = [item for item in free if item.macs <= aim]
        near = [item for item in below if item.macs >= aim - (most - least) / 8] or below
        cheapest = min(free, key=lambda item: (item.macs, -item.gain))
        taken.append(max(near or [cheapest], key=lambda item: (item.gain, -item.macs)))
    return taken


def _fraction(i: int) -> float:
    """Return the i-th of 0, 1, 1/2, 1/4, 3/4, 1/8, ..., with the ends before van der Corput's.

    >>> [_fraction(i) for i in range(6)]
    [0.0, 1.0, 0.5, 0.25, 0.75, 0.125]
    """
    if i < 2:
        return float(i)
    i -= 1
    return sum(int(digit) / 2 ** (place + 1) for place, digit in enumerate(reversed(f"{i:b}")))


def _try_configurations(
    supernet: Supernet,
    space: Mapping[str, Range | Choice],
    patterns: optuna.Study,
    context: Context,
    single_task: Mapping[str, float],
    *,
    count: int,
    emit: Emit,
) -> None:
    """Measure configurations up to a total of `count`; Ctrl-C loses the current one."""
    directions = {name: task.higher_is_better for name, task in context.tasks.items()}
    for interrupted in patterns.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        patterns.tell(interrupted.number, state=TrialState.FAIL)
    even = _even_configurations(space, min(_EVEN, count))
    while (done := len(tried := _tried(patterns))) < count:
        emit(Progress("patterns", done, count, "patterns"))
        # One at a time, so that the one under which a run was cut off is tried again.
        untried = [p for p in even if not _is_among(p, tried)] if done < len(even) else []
        sampler = optuna.samplers.NSGAIISampler(
            population_size=_POPULATION, seed=(context.study.seed * 1_000_003 + done) % 2**32
        )
        fixed = untried[0] if untried and not _waiting(patterns) else None
        trial, params = ask(patterns, sampler, partial(draw, space=space), fixed)
        metrics, macs = supernet.measure(params)
        keep_pattern(patterns, trial, metrics, gain(metrics, single_task, directions), 2e-9 * macs)
    emit(Progress("patterns", count, count, "patterns"))


def _even_configurations(space: Mapping[str, Range | Choice], count: int) -> list[dict[str, float]]:
    """Configurations with all ranges at their least value, at their highest, and evenly between."""
    shares = [i / max(1, count - 1) for i in range(count)]
    ranges = {name: item for name, item in space.items() if isinstance(item, Range)}
    return [
        {name: item.low + share * (item.high - item.low) for name, item in ranges.items()}
        for share in shares
    ]


def _is_among(params: Mapping[str, float], trials: Sequence[FrozenTrial]) -> bool:
    return any(params.items() <= trial.params.items() for trial in trials)


def _tried(study: optuna.Study) -> list[FrozenTrial]:
    """List the configurations that were measured, also those whose Δ_MTL is undefined."""
    ended = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.FAIL])
    return [trial for trial in ended if was_measured(trial)]


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.WAITING])
