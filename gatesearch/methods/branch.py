"""Branching at a fixed block: shared up to it, an encoder per task behind it. A control, ours.

A network that branches is a gate pattern of InterroGate's supernet: closed before the cut and open
behind it. It is cut out before training and trained as the plain network that it is, so that no
gate is learned and a training costs what its network does.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.cost import PatternCost, median_latency
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, training_of
from gatesearch.methods.interrogate.method import latency_table
from gatesearch.methods.space import Range
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT
from gatesearch.pruning import (
    CompactNet,
    describe_compact,
    describe_pattern,
    extract,
    load_compact,
    pattern_as_text,
    rebuild_compact,
    sharing,
)
from gatesearch.strict import Strict
from gatesearch.training import TrainingError

Pattern = Mapping[str, Tensor]


class BranchOptions(Strict):
    """Options of branching.

    Attributes:
        cut: How far the tasks share, in [0, 1]: the cut points in order are given equal parts of
            that range. At 0 nothing is shared, at 1 the whole encoder is.
    """

    cut: float = Field(default=0.5, ge=0, le=1)


def cut_points(graph: Graph) -> tuple[str, ...]:
    """List what can be the last shared node: the image, the stem, and the end of every block.

    >>> from gatesearch.models.backbones import BACKBONES
    >>> cut_points(BACKBONES["resnet18"]())[:4]
    ('image', 'conv1', 'layer1.0', 'layer1.1')
    """
    return (INPUT, *graph.gated("block"))


def pattern_at(graph: Graph, last: str, *, tasks: int) -> Pattern:
    """Make the gate pattern that shares everything up to a node.

    Args:
        graph: The encoder.
        last: One of `cut_points`.
        tasks: Number of tasks T.

    Returns:
        Gated node -> (T, C) bool: False up to the cut, True behind it.
    """
    names = [node.name for node in graph]
    behind = names.index(last) + 1 if last in names else 0
    return {
        name: torch.full((tasks, graph.channels(name)), names.index(name) >= behind, device="cpu")
        for name in graph.gated("conv")
    }


def chosen(cut: float, points: Sequence[str]) -> str:
    """Return the cut point of a value in [0, 1], of which every point has an equal part.

    >>> [chosen(cut, ("image", "stem", "block")) for cut in (0.0, 0.33, 0.34, 0.99, 1.0)]
    ['image', 'image', 'stem', 'block', 'block']
    """
    return points[min(int(cut * len(points)), len(points) - 1)]


def branched(parts: Parts, gates: Pattern) -> CompactNet:
    """Build the network of a gate pattern, with the weights that `Parts` gives every method.

    On the meta device it has shapes alone. Nothing is drawn from torch's generator.
    """
    with torch.random.fork_rng(devices=[]):
        supernet = GatedSupernet(parts)
        if next(supernet.parameters()).is_meta:
            return CompactNet(describe_pattern(supernet, gates))
        supernet.set_gates(gates)
        return extract(supernet)


def cut(supernet: GatedSupernet, gates: Pattern) -> TrainedNetwork:
    """Cut the network of a gate pattern out of a supernet, before its training."""
    supernet.set_gates(gates)
    found = sharing(supernet)
    with torch.random.fork_rng(devices=[]):
        network = extract(supernet)
    return TrainedNetwork(network, found.layers, found.shares, pattern_as_text(found.own))


def build(parts: Parts, options: BranchOptions) -> nn.Module:
    """Build the network that branches at the option `cut`."""
    last = chosen(options.cut, cut_points(parts.graph))
    return branched(parts, pattern_at(parts.graph, last, tasks=len(parts.tasks)))


def affordable(parts: Parts, request: TrainingRequest) -> tuple[str, ...]:
    """List the cut points within all budgets of a request, the cheapest last.

    The last one shares the whole encoder. A budget below its cost is refused before a run begins.

    Raises:
        TrainingError: No network is within a budget of latency: the device has become slower.
    """
    points, budgets, context = cut_points(parts.graph), request.spec.budgets, request.context
    gates = {last: pattern_at(parts.graph, last, tasks=len(parts.tasks)) for last in points}
    counted = [budget for budget in budgets if budget.measure != "latency"]
    if counted:
        cost = PatternCost.of(GatedSupernet(parts), context.input_shape)
        points = tuple(p for p in points if float(cost.share(gates[p], counted)) <= 1)
    limits = [budget.limit for budget in budgets if budget.measure == "latency"]
    if limits:
        assert context.stopwatch is not None
        runtime, limit = context.stopwatch.runtime, min(limits)
        seconds = {
            p: median_latency(branched(parts, gates[p]), context.input_shape, runtime)
            for p in points
        }
        points = tuple(p for p in points if seconds[p] <= limit)
        if not points:
            raise TrainingError(
                f"a network of {1e3 * limit:.3g} ms must be possible, found "
                f"{1e3 * min(seconds.values()):.3g} ms for the fastest; raise --budget, or free "
                "the machine of other work"
            )
    return points


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase: the plain network that branches, for all epochs.

    Under budgets the range of `cut` is divided among the cut points within them.
    """
    study = request.study
    position = float(request.spec.params.get("cut", options_of(study, BRANCH).cut))

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        last = chosen(position, affordable(parts, request))
        gates = pattern_at(parts.graph, last, tasks=len(parts.tasks))
        return cut(GatedSupernet(parts), gates)

    return [
        Phase(
            name="branched",
            span=(0, training_of(study, BRANCH).epochs),
            begin=begin,
            describe=describe_compact,
            rebuild=rebuild_compact,
        )
    ]


BRANCH = Method(
    name="branch",
    paper="(control)",
    year=2026,
    summary="one encoder up to a block, behind it one per task",
    build=build,
    options=BranchOptions,
    phases=phases,
    space={"cut": Range(0.0, 1.0, legal=(0.0, 1.0))},
    bounds=frozenset({"macs", "params", "latency"}),
    read=load_compact,
    latency_table=latency_table,
    outline=("all epochs, cut before the first",),
    effort="1 (all shared) to T encoders, as its network's",
    ours="all of it",
)
