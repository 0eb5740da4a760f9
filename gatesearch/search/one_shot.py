"""From one trained supernet to networks: configurations tried without training, the best chosen.

Optuna tries configurations of the method's space on the validation part; the method says how a
configuration's network is cut from the supernet and measured. Nothing is trained for that. Networks
to fine-tune are then chosen along the whole range of cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from gatesearch.cost import Budget
from gatesearch.errors import UsageError
from gatesearch.events import Emit, Progress
from gatesearch.measures import delta_mtl
from gatesearch.methods import Context, Method, NetworkSpec, Supernet, TrainingRequest, start_of
from gatesearch.methods.space import Choice, Range, space_of
from gatesearch.results import Result
from gatesearch.search.space import Params, draw
from gatesearch.store.store import Store, ask
from gatesearch.trials.kept_networks import network_state

# Configurations at which no task owns anything, everything, and evenly between come first.
_EVEN = 9
_POPULATION = 24


def chooser(
    method: Method[Any],
    context: Context,
    store: Store,
    single_task: Result,
    *,
    budgets: Sequence[Budget],
    prefer: Mapping[str, float],
    emit: Emit,
) -> Callable[[int], Params]:
    """Try the configurations that are still to be tried: point of the front -> its parameters.

    Args:
        method: Whose supernet it is.
        context: Data, tasks, runtime.
        store: Holds the supernet and what was tried.
        single_task: Single-task networks, the reference of Δ_MTL.
        budgets: Networks chosen take less.
        prefer: Task -> how much it matters.
        emit: Receives progress.
    """
    study = context.study
    spec = NetworkSpec(method.name, study.seed, 0, budgets=tuple(budgets))
    start = start_of(spec, study)
    assert start is not None
    assert method.supernet is not None
    request = TrainingRequest(spec, context, lambda: network_state(start, out=store.folder), emit)
    supernet = method.supernet(request, budgets)
    patterns = store.patterns(method.name, study.seed)
    metrics = single_task.metrics["validation"]
    space = space_of(method.space, study)
    _try_configurations(supernet, space, patterns, context, metrics, emit=emit)
    directions = {name: task.higher_is_better for name, task in context.tasks.items()}
    scores = []
    for trial in _complete(patterns):
        macs, share = supernet.cost(trial.params)
        gain = delta_mtl(trial.user_attrs["metrics"], metrics, directions, prefer)
        scores.append(PatternScore(trial.params, macs, share, gain))
    return lambda point: dict(chosen(scores, point + 1)[-1].params)


@dataclass(frozen=True)
class PatternScore:
    """A configuration and what it gave.

    Attributes:
        params: Its parameters.
        macs: Multiply-adds of its network.
        share: Part of the budgets that it takes.
        gain: Δ_MTL on the validation part, percent, without training.
    """

    params: Mapping[str, float]
    macs: float
    share: float
    gain: float


def chosen(tried: Sequence[PatternScore], points: int) -> list[PatternScore]:
    """Networks along the range of cost; of more points the first ones stay the same.

    Point i aims at a cost between the least and the highest: both ends first, then always the
    middle of the widest gap (van der Corput's sequence). It takes the pattern of the highest gain
    within an eighth of the range below its aim that no earlier point has taken; where there is
    none, of all below, and where there is none either, the cheapest.

    Args:
        tried: Patterns; those over a budget are left out.
        points: How many networks.

    Raises:
        UsageError: There are not as many patterns within the budgets.
    """
    within = [item for item in tried if item.share <= 1]
    if len(within) < points:
        raise UsageError(
            f"{points} networks need as many patterns within the budget, found {len(within)} of "
            f"{len(tried)} tried; raise `patterns` of the method or the budget, or ask for fewer "
            "--points"
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
    """0, 1, 1/2, 1/4, 3/4, 1/8, ...

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
    emit: Emit,
) -> None:
    """Measure configurations up to the supernet's number in all; Ctrl-C loses the running one."""
    count = supernet.patterns
    directions = {name: task.higher_is_better for name, task in context.tasks.items()}
    for cut_off in patterns.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        patterns.tell(cut_off.number, state=TrialState.FAIL)
    even = _even_configurations(space, min(_EVEN, count))
    while (done := len(tried := _complete(patterns))) < count:
        if done % 10 == 0:
            emit(Progress("patterns", done, count, "patterns"))
        # One at a time, so that the one under which a run was cut off is tried again.
        untried = [p for p in even if not _is_among(p, tried)] if done < len(even) else []
        sampler = optuna.samplers.NSGAIISampler(
            population_size=_POPULATION, seed=(context.study.seed * 1_000_003 + done) % 2**32
        )
        fixed = untried[0] if untried and not _waiting(patterns) else None
        trial, params = ask(patterns, sampler, partial(draw, space=space), fixed)
        metrics, macs = supernet.measure(params)
        trial.set_user_attr("metrics", metrics)
        patterns.tell(trial, [delta_mtl(metrics, single_task, directions), 2e-9 * macs])
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


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _waiting(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.WAITING])
