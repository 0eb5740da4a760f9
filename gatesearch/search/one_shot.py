"""From a one-shot supernet to networks: patterns tried without training, the best of them chosen.

Optuna tries gate patterns, one share of open gates a task, on the validation part: a pattern's
network is cut from the supernet, its batch norm statistics are taken anew, and it is measured.
Nothing is trained for that. Networks to fine-tune are then chosen along the whole range of cost.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from gatesearch.cost import Budget, PatternCost
from gatesearch.errors import UsageError
from gatesearch.measures import delta_mtl
from gatesearch.methods import build_model
from gatesearch.methods.context import Context, Emit, progress
from gatesearch.methods.interrogate.gate_selection import opened
from gatesearch.methods.interrogate.phases import pattern_cost
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.results import Result
from gatesearch.search.space import draw_shares
from gatesearch.store.store import Store
from gatesearch.training import evaluate, recompute_statistics
from gatesearch.trials.kept_networks import network_state

# Choices of gates at which no task owns anything, everything, and evenly between come first.
_EVEN = 9
_POPULATION = 24

Chooser = Callable[[int], dict[str, float]]


def chooser(
    bench: Context,
    store: Store,
    stl: Result,
    *,
    budgets: Sequence[Budget],
    prefer: Mapping[str, float],
    emit: Emit,
) -> Chooser:
    """Try the patterns that are still to be tried: point of the front -> its `share.<task>`.

    Args:
        bench: Data, tasks, runtime.
        store: Holds the supernet and the tries.
        stl: Single-task networks, the reference of Δ_MTL.
        budgets: Networks chosen take less.
        prefer: Task -> how much it matters.
        emit: Receives progress.
    """
    supernet = _supernet(bench, store)
    cost = pattern_cost(supernet, bench)
    study = store.patterns(bench.study.seed)
    _try_patterns(supernet, cost, study, bench, stl, emit)
    directions = {name: task.higher_is_better for name, task in bench.tasks.items()}
    tried = []
    for trial in _complete(study):
        gates = opened(supernet, trial.params, multiple=bench.study.interrogate.round_to)
        share = float(cost.share(gates, budgets)) if budgets else 0.0
        gain = delta_mtl(trial.user_attrs["metrics"], stl.metrics["validation"], directions, prefer)
        tried.append(PatternScore(trial.params, float(cost.macs(gates)), share, gain))
    return lambda point: dict(chosen(tried, point + 1)[-1].params)


@dataclass(frozen=True)
class PatternScore:
    """A pattern and what it gave.

    Attributes:
        params: `share.<task>`.
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
            f"{len(tried)} tried; raise one_shot.patterns or the budget, or ask for fewer --points"
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


def _try_patterns(
    supernet: GatedSupernet,
    cost: PatternCost,
    study: optuna.Study,
    bench: Context,
    stl: Result,
    emit: Emit,
) -> None:
    """Measure patterns up to `one_shot.patterns` in all; Ctrl-C loses the running one."""
    spec, tasks = bench.study.one_shot, supernet.tasks
    directions = {name: task.higher_is_better for name, task in bench.tasks.items()}
    for cut in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(cut.number, state=TrialState.FAIL)
    for i in range(min(_EVEN, spec.patterns)):
        even = i / max(1, min(_EVEN, spec.patterns) - 1)
        study.enqueue_trial({f"share.{task}": even for task in tasks}, skip_if_exists=True)
    while (done := len(_complete(study))) < spec.patterns:
        if done % 10 == 0:
            progress(emit, "patterns", done, spec.patterns, "patterns")
        study.sampler = optuna.samplers.NSGAIISampler(
            population_size=_POPULATION, seed=(bench.study.seed * 1_000_003 + done) % 2**32
        )
        trial = study.ask()
        params = draw_shares(trial, tasks)
        metrics, macs = _measured(supernet, params, cost, bench)
        trial.set_user_attr("metrics", metrics)
        gain = delta_mtl(metrics, stl.metrics["validation"], directions)
        study.tell(trial, [gain, 2e-9 * macs])
    progress(emit, "patterns", spec.patterns, spec.patterns, "patterns")


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _measured(
    supernet: GatedSupernet, params: Mapping[str, float | str], cost: PatternCost, bench: Context
) -> tuple[dict[str, float], float]:
    """(validation metrics, multiply-adds) of a pattern's network, untrained."""
    gates = opened(supernet, params, multiple=bench.study.interrogate.round_to)
    network = bench.runtime.place(extract(supernet))
    size = bench.study.training.batch_size
    recompute_statistics(
        network, bench.train, runtime=bench.runtime, batch_size=size,
        most=bench.study.one_shot.statistics, seen=bench.seen("interrogate"),
    )  # fmt: skip
    metrics = evaluate(
        network, bench.validation, bench.tasks, runtime=bench.runtime, batch_size=size
    )
    return metrics, float(cost.macs(gates))


def _supernet(bench: Context, store: Store) -> GatedSupernet:
    seed = bench.study.seed
    supernet = build_model(bench.study, "interrogate", seed=seed, pretrained=False)
    assert isinstance(supernet, GatedSupernet)
    candidate = NetworkSpec("interrogate", seed, role="supernet")
    supernet.load_state_dict(network_state(candidate, out=store.folder))
    return supernet.eval()
