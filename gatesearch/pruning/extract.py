"""From a trained supernet to the compact network that computes the same."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gatesearch.errors import UsageError
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.gated_supernet import SHARED, GatedSupernet
from gatesearch.models.layer import Layer, LayerSlice
from gatesearch.models.model_factory import nodes_read
from gatesearch.models.nodes import IMAGE_CHANNELS, Node, Step
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import (
    AnyStep,
    Description,
    HeadDescription,
)
from gatesearch.pruning.liveness import Ids, live_values, number_values
from gatesearch.pruning.mix import MixStep, Term
from gatesearch.pruning.sharing import sharing

# Channels in more runs of one tensor than this are read by a list of their numbers.
MOST_RUNS = 4


def extract(supernet: GatedSupernet) -> CompactNet:
    """Build the compact network of a supernet's hard gates, in evaluation mode, on the CPU.

    Its outputs equal the supernet's in evaluation mode up to rounding; it holds live channels
    only, and no gates. Its heads are copies of the supernet's, whatever modules these are.

    Args:
        supernet: A network of `gs.InterroGate`, or the `interrogate` one of `gs.build_model`; it is
            not changed.

    Returns:
        A plain module: image (B, 3, H, W) -> task -> what the task's head returns.

    Raises:
        UsageError: It is no supernet, or one inside a wrapper.
    """
    if not isinstance(supernet, GatedSupernet):
        raise not_a_supernet("extract", supernet)
    plan = _Plan(supernet, sharing(supernet).own)
    compact = CompactNet(plan.description(), copied_heads(supernet))
    with torch.no_grad():
        for name, slices in plan.slices.items():
            cast(Layer, compact.convs[name]).copy_channels(slices)
        for name, weights in plan.mixes.items():
            compact.mixes[name].copy_(weights)
    return compact.eval()


def describe_pattern(supernet: GatedSupernet, gates: Mapping[str, Tensor]) -> Description:
    """Describe the compact network of a gate pattern that mixes nothing; it needs no weights.

    Args:
        supernet: A supernet, on any device.
        gates: Gated node -> (T, C) bool.
    """
    return _Plan(supernet, sharing(supernet, gates).own).description()


def not_a_supernet(function: str, found: object) -> UsageError:
    """Make the error for a function that was called with something else than a supernet."""
    return UsageError(
        f"{function} takes a supernet, as of gs.InterroGate, found {type(found).__name__}; pass "
        "the network itself: `.module` of DataParallel, `._orig_mod` of torch.compile, or the "
        "attribute of a LightningModule that holds it"
    )


class CopyOfComputed(TorchFunctionMode):
    """Lets `copy.deepcopy` copy the values of tensors that were computed from others.

    Torch refuses to copy these. Modules hold them under `weight_norm`, `spectral_norm` and pruning
    of torch, or where they remember what they computed last.
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call a function of torch, or copy the tensor."""
        if function is Tensor.__deepcopy__ and isinstance(args[0], Tensor) and not args[0].is_leaf:
            return args[0].detach().clone()
        return function(*args, **(kwargs or {}))


def copied_heads(supernet: GatedSupernet) -> dict[str, nn.Module]:
    """Copy every task's head to the CPU, in the dtype and memory format of a new network.

    Tasks that share a head, or layers of it, share the copy too.
    """
    with CopyOfComputed(), torch.no_grad():
        heads = copy.deepcopy(supernet.heads)
    # Copies of scripted modules would else have parameters that are computed, or none to train.
    for copied, parameter in zip(heads.parameters(), supernet.heads.parameters(), strict=True):
        copied.requires_grad_(parameter.requires_grad)
    heads.cpu().to(memory_format=torch.contiguous_format)
    # A head's tensors of another dtype stay as they are, unless the whole supernet was cast.
    if next(supernet.parameters()).dtype != torch.get_default_dtype():
        heads.to(torch.get_default_dtype())
    return {task: heads[task] for task in supernet.tasks}


class _Plan:
    """Builds the steps node by node, remembering where each live value is stored.

    Args:
        supernet: The supernet.
        own: What tasks own (`Sharing.own`). Open gates whose channels nothing reads would only
            scatter the others.

    Attributes:
        slices: Step -> the parts of the supernet's layers that its weights are taken from.
        mixes: Step -> its weights, (T, C).
    """

    def __init__(self, supernet: GatedSupernet, own: Mapping[str, Tensor]) -> None:
        self.supernet = supernet
        gates = {name: on.numpy() for name, on in own.items()}
        self.values = number_values(supernet.graph, gates, mix=supernet.mix)
        self.heads_read = nodes_read(supernet.graph, supernet.head_specs)
        self.live = live_values(supernet.graph, self.values, self.heads_read)
        self.gate_ranks = self._gate_ranks()
        self.steps: list[Step] = []
        self.slices: dict[str, list[LayerSlice]] = {}
        self.mixes: dict[str, Tensor] = {}
        # Value -> (tensor, channel) where it is stored.
        self.positions = np.full((self.values.count, 2), -1)
        self._store(np.arange(IMAGE_CHANNELS), tensor=0)
        self.stream_names = [*supernet.tasks, SHARED]

    def description(self) -> Description:
        graph = self.supernet.graph
        for node in graph:
            if node.routes is None:
                self._compute(node)
            self._mix(node.name)
        heads = {}
        for t, (task, spec) in enumerate(self.supernet.head_specs.items()):
            sources = [self._source(self.values.read[name, t]) for name in self.heads_read[t]]
            heads[task] = HeadDescription.of(spec, sources)
        return Description(steps=cast(tuple[AnyStep, ...], tuple(self.steps)), heads=heads)

    def _compute(self, node: Node) -> None:
        """Add the steps that compute a node's live values."""
        if not node.has_weights:
            self._without_weights(node)
        elif node.groups > 1 or node.channelwise:
            self._in_groups(node)
        elif node.whole_groups:
            self._whole(node)
        else:
            self._dense(node)

    def _dense(self, node: Node) -> None:
        """Add one layer for every set of inputs, for all streams together that read this set."""
        (source,) = node.sources
        readers: dict[bytes, tuple[Ids, list[int]]] = {}
        for stream in self._live_streams(node):
            # Weights can follow any order of the inputs: the one in which they are stored.
            read = self.values.read[source, stream]
            inputs = read[self._stored_order(read)]
            readers.setdefault(inputs.tobytes(), (inputs, []))[1].append(stream)
        for inputs, streams in readers.values():
            rows, columns = {}, []
            for stream in streams:
                outputs = np.flatnonzero(self.live[self.values.raw[node.name, stream]])
                rows[stream] = outputs[self._gate_order(node.name, outputs)]
                order = np.argsort(self.values.read[source, stream])
                read = self.values.read[source, stream][order]
                columns.append(order[np.searchsorted(read, inputs)])
            self._add_layer(node, [inputs], rows, columns)

    def _in_groups(self, node: Node) -> None:
        """Add one layer for all streams; a stream's groups are in the order of gates or inputs."""
        rows: dict[int, Ids] = {}
        inputs: list[list[Ids]] = [[] for _ in node.sources]
        for stream in self._live_streams(node):
            live = self.live[self.values.raw[node.name, stream]].reshape(node.groups, -1)
            groups = np.flatnonzero(live.any(1))
            read = [
                self.values.read[source, stream].reshape(node.groups, -1)[groups]
                for source in node.sources
            ]
            numbers = np.arange(node.outputs).reshape(node.groups, -1)
            if node.name in self.gate_ranks:
                order = self._gate_order(node.name, numbers[groups, 0])
            else:
                order = self._stored_order(read[0][:, 0])
            rows[stream] = numbers[groups[order]].ravel()
            for ids, found in zip(inputs, read, strict=True):
                ids.append(found[order].ravel())
        if rows:
            within = np.arange(node.input_channels[0] // node.groups)
            together = [np.concatenate(ids) for ids in inputs]
            self._add_layer(node, together, rows, [within] * len(rows))

    def _whole(self, node: Node) -> None:
        """Add one layer for every stream, with all channels."""
        for stream in self._live_streams(node):
            inputs = [self.values.read[source, stream] for source in node.sources]
            outputs = np.arange(node.outputs)
            if node.symmetric:  # then in the order in which they are stored
                outputs = self._stored_order(inputs[0])
                inputs = [ids[outputs] for ids in inputs]
            self._add_layer(node, inputs, {stream: outputs}, [np.arange(node.input_channels[0])])

    def _add_layer(
        self,
        node: Node,
        inputs: Sequence[Ids],
        rows: Mapping[int, Ids],
        columns: Sequence[Ids],
    ) -> None:
        """Add a step with the live outputs of several streams, one stream after the other.

        Args:
            node: A node with weights.
            inputs: Values that the step reads, for each source.
            rows: Stream -> its live output channels.
            columns: For each stream, the input channels of its weights that meet `inputs`.
        """
        slices = []
        for (stream, outputs), kept_inputs in zip(rows.items(), columns, strict=True):
            encoder = cast(Encoder, self.supernet.streams[self.stream_names[stream]])
            slices.append(LayerSlice(encoder.layer(node.name), outputs, kept_inputs))
        name = "_".join([module_key(node.name), *(self.stream_names[stream] for stream in rows)])
        ids = np.concatenate(
            [self.values.raw[node.name, stream][outputs] for stream, outputs in rows.items()]
        )
        self.slices[name] = slices
        self._add_step(node, name, inputs, ids)

    def _add_step(self, node: Node, name: str, inputs: Sequence[Ids], ids: Ids) -> None:
        """Add a step that computes values from others."""
        sources = [self._source(read) for read in inputs]
        self.steps.append(node.step(name=name, sources=sources, outputs=len(ids)))
        self._store(ids)

    def _without_weights(self, node: Node) -> None:
        """Add one step for all distinct live groups; one for each where a group is all channels."""
        found = self.values.distinct[node.name]
        alive = np.flatnonzero(self.live[found.outputs].any(1))
        if not len(alive):
            return
        # By readers first, then in the order of the argument that leaves the fewest runs to read.
        stored = [self.positions[ids[alive, 0]] for ids in found.inputs]
        readers = self._readers(node.name, found.outputs[alive, 0])
        orders = [np.lexsort((by[:, 1], by[:, 0], readers)) for by in stored]
        order = min(orders, key=lambda order: sum(_run_count(by[order]) for by in stored))
        alive = alive[order]
        apart = node.whole_groups and node.groups == 1
        for groups in alive[:, None] if apart else [alive]:
            inputs = [ids[groups].ravel() for ids in found.inputs]
            outputs = found.outputs[groups].ravel()
            if apart and node.symmetric:
                order = self._stored_order(inputs[0])
                inputs, outputs = [ids[order] for ids in inputs], outputs[order]
            self._add_step(node, module_key(node.name), inputs, outputs)

    def _mix(self, name: str) -> None:
        """Add the live mixes behind a gated node."""
        mixes = {v: m for v, m in self.values.mixes.get(name, {}).items() if self.live[v]}
        if not mixes:
            return
        ids = np.array(list(mixes), dtype=np.int64)
        channels = np.array([channel for _, channel in mixes.values()])
        order = self._gate_order(name, channels)
        ids, channels = ids[order], channels[order]
        arguments = np.stack([mixes[value][0] for value in ids.tolist()])
        # Tasks that chose the same value add it once, at the first of them, with all their weights.
        same = arguments[:, :, None] == arguments[:, None, :]
        first = ~np.tril(same, -1).any(2)
        softmax = self.supernet.beta[module_key(name)].detach().cpu().softmax(0)[:, channels]
        weights = torch.einsum("ctu,uc->tc", torch.from_numpy(same).to(softmax), softmax)
        weights *= torch.from_numpy(first.T)
        terms = [
            Term(task=t, source=self._source(arguments[run, t]), start=run[0], stop=run[-1] + 1)
            for t in range(self.values.tasks)
            for run in _runs(np.flatnonzero(first[:, t]))
        ]
        step = MixStep(
            name=f"{module_key(name)}_mix",
            terms=tuple(terms),
            tasks=self.values.tasks,
            channels=len(ids),
        )
        self.steps.append(step)
        self.mixes[step.name] = weights
        self._store(ids)

    def _gate_ranks(self) -> dict[str, Ids]:
        """Node -> (C,) ranks of its channels by its gates, or else by the gates behind it.

        These are the gates of a channelwise reader, such as a batch norm or an activation, which
        then reads what is in its own order. Nodes with neither are left out.
        """
        ranks: dict[str, Ids] = {}
        for node in reversed(self.supernet.graph.nodes):
            if node.name in self.supernet.units:
                ranks[node.name] = self._ranks(node.name)
            if node.channelwise and node.name in ranks:
                ranks[node.sources[0]] = ranks[node.name]
        return ranks

    def _gate_order(self, name: str, channels: Ids) -> Ids:
        """Indices that sort some channels of a node by its ranks, if it has any."""
        ranks = self.gate_ranks.get(name)
        return (
            np.arange(len(channels))
            if ranks is None
            else np.argsort(ranks[channels], kind="stable")
        )

    def _ranks(self, name: str) -> Ids:
        """(C,) rank of each channel by which tasks have their own: one order for all streams.

        Ranks follow the Gray code, in which the channels of one task lie in few runs.
        """
        raw, read = self.values.raw, self.values.read
        shared = raw.get((name, self.values.tasks))
        has_own = [
            (read[name, t] == raw[name, t]) & (raw[name, t] != shared)
            for t in range(self.values.tasks)
        ]
        return _gray_ranks(np.stack(has_own))

    def _readers(self, name: str, ids: Ids) -> Ids:
        """Rank of each value by which streams read it."""
        streams = range(len(self.stream_names))
        read = [self.values.read.get((name, s), np.zeros(0, dtype=np.int64)) for s in streams]
        return _gray_ranks(np.stack([np.isin(ids, values) for values in read]))

    def _live_streams(self, node: Node) -> list[int]:
        """Streams in which the node has a live output."""
        raw = self.values.raw
        streams = [s for s in range(len(self.stream_names)) if (node.name, s) in raw]
        return [stream for stream in streams if self.live[raw[node.name, stream]].any()]

    def _stored_order(self, ids: Ids) -> Ids:
        """Indices that sort values by where they are stored."""
        return np.lexsort((self.positions[ids, 1], self.positions[ids, 0]))

    def _store(self, ids: Ids, tensor: int | None = None) -> None:
        """Note that values are the channels of a tensor, by default of the last step's."""
        self.positions[ids, 0] = len(self.steps) if tensor is None else tensor
        self.positions[ids, 1] = np.arange(len(ids))

    def _source(self, ids: Ids) -> ChannelSource:
        """Where values are stored, in few slices."""
        return source_of(self.positions[ids])


def source_of(positions: Ids) -> ChannelSource:
    """Describe channels by few slices.

    Args:
        positions: (n, 2) tensor of each channel, and channel of that tensor.
    """
    assert (positions >= 0).all(), "a live value is read before it is computed"
    cuts = np.flatnonzero(np.diff(positions[:, 0])) + 1
    pieces: list[ChannelSlice] = []
    for part in np.split(positions, cuts):
        pieces += _slices_of(int(part[0, 0]), part[:, 1])
    return tuple(pieces)


def _slices_of(tensor: int, channels: Ids) -> list[ChannelSlice]:
    """List slices of one tensor that together are some of its channels, in their order."""
    runs = _runs(channels)
    if len(runs) > MOST_RUNS:
        return [ChannelSlice(tensor=tensor, channels=tuple(channels.tolist()))]
    return [ChannelSlice(tensor=tensor, start=int(run[0]), stop=int(run[-1]) + 1) for run in runs]


def _runs(numbers: Ids) -> list[Ids]:
    """Numbers cut where the next is not one more."""
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1) if len(numbers) else []


def _run_count(positions: Ids) -> int:
    """Count the runs in which (n, 2) channels are stored."""
    return 1 + int((np.diff(positions, axis=0) != (0, 1)).any(1).sum())


def _gray_ranks(bits: NDArray[np.bool_]) -> Ids:
    """(bits, n) columns -> (n,) their ranks in the reflected Gray code."""
    binary = np.logical_xor.accumulate(bits, axis=0)
    return (binary * 2 ** np.arange(len(bits))[::-1, None]).sum(0)
