"""From a trained supernet to the compact network that computes the same."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.models.encoder import ConvNorm, Encoder, key
from gatesearch.models.gated_supernet import SHARED, GatedSupernet
from gatesearch.models.graph import Add, Conv
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import (
    AddStep,
    ChannelSlice,
    ChannelSource,
    ConvStep,
    Description,
    HeadDescription,
    MixStep,
    PoolStep,
    Step,
    Term,
)
from gatesearch.pruning.liveness import IMAGE_CHANNELS, Ids, Values, live_values, number_values

# Above this many runs in one tensor a list of channels is gathered at once.
MOST_RUNS = 4


def extract(supernet: GatedSupernet) -> CompactNet:
    """The compact network of a supernet's hard gates, in evaluation mode, on the CPU.

    Its outputs equal the supernet's in evaluation mode up to rounding; it holds live channels
    only, and no gates.
    """
    gates = {name: on.numpy() for name, on in supernet.hard_gates().items()}
    plan = _Plan(supernet, number_values(supernet.graph, gates))
    compact = CompactNet(plan.description())
    with torch.no_grad():
        for name, layers in plan.weights.items():
            _copy_layers(layers, compact.convs[name])
        for name, weights in plan.mixes.items():
            compact.mixes[name].copy_(weights)
        for task in supernet.tasks:
            compact.heads[task].load_state_dict(supernet.heads[task].state_dict())
    return compact.eval()


class _Plan:
    """Builds the steps node by node, keeping where each live value is stored."""

    def __init__(self, supernet: GatedSupernet, values: Values) -> None:
        self.supernet = supernet
        self.values = values
        self.live = live_values(supernet.graph, values)
        self.ranks = {node.name: self._ranks(node.name) for node in supernet.graph}
        self.steps: list[Step] = []
        self.weights: dict[str, list[tuple[ConvNorm, Ids, Ids]]] = {}
        self.mixes: dict[str, Tensor] = {}
        # Value -> (tensor, channel) where it is stored.
        self.place = np.full((values.count, 2), -1)
        self._store(np.arange(IMAGE_CHANNELS), tensor=0)
        self.names = [*supernet.tasks, SHARED]

    def description(self) -> Description:
        graph = self.supernet.graph
        for node in graph:
            if isinstance(node, Conv) and node.depthwise:
                self._depthwise(node)
            elif isinstance(node, Conv):
                self._convs(node)
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

    def _convs(self, node: Conv) -> None:
        """A convolution for every set of inputs, for all streams together that read it."""
        readers: dict[bytes, tuple[Ids, list[int]]] = {}
        for stream in range(len(self.names)):
            raw = self.values.raw.get((node.name, stream))
            if raw is not None and self.live[raw].any():
                # Channels may enter in any order, as the weights follow: that they are stored in.
                read = self.values.read[node.source, stream]
                inputs = read[np.lexsort((self.place[read, 1], self.place[read, 0]))]
                readers.setdefault(inputs.tobytes(), (inputs, []))[1].append(stream)
        for inputs, streams in readers.values():
            self._conv(node, inputs, streams)

    def _conv(self, node: Conv, inputs: Ids, streams: list[int]) -> None:
        rows, columns = {}, []
        for stream in streams:
            outputs = np.flatnonzero(self.live[self.values.raw[node.name, stream]])
            rows[stream] = outputs[np.argsort(self.ranks[node.name][outputs], kind="stable")]
            order = np.argsort(self.values.read[node.source, stream])
            read = self.values.read[node.source, stream][order]
            columns.append(order[np.searchsorted(read, inputs)])
        self._add_conv(node, inputs, rows, columns)

    def _depthwise(self, node: Conv) -> None:
        """One depthwise convolution for all streams, a stream's channels as what they read lies."""
        rows, inputs = {}, []
        for stream in range(len(self.names)):
            raw = self.values.raw.get((node.name, stream))
            if raw is not None and self.live[raw].any():
                outputs = np.flatnonzero(self.live[raw])
                read = self.values.read[node.source, stream][outputs]
                order = np.lexsort((self.place[read, 1], self.place[read, 0]))
                rows[stream] = outputs[order]
                inputs.append(read[order])
        if rows:
            only = np.zeros(1, dtype=np.int64)
            self._add_conv(node, np.concatenate(inputs), rows, [only] * len(rows))

    def _add_conv(
        self, node: Conv, inputs: Ids, rows: Mapping[int, Ids], columns: Sequence[Ids]
    ) -> None:
        """A convolution of what streams have live, one behind the other.

        Args:
            node: The convolution.
            inputs: Values that it reads.
            rows: Stream -> its live outputs.
            columns: Of each stream, which of its weights' columns stand for the inputs.
        """
        layers = []
        for (stream, outputs), own in zip(rows.items(), columns, strict=True):
            encoder = self.supernet.streams[self.names[stream]]
            assert isinstance(encoder, Encoder)
            layers.append((encoder.layer(node.name), outputs, own))
        name = "_".join([key(node.name), *(self.names[stream] for stream in rows)])
        ids = np.concatenate([self.values.raw[node.name, s][own] for s, own in rows.items()])
        self.weights[name] = layers
        self.steps.append(
            ConvStep(
                name=name,
                source=self._gather(inputs),
                inputs=len(inputs),
                outputs=len(ids),
                kernel=node.kernel,
                stride=node.stride,
                dilation=node.dilation,
                relu=node.relu,
                ceiling=node.ceiling,
                depthwise=node.depthwise,
            )
        )
        self._store(ids)

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
            self.steps.append(AddStep(left=gathers[0], right=gathers[1], relu=node.relu))
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
        # Tasks that chose the same value add it once, at the first of them, with all their weights.
        same = arguments[:, :, None] == arguments[:, None, :]
        first = ~np.tril(same, -1).any(2)
        softmax = self.supernet.beta[key(name)].detach().cpu().softmax(0)[:, channels]
        weights = torch.einsum("ctu,uc->tc", torch.from_numpy(same).to(softmax), softmax)
        weights *= torch.from_numpy(first.T)
        terms = [
            Term(task=t, source=self._gather(arguments[run, t]), start=run[0], stop=run[-1] + 1)
            for t in range(self.values.tasks)
            for run in _runs(np.flatnonzero(first[:, t]))
        ]
        step = MixStep(
            name=f"{key(name)}_mix",
            terms=tuple(terms),
            tasks=self.values.tasks,
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

    def _gather(self, ids: Ids) -> ChannelSource:
        places = self.place[ids]
        assert (places >= 0).all(), "a live value is read before it is computed"
        cuts = np.flatnonzero(np.diff(places[:, 0])) + 1
        pieces: list[ChannelSlice] = []
        for part in np.split(places, cuts):
            tensor, channels = int(part[0, 0]), part[:, 1]
            runs = _runs(channels)
            if len(runs) > MOST_RUNS:
                pieces.append(ChannelSlice(tensor=tensor, channels=tuple(channels.tolist())))
            else:
                pieces += [
                    ChannelSlice(tensor=tensor, start=int(run[0]), stop=int(run[-1]) + 1)
                    for run in runs
                ]
        return tuple(pieces)


def _runs(numbers: Ids) -> list[Ids]:
    """Numbers cut where the next is not one more."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []


def _gray_ranks(bits: NDArray[np.bool_]) -> Ids:
    """(bits, n) columns -> (n,) their places in the reflected Gray code."""
    binary = np.logical_xor.accumulate(bits, axis=0)
    return (binary * 2 ** np.arange(len(bits))[::-1, None]).sum(0)


def _copy_layers(layers: list[tuple[ConvNorm, Ids, Ids]], into: object) -> None:
    """Fill a convolution with the outputs of several layers, one behind the other."""
    assert isinstance(into, ConvNorm)
    into.conv.weight.copy_(
        torch.cat([layer.conv.weight[outputs][:, inputs] for layer, outputs, inputs in layers])
    )
    for name in ("weight", "bias", "running_mean", "running_var"):
        rows = torch.cat([getattr(layer.bn, name)[outputs] for layer, outputs, _ in layers])
        getattr(into.bn, name).copy_(rows)
    into.bn.eps, into.bn.momentum = layers[0][0].bn.eps, layers[0][0].bn.momentum


def sharing(supernet: GatedSupernet) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
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
