"""Which channels a hard gate pattern leaves alive, and which of them are one and the same.

Every channel of every stream is a value, and equal values get one number. The outputs of a node
with weights are values of their own in each stream, which has its own weights. A gate does not
compute anything: it picks the number of the task's or of the shared channel. The β mix of equal
numbers is that number, since its weights sum to 1. A node without weights gives equal outputs for
equal inputs, in any stream. So where all tasks pick the shared stream, their features are one value
and are computed once. A node that only renumbers channels (`Node.routes`) has no values of its own.

Aliveness is then propagated backwards from the heads: a live output needs the channels of its
sources, in its stream, that its node names (`Node.computed`, `Node.needed_inputs`); a live mix
needs all tasks' values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from gatesearch.models.gated_supernet import shared_nodes
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Distinct:
    """The values of a node without weights, by groups of channels; equal ones once.

    Attributes:
        outputs: (n, channels of a group) values.
        inputs: For each source (n, channels of its group) values that they are computed from.
    """

    outputs: Ids
    inputs: tuple[Ids, ...]


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
        distinct: Node without weights, but for those that only renumber -> its values.
        count: Number of values.
    """

    tasks: int
    raw: Mapping[tuple[str, int], Ids]
    read: Mapping[tuple[str, int], Ids]
    mixes: Mapping[str, Mapping[int, tuple[Ids, int]]]
    distinct: Mapping[str, Distinct]
    count: int


def number_values(
    graph: Graph, gates: Mapping[str, NDArray[np.bool_]], *, mix: str = "tasks"
) -> Values:
    """Number the values of every stream.

    Args:
        graph: The encoder.
        gates: Gated node -> (T, C), True where the gate is open: the task has its own channel.
        mix: What the shared stream continues from; see `GatedSupernet`.
    """
    tasks = next(iter(gates.values())).shape[0]
    read_on = shared_nodes(graph, tuple(gates))
    raw: dict[tuple[str, int], Ids] = {}
    read: dict[tuple[str, int], Ids] = {
        (INPUT, s): np.arange(IMAGE_CHANNELS) for s in range(tasks + 1)
    }
    mixes: dict[str, dict[int, tuple[Ids, int]]] = {}
    distinct: dict[str, Distinct] = {}
    count = IMAGE_CHANNELS
    for node in graph:
        # Inputs of a group -> number of its first output.
        known: dict[tuple[int, ...], int] = {}
        for stream in range(tasks + 1):
            if any((source, stream) not in read for source in node.sources):
                continue
            inputs = [read[source, stream] for source in node.sources]
            if node.routes is not None:
                raw[node.name, stream] = np.array([inputs[i][c] for i, c in node.routes])
            elif node.has_weights:
                raw[node.name, stream] = np.arange(count, count + node.outputs)
                count += node.outputs
            else:
                size = node.outputs // node.groups
                firsts = []
                for group in map(tuple, _grouped(inputs, node.groups).tolist()):
                    if group not in known:
                        known[group] = count
                        count += size
                    firsts.append(known[group])
                raw[node.name, stream] = np.add.outer(firsts, np.arange(size)).ravel()
        if known:
            distinct[node.name] = _distinct(node, known)
        if node.name not in gates:
            read |= {(node.name, s): raw[node.name, s] for s in _streams(raw, node.name, tasks)}
            continue
        shared = raw[node.name, tasks]
        chosen = np.stack(
            [np.where(on, raw[node.name, t], shared) for t, on in enumerate(gates[node.name])]
        )
        read |= {(node.name, t): ids for t, ids in enumerate(chosen)}
        if node.name in read_on and mix == "shared":
            read[node.name, tasks] = shared
        elif node.name in read_on:
            ids, mixes[node.name] = chosen[0].copy(), {}
            for channel in np.flatnonzero((chosen != chosen[0]).any(0)):
                ids[channel] = count
                mixes[node.name][count] = (chosen[:, channel], int(channel))
                count += 1
            read[node.name, tasks] = ids
    return Values(tasks, raw, read, mixes, distinct, count)


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
        if node.name in values.distinct:
            found = values.distinct[node.name]
            alive = live[found.outputs].any(1)
            for ids in (found.outputs, *found.inputs):
                live[ids[alive]] = True
        if not node.has_weights:
            continue
        for stream in _streams(values.raw, node.name, values.tasks):
            raw = values.raw[node.name, stream]
            outputs = node.computed(torch.from_numpy(live[raw]).float())
            live[raw] = outputs.numpy() > 0
            for source, needed in zip(node.sources, node.needed_inputs(outputs), strict=True):
                live[values.read[source, stream][needed.numpy() > 0]] = True
    return live


def _grouped(inputs: Sequence[Ids], groups: int) -> Ids:
    """(groups, n) the values of every source that a group reads, one source after the other."""
    return np.concatenate([ids.reshape(groups, -1) for ids in inputs], 1)


def _distinct(node: Node, known: Mapping[tuple[int, ...], int]) -> Distinct:
    cuts = np.cumsum([channels // node.groups for channels in node.input_channels])[:-1]
    inputs = tuple(np.split(np.array(list(known)), cuts, axis=1))
    size = node.outputs // node.groups
    return Distinct(np.add.outer(np.array(list(known.values())), np.arange(size)), inputs)


def _streams(raw: Mapping[tuple[str, int], Ids], name: str, tasks: int) -> list[int]:
    return [stream for stream in range(tasks + 1) if (name, stream) in raw]
