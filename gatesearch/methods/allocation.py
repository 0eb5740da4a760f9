"""Own channels allotted to tasks and stages by the search itself, without gates that learn. Ours.

Before training, the channels of a layer are exchangeable: their first weights are drawn alike. So a
gate pattern that is cut before training differs from another one only by how many channels of each
layer each set of tasks owns; which ones these are is chance. Here a search draws these numbers, by
two hyperparameters a task,

    share of task t in a layer = s_t exp(c_t (d - 1/2)),  0 ≤ d ≤ 1 the depth of its stage

s_t being the share of own channels and c_t the tilt towards late stages, and every trial is trained
as the plain network that it is. Tasks own the same channels as far as they go, for which the
compact network computes and copies least (`gatesearch.cost.align_tasks`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.cost import PatternCost, channel_price, project
from gatesearch.methods.base import Method, NoOptions, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.branch import branched, cut, pattern_at
from gatesearch.methods.definitions import training_of
from gatesearch.methods.space import Range, task_values
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.models.graph import Graph
from gatesearch.pruning import describe_compact, load_compact, rebuild_compact


def allotted(
    graph: Graph, shares: Sequence[float], tilts: Sequence[float], cost: PatternCost
) -> dict[str, Tensor]:
    """Order the gates of a network by the shares of its tasks.

    Args:
        graph: The encoder.
        shares: s_t, for each task.
        tilts: c_t, for each task.
        cost: Cost of its gate patterns.

    Returns:
        Gated node -> (T, C) logits; those above 0 are the shares, as whole channels nearest to
        them. `gatesearch.cost.project` then lowers or raises all shares by one factor.
    """
    stages = {node.name: node.stage for node in graph}
    deepest = max(1, *stages.values())
    level, slope = (torch.tensor(values).double()[:, None] for values in (shares, tilts))
    logits = {}
    for name in graph.gated("conv"):
        channels = graph.channels(name)
        share = level * (slope * (stages[name] / deepest - 0.5)).exp()
        place = (torch.arange(channels, device="cpu").double() + 0.5) / channels
        logits[name] = (1 - place / share.clamp(min=1e-9)) * channel_price(cost, name)
    return logits


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase: the plain network of a trial's shares, for all epochs."""
    study, spec = request.study, request.spec

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=spec.seed, stl=request.start_state())
        supernet = GatedSupernet(parts)
        return cut(supernet, _pattern(supernet, request))

    return [
        Phase(
            name="allotted",
            span=(0, training_of(study, ALLOCATION).epochs),
            begin=begin,
            describe=describe_compact,
            rebuild=rebuild_compact,
        )
    ]


def _pattern(supernet: GatedSupernet, request: TrainingRequest) -> Mapping[str, Tensor]:
    """Make the gate pattern of a trial, within its budgets."""
    params, budgets = request.spec.params, request.spec.budgets
    cost = PatternCost.of(supernet, request.context.input_shape)
    shares, tilts = (task_values(params, name, supernet.tasks) for name in ("share", "tilt"))
    logits = allotted(supernet.graph, shares, tilts, cost)
    if budgets:
        return project(logits, cost, budgets)
    return {name: values > 0 for name, values in logits.items()}


def _build(parts: Parts, options: NoOptions) -> nn.Module:
    """Build the network in which tasks own nothing."""
    graph = parts.graph
    return branched(parts, pattern_at(graph, graph.nodes[-1].name, tasks=len(parts.tasks)))


ALLOCATION = Method(
    name="allocation",
    paper="(ours)",
    year=2026,
    summary="own channels for each task and stage, chosen by the search before training",
    build=_build,
    options=NoOptions,
    phases=phases,
    space={
        "share": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
        "tilt": Range(-2.0, 2.0, per_task=True, legal=(-10.0, 10.0)),
    },
    bounds=frozenset({"macs", "params"}),
    baseline=False,
    unpriced="it lies between mtl (no own channels) and stl (own channels alone); ask for those",
    read=load_compact,
    outline=("all epochs, cut before the first",),
    effort="as its network's, 1 to T encoders",
    ours="all of it",
)
