"""Which channels of which stream a gate pattern leaves alive, without building its network.

Liveness (`gatesearch.pruning.liveness`) counted with probabilities. Let n_s[l, c] be whether stream
s reads channel c of node l on behalf of some head, and G_t the gates behind a gated node. Then

    m_t = n_t ∨ n_shared                  the β mix needs what every task chose
    task_t = m_t ∧ G_t                    the task's own channel is live
    shared = ⋁_t (m_t ∧ ¬G_t)             the shared channel is live

or, where the shared stream continues from itself (`continued`), m_t = n_t and
shared = n_shared ∨ ⋁_t (m_t ∧ ¬G_t);
and a live output needs the channels that its node names (`Node.computed`, `Node.needed_inputs`).
With a ∧ b = a b
and a ∨ b = 1 - (1 - a)(1 - b) the same lines are exact for G in {0, 1}, and for G in (0, 1) give
the expectation if gates were drawn independently, up to the dependence between channels that one
gate decides about together.

Where channels share gates (`firsts`), this dependence is heeded in two ways. Channels that share a
gate count once in "any of a group" (`gatesearch.cost.events`). And m_t is not computed from n_t and
n_shared, of which a gate before may let happen one or the other: T more streams carry
n_t ∨ n_shared, which is m_t ∨ ⋁_{u≠t} (m_u ∧ ¬G_u) before a gate.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor

from gatesearch.cost.events import ALL, Firsts
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node


@dataclass(frozen=True)
class Live:
    """Live channels of patterns; T+1 streams, the shared one last.

    Attributes:
        outputs: Node with weights -> (..., T+1, C) its outputs.
        elements: Node without weights -> (..., T+1, C) its values; equal values in several streams
            are counted in each.
        mixes: Gated node -> (..., 1, C) the mixes of its tasks' features.
    """

    outputs: Mapping[str, Tensor]
    elements: Mapping[str, Tensor]
    mixes: Mapping[str, Tensor]


def live_channels(
    graph: Graph,
    gates: Mapping[str, Tensor],
    *,
    mixed: Collection[str],
    continued: Collection[str] = (),
    heads: Sequence[Sequence[str]] | None = None,
    firsts: Firsts = ALL,
) -> Live:
    """Compute the live channels of patterns.

    Args:
        graph: The encoder.
        gates: Gated node -> (..., T, C), 0 or 1, or probabilities.
        mixed: Gated nodes whose mixed shared features some pattern reads.
        continued: Gated nodes behind which the shared stream continues from itself and is read.
        heads: For each task, the nodes that its head reads; the last node when None.
        firsts: Channels that count once where several share a gate.
    """
    first = next(iter(gates.values()))
    *batch, tasks, _ = first.shape
    heads = heads or [graph.read_by(False)] * tasks
    # With the streams that carry n_t ∨ n_shared.
    streams = tasks + 1 if firsts is ALL or continued else 2 * tasks + 1
    needed: dict[str, Tensor] = {}
    for name in {name: None for names in heads for name in names}:
        ends = torch.zeros(*batch, tasks + 1, graph.channels(name), device=first.device)
        ends[..., [t for t, names in enumerate(heads) if name in names], :] = 1
        extra = streams - tasks - 1
        needed[name] = torch.cat([ends, ends[..., :extra, :]], -2) if extra else ends
    outputs: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    mixes: dict[str, Tensor] = {}
    differs = None
    if _may_equal(graph, gates):
        differs = _raw_differences(graph, gates, mixed, continued, firsts)
    for node in reversed(graph.nodes):
        need = needed.pop(node.name, None)
        if need is None:  # a feature that no head and no other node reads
            need = torch.zeros(*batch, streams, node.outputs, device=first.device)
        if node.name in gates:
            gate = gates[node.name].to(need.dtype)
            if node.name in mixed and tasks > 1:
                chosen = gate if differs is None else gate * _from_shared(differs[node.name])
                mixes[node.name] = need[..., tasks : tasks + 1, :] * _any(chosen)
            need = _before_gates(
                need, gate, mixed=node.name in mixed, continued=node.name in continued
            )
        once = _once(need, firsts.needed.get(node.name))
        need = node.computed(once if node.whole_groups else need)
        (outputs if node.has_weights else elements)[node.name] = need[..., : tasks + 1, :]
        once = _once(need, firsts.computed.get(node.name)) if node.whole_groups else once
        for source, channels in zip(node.sources, node.needed_inputs(once), strict=True):
            _add_need(needed, source, channels)
    return Live(outputs, elements, mixes)


def distinct_elements(
    graph: Graph,
    gates: Mapping[str, Tensor],
    elements: Mapping[str, Tensor],
    *,
    mixed: Collection[str],
    continued: Collection[str] = (),
    firsts: Firsts = ALL,
) -> dict[str, Tensor]:
    """Count the values of nodes without weights that a compact network computes.

    Such a node gives equal values for equal inputs in all streams, which are computed once; for one
    that only renumbers channels nothing is. Exact for G in {0, 1}.

    Args:
        graph: The encoder.
        gates: Gated node -> (..., T, C).
        elements: `Live.elements` under these gates.
        mixed: Gated nodes whose mixed shared features some pattern reads.
        continued: As for `live_channels`.
        firsts: Channels that count once where several share a gate.

    Returns:
        Node without weights -> (...) channels.
    """
    routed = {node.name for node in graph if node.routes is not None}
    distinct: dict[str, Tensor] = {}
    for name, other in _raw_differences(graph, gates, mixed, continued, firsts).items():
        if name in elements and name not in routed:
            need = elements[name]
            others = (need * other).sum(-2)
            distinct[name] = (others + _any(need * (1 - other))[..., 0, :]).sum(-1)
    return distinct


def _raw_differences(
    graph: Graph,
    gates: Mapping[str, Tensor],
    mixed: Collection[str],
    continued: Collection[str],
    firsts: Firsts,
) -> dict[str, Tensor]:
    """Return node -> (..., T+1, C): where its value before the gate is not the shared one."""
    first = next(iter(gates.values()))
    tasks = first.shape[-2]
    # The same behind the gate: where consumers in a stream read another value. The mix of a
    # single task is the task's value, so then nobody does.
    differs: dict[str, Tensor] = {
        INPUT: torch.zeros(tasks + 1, IMAGE_CHANNELS, device=first.device)
    }
    raw: dict[str, Tensor] = {}
    for node in graph:
        inputs = [differs[source] for source in node.sources]
        if node.has_weights:
            other = torch.ones(tasks + 1, node.outputs, device=first.device)
            other[-1] = 0
        elif node.routes is not None:
            other = _routed(node, inputs)
        else:
            masks = firsts.differing.get(node.name, (None,) * len(inputs))
            other = _in_groups(node, [_once(x, m) for x, m in zip(inputs, masks, strict=True)])
        raw[node.name] = other
        if node.name in gates:
            gate = gates[node.name].to(other.dtype) * _from_shared(other)
            if tasks == 1:
                gate = gate * (node.name not in mixed)
            shared = _any(gate) * (tasks > 1 and node.name not in continued)
            other = torch.cat([gate, shared], -2)
        differs[node.name] = other
    return raw


def _once(channels: Tensor, first: Tensor | None) -> Tensor:
    """(..., C) probabilities, but 0 for a channel whose event another of its group stands for."""
    return channels if first is None else channels * first.to(channels)


def _from_shared(other: Tensor) -> Tensor:
    """Whether each task's value is not what the shared stream has: (..., T+1, C) -> (..., T, C).

    The shared stream may read a mix where a task reads what was shared before the mix.
    """
    return _either(other[..., :-1, :], other[..., -1:, :])


def _may_equal(graph: Graph, gates: Mapping[str, Tensor]) -> bool:
    """Whether a gate can choose between equal values: behind a sum of gated features, say."""
    always = set[str]()  # nodes whose values differ between streams whatever the gates
    for node in graph:
        sources = [source in always for source in node.sources]
        apart = node.has_weights or (any if node.routes is None else all)(sources)
        if node.name in gates:
            if not apart:
                return True
        elif apart:
            always.add(node.name)
    return False


def _routed(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Renumber channels: (..., C) per source -> (..., outputs)."""
    assert node.routes is not None
    shape = torch.broadcast_shapes(*(x.shape[:-1] for x in inputs))
    joined = torch.cat([x.expand(*shape, x.shape[-1]) for x in inputs], -1)
    starts = [0, *accumulate(node.input_channels)]
    return joined[..., [starts[i] + c for i, c in node.routes]]


def _in_groups(node: Node, inputs: Sequence[Tensor]) -> Tensor:
    """Whether any input of an output's group differs: (..., C) per source -> (..., outputs)."""
    if node.channelwise:
        return reduce(_either, inputs)
    same = [1 - _any_of(x.unflatten(-1, (node.groups, -1))) for x in inputs]
    some = 1 - reduce(torch.mul, same)
    return some.expand(*some.shape[:-1], node.outputs // node.groups).flatten(-2)


def _before_gates(need: Tensor, gates: Tensor, *, mixed: bool, continued: bool) -> Tensor:
    """Return which channels of each stream are needed before the gate.

    Args:
        need: (..., T+1, C) behind it, or (..., 2T+1, C) with n_t ∨ n_shared of every task.
        gates: (..., T, C).
        mixed: Whether some pattern reads the mix of the tasks' features.
        continued: Whether the shared stream continues from itself and is read.
    """
    count = gates.shape[-2]
    tasks = need[..., :count, :]
    if need.shape[-2] > count + 1:
        tasks = need[..., count + 1 :, :]
        shared = tasks * (1 - gates)
        others = [_any(_without(shared, t)) for t in range(count)]
        either = _either(tasks, torch.cat(others, -2))
        return torch.cat([tasks * gates, _any(shared), either], -2)
    if mixed:
        tasks = _either(tasks, need[..., -1:, :])
    shared = _any(tasks * (1 - gates))
    if continued:
        shared = _either(shared, need[..., -1:, :])
    return torch.cat([tasks * gates, shared], -2)


def _without(streams: Tensor, t: int) -> Tensor:
    """(..., T, C) -> (..., T - 1, C) all streams but one."""
    return torch.cat([streams[..., :t, :], streams[..., t + 1 :, :]], -2)


def _either(one: Tensor, other: Tensor) -> Tensor:
    """∨ of each entry."""
    return 1 - (1 - one) * (1 - other)


def _any(streams: Tensor) -> Tensor:
    """⋁ over streams: (..., S, C) -> (..., 1, C)."""
    return 1 - (1 - streams).prod(-2, keepdim=True)


def _any_of(channels: Tensor) -> Tensor:
    """⋁ over the last dimension, which is kept."""
    return 1 - (1 - channels).prod(-1, keepdim=True)


def _add_need(needed: dict[str, Tensor], source: str, need: Tensor) -> None:
    """Note that one more node needs channels of a source."""
    if source != INPUT:
        old = needed.get(source)
        needed[source] = need if old is None else _either(old, need)
