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

from gatesearch.cost import Cost, PatternCost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, NoOptions, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.branch import branched, pattern_at
from gatesearch.methods.controls import patterns
from gatesearch.methods.definitions import at_width, options_of
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.methods.interrogate.one_shot import ONE_SHOT
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.specification import ControlSpec, NetworkSpec
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.pruning import (
    describe_compact,
    extract,
    load_compact,
    pattern_as_text,
    pattern_of_text,
    rebuild_compact,
    sharing,
)
from gatesearch.results import SINGLE_TASK
from gatesearch.study import Study, TrainingSpec
from gatesearch.training.weightings import WEIGHTINGS

WIDENED = "mtl@B"
# A trial's own training with another seed: no network of this file, but kept beside the controls.
OTHER_SEED = "repeat"
# Kind -> order in which gates open; those of a trial's own pattern, and of none.
_OF_PATTERN: Mapping[str, patterns.Order] = {
    "random": patterns.random, "even": patterns.even, "swapped": patterns.swapped,
    "fresh": patterns.fresh,
}  # fmt: skip
KINDS = (WIDENED, "random", "even", "branch", "swapped", "fresh")
# Prefix of the kinds of patterns drawn over shares per task and stage; behind it their number.
_DRAWN = "pattern"
# Factors of the width between which that of `mtl@B` is sought.
_NARROWEST, _WIDEST = 0.05, 8.0


def kinds_of(gates: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """List the kinds of controls of a trial: those of its pattern need one."""
    return tuple(kind for kind in KINDS if gates or kind not in _OF_PATTERN)


def drawn_kinds(count: int) -> tuple[str, ...]:
    """Name the kinds of a number of patterns drawn over shares per task and stage."""
    return tuple(f"{_DRAWN}{number}" for number in range(1, count + 1))


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


def width_of(study: Study, macs: int) -> float:
    """Find the widest multi-task network within a cost, as a factor of the study's width.

    Returns:
        The factor; 1 where the width is fixed: by pretrained weights, by those of trained
        single-task networks, or by an imported backbone that has one width only.
    """
    if study.model.init != "scratch" or not _fits(study, _NARROWEST, macs):
        return 1.0
    low, high = _NARROWEST, _WIDEST
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _fits(study, middle, macs) else (low, middle)
    return low


def _fits(study: Study, factor: float, macs: int) -> bool:
    with torch.device("meta"):
        try:
            parts = parts_of(at_width(study, factor), pretrained=False)
        except UsageError:  # this backbone has one width
            return False
        network = MultiTaskNet(parts)
    return count_macs(network, (1, 3, *study.protocol.size), cross_check=False).macs <= macs


def _closed(parts: Parts) -> Mapping[str, torch.Tensor]:
    return pattern_at(parts.graph, parts.graph.nodes[-1].name, tasks=len(parts.tasks))


def _cut(request: TrainingRequest, control: ControlSpec) -> TrainedNetwork:
    study, seed = request.study, request.spec.seed
    if control.kind == WIDENED:
        factor = 1.0 if control.from_single_task else width_of(study, control.macs)
        parts = parts_of(at_width(study, factor), seed=seed, stl=request.start_state())
        return TrainedNetwork(branched(parts, _closed(parts)))
    parts = parts_of(study, seed=seed, stl=request.start_state())
    supernet = _supernet(parts, request, control)
    cost = PatternCost.of(supernet, request.context.input_shape)
    learned = supernet.hard_gates()
    if control.gates:
        learned = pattern_of_text(control.gates, {n: g.shape[1] for n, g in learned.items()})
    order, draw = _OF_PATTERN.get(control.kind, patterns.branch), seed
    if control.kind.startswith(_DRAWN):
        order, draw = patterns.shares, int(control.kind.removeprefix(_DRAWN))
    gates = patterns.of_cost(order, learned, cost, control.macs, seed=draw)
    supernet.set_gates(gates)
    layers, shares = sharing(supernet)
    with torch.random.fork_rng(devices=[]):
        network = extract(supernet)
    return TrainedNetwork(network, layers, shares, pattern_as_text(gates))


def _supernet(parts: Parts, request: TrainingRequest, control: ControlSpec) -> GatedSupernet:
    """Build the supernet of the trial, whose gates lie where the trial's did."""
    gated = control.method in (INTERROGATE.name, ONE_SHOT.name)
    granularity = options_of(request.study, INTERROGATE).granularity if gated else "conv"
    with torch.random.fork_rng(devices=[]):
        return GatedSupernet(parts, granularity=granularity)


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
