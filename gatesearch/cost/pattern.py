"""The cost of a gate pattern without building its network: exact, fast, and differentiable.

Liveness (`gatesearch.pruning.liveness`) counted with probabilities. Let n_s[l, c] be whether stream
s reads channel c of node l on behalf of some head, and G_t the gates behind a gated node. Then

    m_t = n_t ∨ n_shared                  the β mix needs what every task chose
    own_t = m_t ∧ G_t                     the task's own channel is live
    shared = ⋁_t (m_t ∧ ¬G_t)             the shared channel is live
    cost = Σ_l Σ_streams |live outputs| · inputs · k² · h · w

and a live output of a convolution needs all channels of its source. With a ∧ b = a b and
a ∨ b = 1 - (1 - a)(1 - b) the same lines give, for G in {0, 1}, the multiply-adds that fvcore
counts on the extracted network, and for G in (0, 1) what is expected if gates were drawn
independently (up to the dependence between channels that one gate decides together).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget
from gatesearch.cost.macs import count_macs
from gatesearch.models import InterroGate
from gatesearch.models.graph import INPUT, Conv, Graph, Node


@dataclass(frozen=True)
class PatternCost:
    """Cost of the gate patterns of one supernet.

    Attributes:
        graph: The encoder.
        gated: Nodes with gates, in the order of execution.
        mixed: Those whose shared features somebody can read.
        tasks: Number of tasks T.
        macs_a_channel: Convolution -> multiply-adds of one of its output channels.
        params_a_channel: Convolution -> parameters of one, its norm's included.
        head_macs: Multiply-adds of all heads.
        head_params: Parameters of all heads.
    """

    graph: Graph
    gated: tuple[str, ...]
    mixed: tuple[str, ...]
    tasks: int
    macs_a_channel: Mapping[str, int]
    params_a_channel: Mapping[str, int]
    head_macs: int
    head_params: int

    @classmethod
    def of(cls, supernet: InterroGate, input_shape: tuple[int, int, int, int]) -> "PatternCost":
        """For a supernet on images (1, 3, H, W)."""
        whole = count_macs(supernet, input_shape, cross_check=False)
        pixels = _pixels(supernet.graph, (input_shape[2], input_shape[3]))
        weights = {conv.name: conv.inputs * conv.kernel**2 for conv in supernet.graph.convs}
        return cls(
            graph=supernet.graph,
            gated=supernet.gated,
            mixed=supernet.mixed,
            tasks=len(supernet.tasks),
            macs_a_channel={name: count * pixels[name] for name, count in weights.items()},
            params_a_channel={name: count + 2 for name, count in weights.items()},
            head_macs=whole.macs - whole.backbone_macs,
            head_params=sum(p.numel() for p in supernet.heads.parameters()),
        )

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Multiply-adds of the whole network, heads included.

        Args:
            gates: Gated node -> (..., T, C), 0 or 1, or probabilities.

        Returns:
            (...) float64: whole numbers where the gates are.
        """
        live, _ = self._live(gates)
        return self.head_macs + _total(live, self.macs_a_channel)

    def params(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Parameters of the whole network, those of the mix included; as `macs`."""
        live, mixes = self._live(gates)
        total = self.head_params + _total(live, self.params_a_channel)
        return total + _total(mixes, dict.fromkeys(mixes, self.tasks)) if mixes else total

    def share(self, gates: Mapping[str, Tensor], budgets: Sequence[Budget]) -> Tensor:
        """The largest share of any budget that patterns take, (...); at most 1 inside all."""
        measured = [
            self.macs(gates) if budget.measure == "macs" else self.params(gates)
            for budget in budgets
        ]
        limits = [budget.limit for budget in budgets]
        return torch.stack([m / limit for m, limit in zip(measured, limits, strict=True)]).amax(0)

    def overrun(self, open_probability: Mapping[str, Tensor], budgets: Sequence[Budget]) -> Tensor:
        """The regulariser `flops`: max(0, expected cost / budget - 1), a scalar.

        It is to a budget what the paper's hinge is to τ_t.
        """
        return (self.share(open_probability, budgets) - 1).clamp(min=0).float()

    def _live(self, gates: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(convolution -> (..., T+1, C) live outputs, gated node -> (..., 1, C) live mixes)."""
        first = gates[self.gated[0]]
        batch = first.shape[:-2]
        last = self.graph.nodes[-1]
        ends = torch.ones(*batch, self.tasks + 1, last.outputs, device=first.device)
        ends[..., -1, :] = 0
        needed: dict[str, Tensor] = {last.name: ends}
        live: dict[str, Tensor] = {}
        mixes: dict[str, Tensor] = {}
        for node in reversed(self.graph.nodes):
            need = needed.pop(node.name)
            if node.name in gates:
                need, mix = self._through_gates(node, need, gates[node.name].to(need.dtype))
                if mix is not None:
                    mixes[node.name] = mix
            if isinstance(node, Conv):
                live[node.name] = need
                some = 1 - (1 - need).prod(-1, keepdim=True)
                self._ask(needed, node.source, some.expand(*batch, self.tasks + 1, node.inputs))
            else:
                for source in node.sources:
                    self._ask(needed, source, need)
        return live, mixes

    def _through_gates(
        self, node: Node, need: Tensor, gates: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """What is needed of each stream before the gate, and of the mix."""
        tasks, shared, mix = need[..., :-1, :], need[..., -1:, :], None
        if node.name in self.mixed:
            tasks = 1 - (1 - tasks) * (1 - shared)
            if self.tasks > 1:
                mix = shared * (1 - (1 - gates).prod(-2, keepdim=True))
        closed = 1 - (1 - tasks * (1 - gates)).prod(-2, keepdim=True)
        return torch.cat([tasks * gates, closed], -2), mix

    def _ask(self, needed: dict[str, Tensor], source: str, need: Tensor) -> None:
        if source != INPUT:
            old = needed.get(source)
            needed[source] = need if old is None else 1 - (1 - old) * (1 - need)


def _total(live: Mapping[str, Tensor], weights: Mapping[str, int]) -> Tensor:
    """Σ over nodes of live channels times weight, in float64, which holds such numbers exactly."""
    return torch.stack([x.sum((-2, -1)).double() * weights[name] for name, x in live.items()]).sum(
        0
    )


def _pixels(graph: Graph, size: tuple[int, int]) -> dict[str, int]:
    """Pixels of every node's output for images of `size`."""
    sizes = {INPUT: size}
    for node in graph:
        height, width = sizes[node.sources[0]]
        if isinstance(node, Conv):
            reach = node.dilation * (node.kernel - 1)
            height, width = (
                (side + 2 * node.padding - reach - 1) // node.stride + 1 for side in (height, width)
            )
        elif len(node.sources) == 1:  # the stem's pooling
            height, width = ((side - 1) // 2 + 1 for side in (height, width))
        sizes[node.name] = (height, width)
    return {name: height * width for name, (height, width) in sizes.items()}
