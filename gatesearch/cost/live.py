"""Which channels of which stream a gate pattern leaves alive, without building its network.

Liveness (`gatesearch.pruning.liveness`) counted with probabilities. Let n_s[l, c] be whether stream
s reads channel c of node l on behalf of some head, and G_t the gates behind a gated node. Then

    m_t = n_t ∨ n_shared                  the β mix needs what every task chose
    task_t = m_t ∧ G_t                    the task's own channel is live
    shared = ⋁_t (m_t ∧ ¬G_t)             the shared channel is live

and a live output needs the channels that its node names (`Node.needed_inputs`). With a ∧ b = a b
and a ∨ b = 1 - (1 - a)(1 - b) the same lines are exact for G in {0, 1}, and for G in (0, 1) give
the expectation if gates were drawn independently (up to the dependence between channels that one
gate decides together).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT


@dataclass(frozen=True)
class Live:
    """Live channels of patterns; T+1 streams, the shared one last.

    Attributes:
        outputs: Node with weights -> (..., T+1, C) its outputs.
        elements: Element-wise node -> (..., T+1, C) its values; equal values in several streams
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
    heads: Sequence[Sequence[str]] | None = None,
) -> Live:
    """Compute the live channels of patterns.

    Args:
        graph: The encoder.
        gates: Gated node -> (..., T, C), 0 or 1, or probabilities.
        mixed: Gated nodes whose mixed shared features some pattern reads.
        heads: For each task, the nodes that its head reads; the last node when None.
    """
    first = next(iter(gates.values()))
    *batch, tasks, _ = first.shape
    heads = heads or [graph.read_by(False)] * tasks
    needed: dict[str, Tensor] = {}
    for name in {name: None for names in heads for name in names}:
        ends = torch.zeros(*batch, tasks + 1, graph.channels(name), device=first.device)
        ends[..., [t for t, names in enumerate(heads) if name in names], :] = 1
        needed[name] = ends
    outputs: dict[str, Tensor] = {}
    elements: dict[str, Tensor] = {}
    mixes: dict[str, Tensor] = {}
    for node in reversed(graph.nodes):
        need = needed.pop(node.name)
        if node.name in gates:
            gate = gates[node.name].to(need.dtype)
            if node.name in mixed and tasks > 1:
                mixes[node.name] = need[..., -1:, :] * _any(gate)
            need = _before_gates(need, gate, mixed=node.name in mixed)
        (outputs if node.has_weights else elements)[node.name] = need
        for source, channels in zip(node.sources, node.needed_inputs(need), strict=True):
            _add_need(needed, source, channels)
    return Live(outputs, elements, mixes)


def distinct_elements(
    graph: Graph, gates: Mapping[str, Tensor], elements: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Count the values of element-wise nodes that a compact network computes.

    An element-wise node of equal inputs gives equal values in all streams, which are computed once.
    Exact for G in {0, 1} and two tasks or more. (A single task's mix is the task's feature, which
    is counted twice here.)

    Args:
        graph: The encoder.
        gates: Gated node -> (..., T, C).
        elements: `Live.elements` under these gates.

    Returns:
        Element-wise node -> (...) channels.
    """
    tasks = next(iter(gates.values())).shape[-2]
    # Node -> (..., T+1, C): where consumers in a stream read another value than the shared one
    # before the gate.
    differs: dict[str, Tensor] = {}
    distinct: dict[str, Tensor] = {}
    for node in graph:
        if node.has_weights:
            other = torch.ones(tasks + 1, node.outputs, device=next(iter(gates.values())).device)
            other[-1] = 0
        else:
            other = reduce(_either, (differs[source] for source in node.sources))
            need = elements[node.name]
            others = (need * other).sum(-2)
            distinct[node.name] = (others + _any(need * (1 - other))[..., 0, :]).sum(-1)
        if node.name in gates:
            gate = gates[node.name].to(other.dtype)
            other = torch.cat([gate, _any(gate)], -2)
        differs[node.name] = other
    return distinct


def _before_gates(need: Tensor, gates: Tensor, *, mixed: bool) -> Tensor:
    """Return which channels of each stream are needed before the gate."""
    tasks = need[..., :-1, :]
    if mixed:
        tasks = _either(tasks, need[..., -1:, :])
    return torch.cat([tasks * gates, _any(tasks * (1 - gates))], -2)


def _either(one: Tensor, other: Tensor) -> Tensor:
    """∨ of each entry."""
    return 1 - (1 - one) * (1 - other)


def _any(streams: Tensor) -> Tensor:
    """⋁ over streams: (..., S, C) -> (..., 1, C)."""
    return 1 - (1 - streams).prod(-2, keepdim=True)


def _add_need(needed: dict[str, Tensor], source: str, need: Tensor) -> None:
    """Note that one more node needs channels of a source."""
    if source != INPUT:
        old = needed.get(source)
        needed[source] = need if old is None else _either(old, need)
