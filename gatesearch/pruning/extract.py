"""From a trained supernet to the compact network that computes the same."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.models.encoder import ConvNorm, Encoder, key
from gatesearch.models.graph import Add, Conv
from gatesearch.models.interrogate import SHARED, InterroGate
from gatesearch.pruning.compact import (
    AddStep,
    CompactNet,
    ConvStep,
    Description,
    Gather,
    HeadDescription,
    MixStep,
    Piece,
    PoolStep,
    Step,
)
from gatesearch.pruning.liveness import IMAGE_CHANNELS, Ids, Values, live_values, number_values

# Above this many runs in one tensor a list of channels is gathered at once.
MOST_RUNS = 4


def extract(supernet: InterroGate) -> CompactNet:
    """The compact network of a supernet's hard gates, in evaluation mode, on the CPU.

    Its outputs equal the supernet's in evaluation mode up to rounding; it holds live channels
    only, and no gates.
    """
    gates = {name: on.numpy() for name, on in supernet.hard_gates().items()}
    plan = _Plan(supernet, number_values(supernet.graph, gates))
    compact = CompactNet(plan.description())
    with torch.no_grad():
        for name, (layer, outputs, inputs) in plan.weights.items():
            _copy_layer(layer, compact.convs[name], outputs, inputs)
        for name, weights in plan.mixes.items():
            compact.mixes[name].copy_(weights)
        for task in supernet.tasks:
            compact.heads[task].load_state_dict(supernet.heads[task].state_dict())
    return compact.eval()


class _Plan:
    """Builds the steps node by node, keeping where each live value is stored."""

    def __init__(self, supernet: InterroGate, values: Values) -> None:
        self.supernet = supernet
        self.values = values
        self.live = live_values(supernet.graph, values)
        self.ranks = {node.name: self._ranks(node.name) for node in supernet.graph}
        self.steps: list[Step] = []
        self.weights: dict[str, tuple[ConvNorm, Ids, Ids]] = {}
        self.mixes: dict[str, Tensor] = {}
        # Value -> (tensor, channel) where it is stored.
        self.place = np.full((values.count, 2), -1)
        self._store(np.arange(IMAGE_CHANNELS), tensor=0)
        self.names = [*supernet.tasks, SHARED]

    def description(self) -> Description:
        graph = self.supernet.graph
        for node in graph:
            if isinstance(node, Conv):
                for stream in range(len(self.names)):
                    if (node.name, stream) in self.values.raw:
                        self._conv(node, stream)
            else:
                self._elementwise(node)
            self._mix(node.name)
        last = graph.nodes[-1].name
        heads = {}
        for t, task in enumerate(self.supernet.tasks):
            spec = self.supernet.head_specs[task]
            heads[task] = HeadDescription(
                source=self._gather(self.values.read[last, t]),
                kind=spec.kind,
                inputs=spec.inputs,
                channels=spec.channels,
                outputs=spec.outputs,
            )
        return Description(steps=tuple(self.steps), heads=heads)

    def _conv(self, node: Conv, stream: int) -> None:
        raw = self.values.raw[node.name, stream]
        outputs = np.flatnonzero(self.live[raw])
        if not len(outputs):
            return
        outputs = outputs[np.argsort(self.ranks[node.name][outputs], kind="stable")]
        # Channels may enter in any order, as the weights follow: the order they are stored in.
        read = self.values.read[node.source, stream]
        inputs = np.lexsort((self.place[read, 1], self.place[read, 0]))
        name = f"{key(node.name)}_{self.names[stream]}"
        self.steps.append(
            ConvStep(
                name=name,
                source=self._gather(read[inputs]),
                inputs=len(inputs),
                outputs=len(outputs),
                kernel=node.kernel,
                stride=node.stride,
                dilation=node.dilation,
                relu=node.relu,
            )
        )
        encoder = self.supernet.streams[self.names[stream]]
        assert isinstance(encoder, Encoder)
        self.weights[name] = (encoder.layer(node.name), outputs, inputs)
        self._store(raw[outputs])

    def _elementwise(self, node: object) -> None:
        name = node.name  # type: ignore[attr-defined]
        parts = self.values.parts[name]
        ids = np.array([value for value in parts if self.live[value]], dtype=np.int64)
        if not len(ids):
            return
        # By readers first, then in the order of the arguments: both sides read in runs.
        places = self.place[[parts[value] for value in ids.tolist()]]
        order = np.lexsort((places[:, 0, 1], *places[:, ::-1, 0].T, self._readers(name, ids)))
        ids = ids[order]
        arguments = np.array([parts[value] for value in ids.tolist()])
        gathers = [self._gather(column) for column in arguments.T]
        if isinstance(node, Add):
            self.steps.append(AddStep(left=gathers[0], right=gathers[1]))
        else:
            self.steps.append(PoolStep(source=gathers[0]))
        self._store(ids)

    def _mix(self, name: str) -> None:
        mixes = {v: m for v, m in self.values.mixes.get(name, {}).items() if self.live[v]}
        if not mixes:
            return
        ids = np.array(list(mixes), dtype=np.int64)
        channels = np.array([channel for _, channel in mixes.values()])
        order = np.argsort(self.ranks[name][channels], kind="stable")
        ids, channels = ids[order], channels[order]
        arguments = np.stack([mixes[value][0] for value in ids.tolist()])
        weights = self.supernet.beta[key(name)].detach().cpu().softmax(0)[:, channels]
        step = MixStep(
            name=f"{key(name)}_mix",
            sources=tuple(self._gather(column) for column in arguments.T),
            channels=len(ids),
        )
        self.steps.append(step)
        self.mixes[step.name] = weights
        self._store(ids)

    def _ranks(self, name: str) -> Ids:
        """(C,) rank of each channel by which tasks chose their own: one order for all streams.

        Ranks follow the Gray code, in which the channels of one task lie in few runs.
        """
        raw, read = self.values.raw, self.values.read
        shared = raw.get((name, self.values.tasks))
        own = [
            (read[name, t] == raw[name, t]) & (raw[name, t] != shared)
            for t in range(self.values.tasks)
        ]
        return _gray_ranks(np.stack(own))

    def _readers(self, name: str, ids: Ids) -> Ids:
        """Rank of each value by which streams read it."""
        streams = range(len(self.names))
        read = [self.values.read.get((name, s), np.zeros(0, dtype=np.int64)) for s in streams]
        return _gray_ranks(np.stack([np.isin(ids, own) for own in read]))

    def _store(self, ids: Ids, tensor: int | None = None) -> None:
        self.place[ids, 0] = len(self.steps) if tensor is None else tensor
        self.place[ids, 1] = np.arange(len(ids))

    def _gather(self, ids: Ids) -> Gather:
        places = self.place[ids]
        assert (places >= 0).all(), "a live value is read before it is computed"
        cuts = np.flatnonzero(np.diff(places[:, 0])) + 1
        pieces: list[Piece] = []
        for part in np.split(places, cuts):
            tensor, channels = int(part[0, 0]), part[:, 1]
            runs = np.split(channels, np.flatnonzero(np.diff(channels) != 1) + 1)
            if len(runs) > MOST_RUNS:
                pieces.append(Piece(tensor=tensor, channels=tuple(channels.tolist())))
            else:
                pieces += [
                    Piece(tensor=tensor, start=int(run[0]), stop=int(run[-1]) + 1) for run in runs
                ]
        return tuple(pieces)


def _gray_ranks(bits: NDArray[np.bool_]) -> Ids:
    """(bits, n) columns -> (n,) their places in the reflected Gray code."""
    binary = np.logical_xor.accumulate(bits, axis=0)
    return (binary * 2 ** np.arange(len(bits))[::-1, None]).sum(0)


def _copy_layer(layer: ConvNorm, into: object, outputs: Ids, inputs: Ids) -> None:
    assert isinstance(into, ConvNorm)
    into.conv.weight.copy_(layer.conv.weight[outputs][:, inputs])
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(into.bn, name).copy_(getattr(layer.bn, name)[outputs])
    into.bn.eps, into.bn.momentum = layer.bn.eps, layer.bn.momentum


def sharing(supernet: InterroGate) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Gated layers, and for each task the share of its live channels that are its own.

    Returns:
        (layers, task -> a share in [0, 1] for each layer; 0 where the task reads nothing there).
    """
    graph = supernet.graph
    gates = {name: on.numpy() for name, on in supernet.hard_gates().items()}
    values = number_values(graph, gates)
    live = live_values(graph, values)
    shares = {
        task: tuple(_share(live[values.read[name, t]], gates[name][t]) for name in gates)
        for t, task in enumerate(supernet.tasks)
    }
    return tuple(gates), shares


def _share(live: NDArray[np.bool_], own: NDArray[np.bool_]) -> float:
    return float((live & own).sum() / max(1, live.sum()))
