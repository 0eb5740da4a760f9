"""Which channels a hard gate pattern leaves alive, and which of them are one and the same.

Every channel of every stream is a value, and equal values get one number. A convolution's output
is a value of its own in each stream, which has weights of its own. A gate does not compute
anything: it picks the number of the task's or of the shared channel. The β mix of equal numbers is
that number, since its weights sum to 1. An element-wise node of equal inputs gives equal outputs,
in whatever stream. So where all tasks pick shared, their features are one value and are computed
once.

Aliveness then runs backwards from the heads: a live convolution output needs every channel of its
source in its stream, a depthwise one its own; a live element-wise value its own arguments; a live
mix all tasks' values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatesearch.models.gated_supernet import mixed_nodes
from gatesearch.models.graph import INPUT, Conv, Graph

Ids = NDArray[np.int64]
IMAGE_CHANNELS = 3


@dataclass(frozen=True)
class Values:
    """Numbered values of all streams under one gate pattern.

    Attributes:
        tasks: Number of tasks T; stream T is the shared one.
        raw: (node, stream) -> (C,) values before the gate; for nodes without gates the same as
            `read`.
        read: (node, stream) -> (C,) values that consumers in that stream read. The shared stream
            is left out where nobody could read it.
        mixes: Value -> the T values it mixes and their channel, at a gated node.
        parts: Value of an element-wise node, or of a depthwise convolution -> its arguments.
        count: How many values there are.
    """

    tasks: int
    raw: Mapping[tuple[str, int], Ids]
    read: Mapping[tuple[str, int], Ids]
    mixes: Mapping[str, Mapping[int, tuple[Ids, int]]]
    parts: Mapping[str, Mapping[int, tuple[int, ...]]]
    count: int


def number_values(graph: Graph, gates: Mapping[str, NDArray[np.bool_]]) -> Values:
    """Number the values of every stream.

    Args:
        graph: The encoder.
        gates: Gated node -> (T, C), True where the task owns the channel.
    """
    tasks = next(iter(gates.values())).shape[0]
    mixed = mixed_nodes(graph, tuple(gates))
    raw: dict[tuple[str, int], Ids] = {}
    read: dict[tuple[str, int], Ids] = {
        (INPUT, s): np.arange(IMAGE_CHANNELS) for s in range(tasks + 1)
    }
    mixes: dict[str, dict[int, tuple[Ids, int]]] = {}
    parts: dict[str, dict[int, tuple[int, ...]]] = {}
    count = IMAGE_CHANNELS
    for node in graph:
        known: dict[tuple[int, ...], int] = {}
        parts[node.name] = {}
        for stream in range(tasks + 1):
            if any((source, stream) not in read for source in node.sources):
                continue
            if isinstance(node, Conv):
                raw[node.name, stream] = np.arange(count, count + node.outputs)
                count += node.outputs
                if node.depthwise:
                    own = zip(raw[node.name, stream], read[node.source, stream], strict=True)
                    parts[node.name] |= {int(value): (int(argument),) for value, argument in own}
                continue
            arguments = np.stack([read[source, stream] for source in node.sources], 1)
            ids = []
            for argument in map(tuple, arguments.tolist()):
                if argument not in known:
                    known[argument] = count
                    count += 1
                ids.append(known[argument])
            raw[node.name, stream] = np.array(ids)
        parts[node.name] |= {value: argument for argument, value in known.items()}
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
    return Values(tasks, raw, read, mixes, parts, count)


def live_values(graph: Graph, values: Values) -> NDArray[np.bool_]:
    """(count,) whether each value is needed by some task's head."""
    live = np.zeros(values.count, dtype=bool)
    last = graph.nodes[-1].name
    for task in range(values.tasks):
        live[values.read[last, task]] = True
    for node in reversed(graph.nodes):
        for value, (arguments, _) in values.mixes.get(node.name, {}).items():
            if live[value]:
                live[arguments] = True
        for value, own in values.parts[node.name].items():
            if live[value]:
                live[list(own)] = True
        if isinstance(node, Conv) and not node.depthwise:
            for stream in _streams(values.raw, node.name, values.tasks):
                if live[values.raw[node.name, stream]].any():
                    live[values.read[node.source, stream]] = True
    return live


def _streams(raw: Mapping[tuple[str, int], Ids], name: str, tasks: int) -> list[int]:
    return [stream for stream in range(tasks + 1) if (name, stream) in raw]
