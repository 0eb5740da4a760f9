"""Choose the trials that get controls, and specify these networks."""

from collections.abc import Sequence

from gatesearch.comparisons import REPEAT
from gatesearch.cost import Budget, name_of
from gatesearch.events import Log
from gatesearch.methods import NetworkSpec, start_of
from gatesearch.methods.controls import CONTROL, drawn_kinds, kinds_of
from gatesearch.methods.specification import ControlSpec
from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result
from gatesearch.search.networks import Networks
from gatesearch.search.search import Search
from gatesearch.store.names import search_name
from gatesearch.trials.costs import costs


def train_controls(
    search: Search,
    methods: Sequence[str],
    budgets: tuple[Budget, ...],
    *,
    seeds: Sequence[int],
    wanted: bool | None,
    headroom: int,
) -> None:
    """Train the controls of the best trial of each search, with every seed.

    With the first seed the controls are those of the trial; with the others its training is
    repeated, and the controls are those of the repetition.

    Args:
        search: The run's searches.
        methods: Methods that were searched.
        budgets: Upper bounds on every trial's cost.
        seeds: The seeds; that of the trials first.
        wanted: Whether controls are wanted; None trains those of trials with a gate pattern, where
            they cost at most half of all training of the store so far.
        headroom: Number of drawn patterns that are trained too.
    """
    networks = search.networks
    best: list[tuple[Result, list[NetworkSpec]]] = []  # (trial, its repetitions)
    for method in methods:
        trials = networks.store.results(search_name(method, name_of(budgets)))
        trial = networks.best([t for t in trials if t.seed == seeds[0]])
        if trial is not None:
            best.append((trial, [_repeat(trial, budgets, seed) for seed in seeds[1:]]))
    search.train_controls([spec for _, repeats in best for spec in repeats])
    controls: list[NetworkSpec] = []
    before = networks.store.record().training_pflops  # with the controls of trials so far
    for trial, repeats in best:
        if wanted is False or (wanted is None and not trial.gates):
            continue
        below_mtl = trial.gflops < costs(networks.context.study, (MULTI_TASK,))[MULTI_TASK].gflops
        kinds = [
            *kinds_of(trial.gates, below_mtl=below_mtl),
            *drawn_kinds(headroom if trial.gates else 0),
        ]
        known = sum(r.of == trial.trial and r.control != REPEAT for r in networks.store.bases)
        missing = len(kinds) * len(seeds) - known
        cost = missing * trial.train_pflops
        if missing > 0:
            afforded = wanted or cost <= before / 2
            networks.emit(Log(_told(trial, missing, cost, before=before, afforded=afforded)))
            if not afforded:
                continue
            before += cost
        learned = [trial, *filter(None, map(networks.known, repeats))]
        controls += [
            _control(kind, trial, of_seed, networks)
            for of_seed in learned
            if of_seed.state == "complete"
            for kind in kinds
        ]
    search.train_controls(controls)


def _told(trial: Result, count: int, cost: float, *, before: float, afforded: bool) -> str:
    """Say what controls cost or would cost, in PFLOPs."""
    takes = "take" if afforded else "would take"
    told = f"{count} controls of trial {trial.trial} {takes} {cost:.3g} PFLOPs"
    if afforded:
        return f"{told}; --no-controls leaves them out"
    return f"{told}, all before took {before:.3g}: --controls trains them"


def _repeat(trial: Result, budgets: tuple[Budget, ...], seed: int) -> NetworkSpec:
    """Specify a trial's own training with another seed."""
    assert trial.trial is not None
    return NetworkSpec(
        trial.method,
        seed,
        params=trial.params,
        budgets=budgets,
        weighting=trial.weighting,
        control=ControlSpec(REPEAT, trial.trial),
    )


def _control(kind: str, trial: Result, learned: Result, networks: Networks) -> NetworkSpec:
    """Specify a control.

    Args:
        kind: Of the control.
        trial: The trial.
        learned: The trial, or its repetition with the control's seed.
        networks: Knows the network that both start from.
    """
    assert trial.trial is not None
    start = NetworkSpec(trial.method, learned.seed)
    while (before := start_of(start, networks.context.study)) is not None:
        start = before
    single_task = networks.known(start) if start.method == SINGLE_TASK else None
    return NetworkSpec(
        CONTROL.name,
        learned.seed,
        weighting=trial.weighting,
        control=ControlSpec(
            kind,
            trial.trial,
            method=trial.method,
            macs=round(learned.gflops * 5e8),
            pflops=learned.train_pflops - (single_task.train_pflops if single_task else 0.0),
            from_single_task=single_task is not None,
            gates=learned.gates,
        ),
    )
