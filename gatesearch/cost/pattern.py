"""The cost of a gate pattern without building its network: exact, fast, and differentiable.

    cost = Σ_l Σ_streams |live outputs| · channels read by each · k² · h · w

gives for hard gates the multiply-adds that fvcore counts on the extracted network, and for
probabilities their expectation (`gatesearch.cost.live`); parameters in the same way. Latency is no
such sum, but it is close to one of measured layers (`gatesearch.cost.latency`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import Tensor

from gatesearch.cost.budget import Budget
from gatesearch.cost.events import ALL, Firsts, first_of_events
from gatesearch.cost.heads import macs_of_head
from gatesearch.cost.latency import LatencyTable
from gatesearch.cost.live import Live, distinct_elements, live_channels
from gatesearch.cost.macs import count_macs
from gatesearch.cost.sizes import node_sizes
from gatesearch.models import GatedSupernet
from gatesearch.models.channel_units import Units
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import nodes_read


@dataclass(frozen=True)
class PatternCost:
    """Cost of the gate patterns of one supernet.

    Attributes:
        graph: The encoder.
        gated: Nodes with gates, in the order of execution.
        mixed: Those whose mixed shared features some pattern reads.
        units: Gated node -> (C,) number of the gate of each channel.
        tasks: Number of tasks T.
        macs_per_channel: Node -> multiply-adds per output channel; those that cost nothing are
            left out.
        params_per_channel: Node with weights -> parameters per output channel, its norm's included.
        head_macs: Multiply-adds of all heads.
        head_params: Parameters of all heads.
        heads: For each task, the nodes that its head reads.
        latency: Measured layers, which estimates of latency need.
        firsts: Channels that count once where several share a gate.
        continued: Gated nodes behind which the shared stream continues from itself and is read.
        alone: Task -> cost of what its outputs alone need, for those tasks that budgets bound.
    """

    graph: Graph
    gated: tuple[str, ...]
    mixed: tuple[str, ...]
    units: Units
    tasks: int
    macs_per_channel: Mapping[str, int]
    params_per_channel: Mapping[str, int | Fraction]
    head_macs: int
    head_params: int
    heads: tuple[tuple[str, ...], ...]
    latency: LatencyTable | None = None
    firsts: Firsts = ALL
    continued: tuple[str, ...] = ()
    alone: Mapping[str, "PatternCost"] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        supernet: GatedSupernet,
        input_shape: tuple[int, int, int, int],
        *,
        latency: LatencyTable | None = None,
        tasks: Sequence[str] = (),
    ) -> "PatternCost":
        """Build it for a supernet on images (1, 3, H, W).

        Args:
            supernet: The supernet.
            input_shape: (1, 3, H, W) of the image.
            latency: Measured layers, for estimates of latency.
            tasks: Tasks whose own costs budgets bound.
        """
        whole = count_macs(supernet, input_shape, cross_check=False)
        sizes = node_sizes(supernet.graph, (input_shape[2], input_shape[3]))
        weighted = supernet.graph.weighted_nodes
        heads = nodes_read(supernet.graph, supernet.head_specs)
        whole_cost = cls(
            graph=supernet.graph,
            gated=supernet.gated,
            mixed=supernet.mixed,
            units=supernet.units,
            tasks=len(supernet.tasks),
            macs_per_channel={
                n.name: macs for n in supernet.graph if (macs := n.macs_per_channel(sizes))
            },
            params_per_channel={n.name: n.params_per_channel for n in weighted},
            head_macs=whole.macs - whole.backbone_macs,
            head_params=sum(p.numel() for p in supernet.heads.parameters()),
            heads=heads,
            latency=latency,
            firsts=first_of_events(supernet.graph, supernet.units, heads),
            continued=supernet.continued,
        )
        alone = {}
        for task in tasks:
            own = tuple(
                names if name == task else ()
                for name, names in zip(supernet.tasks, heads, strict=True)
            )
            alone[task] = replace(
                whole_cost,
                head_macs=macs_of_head(supernet, task, sizes),
                head_params=sum(p.numel() for p in supernet.heads[task].parameters()),
                heads=own,
                latency=None,
                firsts=first_of_events(supernet.graph, supernet.units, own),
            )
        return replace(whole_cost, alone=alone)

    def live(self, gates: Mapping[str, Tensor]) -> Live:
        """Compute the live channels of patterns; `gates` as for `macs`."""
        return live_channels(
            self.graph, gates, mixed=self.mixed, continued=self.continued, heads=self.heads,
            firsts=self.firsts,
        )  # fmt: skip

    def macs(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Count the multiply-adds of the whole network, heads included.

        Args:
            gates: Gated node -> (..., T, C), 0 or 1, or probabilities.

        Returns:
            (...) float64: whole numbers where the gates are.
        """
        return self._macs(self.live(gates), gates)

    def params(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Count the parameters of the whole network, those of the mix included; as `macs`."""
        return self._params(self.live(gates))

    def seconds(self, gates: Mapping[str, Tensor]) -> Tensor:
        """Estimate the latency by the table of measured layers; as `macs`.

        Raises:
            ValueError: There is no such table.
        """
        return self._seconds(self.live(gates), gates)

    def share(self, gates: Mapping[str, Tensor], budgets: Sequence[Budget]) -> Tensor:
        """Return the largest share of any budget that patterns take, (...); at most 1 inside all.

        Raises:
            ValueError: A budget of latency, and no table of measured layers.
            KeyError: A budget of a task that is not in `alone`.
        """
        live = self.live(gates)
        measures: dict[str, Callable[[], Tensor]] = {
            "macs": lambda: self._macs(live, gates),
            "params": lambda: self._params(live),
            "latency": lambda: self._seconds(live, gates),
        }
        shares = [
            (self.alone[b.task].macs(gates) if b.task else measures[b.measure]()) / b.limit
            for b in budgets
        ]
        return torch.stack(shares).amax(0)

    def budget_hinge(
        self, open_probability: Mapping[str, Tensor], budgets: Sequence[Budget]
    ) -> Tensor:
        """The regulariser `flops`: max(0, expected cost / budget - 1), a scalar.

        It bounds the cost as the paper's hinge bounds the shares of open gates by τ_t.
        """
        return (self.share(open_probability, budgets) - 1).clamp(min=0).float()

    def _macs(self, live: Live, gates: Mapping[str, Tensor]) -> Tensor:
        total = self.head_macs + _total(live.outputs, self.macs_per_channel)
        elements = {n: x for n, x in live.elements.items() if n in self.macs_per_channel}
        if elements:
            for name, channels in self._distinct(live, gates).items():
                total = total + self.macs_per_channel.get(name, 0) * channels.double()
        return total

    def _distinct(self, live: Live, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return distinct_elements(
            self.graph, gates, live.elements, mixed=self.mixed, continued=self.continued,
            firsts=self.firsts,
        )  # fmt: skip

    def _params(self, live: Live) -> Tensor:
        total = self.head_params + _total(live.outputs, self.params_per_channel)
        if live.mixes:
            total = total + _total(live.mixes, dict.fromkeys(live.mixes, self.tasks))
        return total

    def _seconds(self, live: Live, gates: Mapping[str, Tensor]) -> Tensor:
        if self.latency is None:
            raise ValueError(
                "the latency of a pattern needs measured layers; found none: pass `latency` to "
                "PatternCost.of"
            )
        return self.latency.seconds(
            outputs={name: x.sum(-1) for name, x in live.outputs.items()},
            elements=self._distinct(live, gates),
            mixes={name: x.sum((-2, -1)) for name, x in live.mixes.items()},
        )


def _total(live: Mapping[str, Tensor], weights: Mapping[str, int | Fraction]) -> Tensor:
    """Σ over nodes of live channels times weight, in float64, which holds such numbers exactly."""
    totals = []
    for name, x in live.items():
        weight = weights.get(name, 0)
        totals.append(x.sum((-2, -1)).double() * weight.numerator / weight.denominator)
    return torch.stack(totals).sum(0)
