"""The controls of a trial: networks of its cost, trained at its training cost.

| kind | network |
|---|---|
| `mtl@B` | the multi-task network, widened or narrowed to the trial's cost |
| `random` | as many gates of each task and layer as the trial opens, at places drawn |
| `even` | the trial's share of each task's gates, the same in every layer, at places drawn |
| `branch` | shared up to a layer, an encoder per task behind it |
| `swapped` | the trial's pattern, each task with the gates of another |
| `fresh` | the trial's own pattern |
| `pattern1`, ... | a share of open gates drawn for each task and stage, the same for all seeds |

A control is cut before its training, from the initial weights of its seed, and trained as the plain
network that it is: for as many epochs as cost what the whole training of the trial did. The trial
against `fresh` tells what training with gates gave beside the pattern; `fresh` against `random`,
`even` and `swapped` what the pattern gave; the trial against `mtl@B` whether to have own channels
at all. All of it is ours.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from gatesearch.comparisons import DRAWN, FRESH, WIDENED
from gatesearch.cost import Budget, Cost, PatternCost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, NoOptions, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.branch import branched, cut, pattern_at
from gatesearch.methods.controls import patterns
from gatesearch.methods.definitions import options_of
from gatesearch.methods.interrogate.method import INTERROGATE, build
from gatesearch.methods.interrogate.one_shot import ONE_SHOT
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.mtl_at import mtl_parts_at
from gatesearch.methods.specification import ControlSpec, NetworkSpec
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.pruning import (
    describe_compact,
    load_compact,
    pattern_of_text,
    rebuild_compact,
)
from gatesearch.results import SINGLE_TASK
from gatesearch.study import Study, TrainingSpec
from gatesearch.training import TrainingError
from gatesearch.training.weightings import WEIGHTINGS

# Kind -> order in which gates open; those of a trial's own pattern, and of none.
_OF_PATTERN: Mapping[str, patterns.Order] = {
    "random": patterns.random, "even": patterns.even, "swapped": patterns.swapped,
    FRESH: patterns.fresh,
}  # fmt: skip
KINDS = (WIDENED, "random", "even", "branch", "swapped", FRESH)


def kinds_of(gates: Mapping[str, Sequence[str]], *, below_mtl: bool = False) -> tuple[str, ...]:
    """List the kinds of controls of a trial: those of its pattern need one.

    Args:
        gates: Its pattern.
        below_mtl: Whether it costs less than the multi-task network, of which all others share at
            least the whole encoder.
    """
    if below_mtl:
        return (WIDENED,)
    return tuple(kind for kind in KINDS if gates or kind not in _OF_PATTERN)


def drawn_kinds(count: int) -> tuple[str, ...]:
    """Name the kinds of a number of patterns drawn over shares per task and stage."""
    return tuple(f"{DRAWN}{number}" for number in range(1, count + 1))


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase: the plain network, for as many epochs as its training cost allows."""
    control = request.spec.control
    assert control is not None
    network = _cut(request, control)
    cost = count_macs(network.module, request.context.input_shape, cross_check=False)
    training = _training(request, control, cost)
    return [
        Phase(
            name="control",
            span=(0, training.epochs),
            begin=lambda before: network,
            training=training,
            forward_gflops=lambda module: cost.gflops,
            describe=describe_compact,
            rebuild=rebuild_compact,
        )
    ]


def _closed(parts: Parts) -> Mapping[str, torch.Tensor]:
    return pattern_at(parts.graph, parts.graph.nodes[-1].name, tasks=len(parts.tasks))


def _cut(request: TrainingRequest, control: ControlSpec) -> TrainedNetwork:
    study, seed = request.study, request.spec.seed
    if control.kind == WIDENED:
        return TrainedNetwork(branched(parts := _multi_task(request, control), _closed(parts)))
    parts = parts_of(study, seed=seed, stl=request.start_state())
    supernet = _supernet(parts, request, control)
    cost = PatternCost.of(supernet, request.context.input_shape)
    learned = supernet.hard_gates()
    if control.gates:
        learned = pattern_of_text(control.gates, {n: g.shape[1] for n, g in learned.items()})
    order, draw = _OF_PATTERN.get(control.kind, patterns.branch), seed
    if control.kind.startswith(DRAWN):
        order, draw = patterns.shares, int(control.kind.removeprefix(DRAWN))
    gates = patterns.of_cost(order, learned, cost, control.macs, seed=draw)
    return cut(supernet, gates)


def _multi_task(request: TrainingRequest, control: ControlSpec) -> Parts:
    """Return the parts of the multi-task network of the trial's cost.

    Where the width is fixed, by weights or by an imported backbone, it is no wider than that.

    Raises:
        TrainingError: Even the narrowest multi-task network costs more.
    """
    study, seed, stl = request.study, request.spec.seed, request.start_state()
    budget = Budget(f"{2e-9 * control.macs:.4g}G", "macs", control.macs)
    try:
        return mtl_parts_at(study, budget, seed=seed, stl=stl).parts
    except UsageError as error:
        parts = parts_of(study, seed=seed, stl=stl)
        network = MultiTaskNet(parts)
        cost = count_macs(network, request.context.input_shape, cross_check=False)
        if budget.share(cost) > 1:
            raise TrainingError(str(error)) from error
        return parts


def _supernet(parts: Parts, request: TrainingRequest, control: ControlSpec) -> GatedSupernet:
    """Build the supernet of the trial: its gates lie, and its shared stream goes on, as there."""
    gated = control.method in (INTERROGATE.name, ONE_SHOT.name)
    with torch.random.fork_rng(devices=[]):
        if gated:
            return build(parts, options_of(request.study, INTERROGATE))
        return GatedSupernet(parts)


def _training(request: TrainingRequest, control: ControlSpec, cost: Cost) -> TrainingSpec:
    """Return the settings of the trial's method, with the epochs that its training cost buys."""
    settings = request.study.training_of(control.method)
    context = request.context
    entry = WEIGHTINGS[request.spec.weighting]
    passes = 3 + entry.passes(len(context.tasks), cost.backbone_gflops / cost.gflops)
    epoch = passes * cost.gflops * len(context.train) / 1e6
    return settings.model_copy(update={"epochs": max(1, round(control.pflops / epoch))})


def _start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a control start from the single-task networks if the trial does."""
    if spec.control is not None and spec.control.from_single_task:
        return NetworkSpec(SINGLE_TASK, spec.seed)
    return None


def _build(parts: Parts, options: NoOptions) -> nn.Module:
    """Build the multi-task network of the study's width."""
    return branched(parts, _closed(parts))


CONTROL = Method(
    name="control",
    paper="(control)",
    year=2026,
    summary="a network of a trial's cost that shares in another way; `run --controls` trains them",
    build=_build,
    options=NoOptions,
    start_of=_start_of,
    phases=phases,
    baseline=False,
    read=load_compact,
    unpriced="it has the cost of the trial that it is compared with",
    ours="all of it",
)
