"""Which channels a hard gate pattern leaves alive, and which of them are one and the same.

Every channel of every stream is a value, and equal values get one number. The outputs of a node
with weights are values of their own in each stream, which has its own weights. A gate does not
compute anything: it picks the number of the task's or of the shared channel. The β mix of equal
numbers is that number, since its weights sum to 1. A node without weights gives equal outputs for
equal inputs, in any stream. So where all tasks pick the shared stream, their features are one value
and are computed once.

Aliveness is then propagated backwards from the heads: a live output needs the channels of its
source, in its stream, that its node names (`Node.needed_inputs`); a live mix needs all tasks'
values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.models.gated_supernet import mixed_nodes
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT
from gatesearch.pruning.description import IMAGE_CHANNELS

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Values:
    """Numbered values of all streams under one gate pattern.

    Attributes:
        tasks: Number of tasks T; stream T is the shared one.
        raw: (node, stream) -> (C,) values before the gate; for nodes without gates the same as
            `read`.
        read: (node, stream) -> (C,) values that consumers in that stream read. The shared stream
            is left out where nothing can read it.
        mixes: Gated node -> mixed value -> the T values it mixes, and its channel.
        arguments: Node without weights -> value -> the values it is computed from, one per source.
        count: Number of values.
    """

    tasks: int
    raw: Mapping[tuple[str, int], Ids]
    read: Mapping[tuple[str, int], Ids]
    mixes: Mapping[str, Mapping[int, tuple[Ids, int]]]
    arguments: Mapping[str, Mapping[int, tuple[int, ...]]]
    count: int


def number_values(graph: Graph, gates: Mapping[str, NDArray[np.bool_]]) -> Values:
    """Number the values of every stream.

    Args:
        graph: The encoder.
        gates: Gated node -> (T, C), True where the gate is open: the task has its own channel.
    """
    tasks = next(iter(gates.values())).shape[0]
    mixed = mixed_nodes(graph, tuple(gates))
    raw: dict[tuple[str, int], Ids] = {}
    read: dict[tuple[str, int], Ids] = {
        (INPUT, s): np.arange(IMAGE_CHANNELS) for s in range(tasks + 1)
    }
    mixes: dict[str, dict[int, tuple[Ids, int]]] = {}
    arguments: dict[str, dict[int, tuple[int, ...]]] = {}
    count = IMAGE_CHANNELS
    for node in graph:
        known: dict[tuple[int, ...], int] = {}
        for stream in range(tasks + 1):
            if any((source, stream) not in read for source in node.sources):
                continue
            if node.has_weights:
                raw[node.name, stream] = np.arange(count, count + node.outputs)
                count += node.outputs
                continue
            inputs = np.stack([read[source, stream] for source in node.sources], 1)
            ids = []
            for channels in map(tuple, inputs.tolist()):
                if channels not in known:
                    known[channels] = count
                    count += 1
                ids.append(known[channels])
            raw[node.name, stream] = np.array(ids)
        if not node.has_weights:
            arguments[node.name] = {value: channels for channels, value in known.items()}
        if node.name not in gates:
            read |= {(node.name, s): raw[node.name, s] for s in _streams(raw, node.name, tasks)}
            continue
        shared = raw[node.name, tasks]
        chosen = np.stack(
            [np.where(on, raw[node.name, t], shared) for t, on in enumerate(gates[node.name])]
        )
        read |= {(node.name, t): ids for t, ids in enumerate(chosen)}
        if node.name in mixed:
            ids, mixes[node.name] = chosen[0].copy(), {}
            for channel in np.flatnonzero((chosen != chosen[0]).any(0)):
                ids[channel] = count
                mixes[node.name][count] = (chosen[:, channel], int(channel))
                count += 1
            read[node.name, tasks] = ids
    return Values(tasks, raw, read, mixes, arguments, count)


def live_values(
    graph: Graph, values: Values, heads: Sequence[Sequence[str]] | None = None
) -> NDArray[np.bool_]:
    """(count,) whether each value is needed by some task's head.

    Args:
        graph: The encoder.
        values: Its values.
        heads: For each task, the nodes that its head reads; the last node when None.
    """
    live = np.zeros(values.count, dtype=bool)
    for task, names in enumerate(heads or [graph.read_by(False)] * values.tasks):
        for name in names:
            live[values.read[name, task]] = True
    for node in reversed(graph.nodes):
        for value, (mixed, _) in values.mixes.get(node.name, {}).items():
            if live[value]:
                live[mixed] = True
        for stream in _streams(values.raw, node.name, values.tasks):
            outputs = torch.from_numpy(live[values.raw[node.name, stream]]).float()
            for source, needed in zip(node.sources, node.needed_inputs(outputs), strict=True):
                live[values.read[source, stream][needed.numpy() > 0]] = True
    return live


def _streams(raw: Mapping[tuple[str, int], Ids], name: str, tasks: int) -> list[int]:
    return [stream for stream in range(tasks + 1) if (name, stream) in raw]
