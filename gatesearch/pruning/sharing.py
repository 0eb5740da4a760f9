"""Which channels tasks own in the compact network of a supernet's hard gates."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.models.channel_units import per_channel, per_unit, unit_index
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.model_factory import nodes_read
from gatesearch.pruning.liveness import live_values, number_values


@dataclass(frozen=True)
class Sharing:
    """What tasks own in a compact network.

    Attributes:
        layers: The gated nodes, input first.
        shares: Task -> for each layer the share of its live channels that are its own, in [0, 1];
            0 where the task reads nothing there.
        own: Gated node -> (T, C) bool, True where the task has a channel of its own. An open gate
            whose channel nothing reads has none: closing it gives the same network. Of channels
            that share a gate all are True where one is.
    """

    layers: tuple[str, ...]
    shares: Mapping[str, tuple[float, ...]]
    own: Mapping[str, Tensor]


def sharing(supernet: GatedSupernet, pattern: Mapping[str, Tensor] | None = None) -> Sharing:
    """Tell what tasks own.

    Args:
        supernet: A supernet, on any device.
        pattern: Gated node -> (T, C) bool; the supernet's hard gates when None.
    """
    graph = supernet.graph
    gates = {n: on.numpy() for n, on in (pattern or supernet.hard_gates()).items()}
    values = number_values(graph, gates, mix=supernet.mix)
    live = live_values(graph, values, nodes_read(graph, supernet.head_specs))
    read = {
        name: np.stack([live[values.read[name, t]] for t in range(len(on))])
        for name, on in gates.items()
    }
    shares = {
        task: tuple(_share(read[name][t], on[t]) for name, on in gates.items())
        for t, task in enumerate(supernet.tasks)
    }
    own = {}
    for name, on in gates.items():
        index = unit_index(supernet.units, name)
        owned = torch.from_numpy(read[name] & on)
        own[name] = per_channel(per_unit(owned.float(), index) > 0, index)
    return Sharing(tuple(gates), shares, own)


def _share(live: NDArray[np.bool_], gates: NDArray[np.bool_]) -> float:
    return float((live & gates).sum() / max(1, live.sum()))
