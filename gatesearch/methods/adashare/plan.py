"""What the network of a policy computes, and that network: equal prefixes once, dead blocks gone.

A policy states for each task and residual block whether the task computes the block (select) or
goes on with what the block's shortcut gives (skip). Tasks compute a node together as long as they
read the same values there: up to the first block that one of them selects and another skips. Behind
it each has values of its own, from the same weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import nn

from gatesearch.errors import UsageError
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec, OwnHead
from gatesearch.models.nodes import IMAGE_CHANNELS, INPUT, Node, RepeatedStep, Step
from gatesearch.pruning import CompactNet
from gatesearch.pruning.description import (
    AnyStep,
    Description,
    HeadDescription,
)
from gatesearch.pruning.streams import routed

# Per task, in the study's order, and per residual block, from the first: True to select it.
Policy = tuple[tuple[bool, ...], ...]


def residual_blocks(graph: Graph) -> tuple[str, ...]:
    """List the residual blocks of an encoder by the name of their sum, from the first.

    Raises:
        UsageError: There is none, or a layer with weights has several sources.
    """
    blocks = tuple(graph.shortcuts)
    if not blocks:
        raise UsageError(
            "adashare selects or skips residual blocks, which add a shortcut to what they compute; "
            "found a backbone without any: set model.backbone to one that has them, as resnet18"
        )
    several = [n.name for n in graph if n.has_weights and len(n.sources) > 1]
    if several:
        raise UsageError(
            "adashare computes a layer once more where policies differ, which must then have one "
            f"source; found attention with learned biases, {several[0]}: set model.backbone to a "
            "network without, or leave adashare out"
        )
    return blocks


@dataclass
class Value:
    """One value that a network computes.

    Attributes:
        node: The node that computes it.
        sources: Numbers of the values that it is computed from; 0 is the image.
        tasks: Indices of the tasks that compute it together.
    """

    node: Node
    sources: tuple[int, ...]
    tasks: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """All that the network of a policy computes.

    Attributes:
        values: In order of execution; the first has the number 1.
        ends: For each task the number of the value that its head reads.
    """

    values: tuple[Value, ...]
    ends: tuple[int, ...]

    def shares(self, blocks: Sequence[str], tasks: int) -> list[tuple[float, ...]]:
        """Return per task and block 1 where the task computes it alone, 0 where others do too.

        NaN where the task skips the block. A single task computes none alone.
        """
        found = {(v.node.name, t): len(v.tasks) for v in self.values for t in v.tasks}
        return [
            tuple(
                float(found[block, t] == 1 < tasks) if (block, t) in found else math.nan
                for block in blocks
            )
            for t in range(tasks)
        ]


def plan(graph: Graph, policy: Policy, *, separate: bool = False) -> Plan:
    """Plan the network of a policy.

    Args:
        graph: The encoder.
        policy: (T, L) True where a task selects a block.
        separate: Compute every task in a pass of its own, also where tasks could share one.
    """
    blocks = residual_blocks(graph)
    skipped = [
        {block for block, selected in zip(blocks, row, strict=True) if not selected}
        for row in policy
    ]
    needed = [_needed(graph, skips) for skips in skipped]
    read: list[dict[str, int]] = [{INPUT: 0} for _ in policy]
    values: list[Value] = []
    numbers: dict[tuple[object, ...], int] = {}
    for node in graph:
        for task, reads in enumerate(read):
            if node.name not in needed[task]:
                continue
            if node.name in skipped[task]:
                reads[node.name] = reads[graph.shortcuts[node.name]]
                continue
            sources = tuple(reads[source] for source in node.sources)
            key = (node.name, sources, task if separate else None)
            number = numbers.setdefault(key, len(values) + 1)
            if number > len(values):
                values.append(Value(node, sources))
            values[number - 1].tasks.append(task)
            reads[node.name] = number
    return Plan(tuple(values), tuple(reads[graph.nodes[-1].name] for reads in read))


def network_of(
    plan: Plan,
    encoder: Encoder,
    heads: Mapping[str, nn.Module],
    head_specs: Mapping[str, HeadSpec | OwnHead],
) -> CompactNet:
    """Build a plan's network with the weights of an encoder and the heads, which become its own.

    Args:
        plan: What it computes.
        encoder: Its weights are copied; those of a node that is computed several times are held
            once.
        heads: Task -> head, in the order of the plan's tasks.
        head_specs: Task -> how its head was built.
    """
    description = _description(plan, dict(zip(heads, plan.ends, strict=True)), head_specs)
    network = CompactNet(description, heads)
    with torch.no_grad():
        for name in {value.node.name for value in plan.values if value.node.has_weights}:
            layer = encoder.layers[module_key(name)]
            network.convs[module_key(name)].load_state_dict(layer.state_dict())
    return network


def _description(
    plan: Plan, ends: Mapping[str, int], head_specs: Mapping[str, HeadSpec | OwnHead]
) -> Description:
    # Channels of every value.
    stored: list[ChannelSource] = [(ChannelSlice(tensor=0, stop=IMAGE_CHANNELS),)]
    steps: list[Step] = []
    computed: set[str] = set()
    for value in plan.values:
        node, sources = value.node, [stored[number] for number in value.sources]
        if node.routes is not None:
            stored.append(routed(node.routes, sources))
            continue
        name = module_key(node.name)
        if node.name in computed:
            (source,) = sources
            steps.append(RepeatedStep(of=name, source=source, outputs=node.outputs))
        else:
            steps.append(node.step(name=name, sources=sources, outputs=node.outputs))
        if node.has_weights:
            computed.add(node.name)
        stored.append((ChannelSlice(tensor=len(steps), stop=node.outputs),))
    described = {
        task: HeadDescription.of(head_specs[task], [stored[end]]) for task, end in ends.items()
    }
    return Description(steps=cast(tuple[AnyStep, ...], tuple(steps)), heads=described)


def _needed(graph: Graph, skipped: set[str]) -> set[str]:
    """Names of the nodes that a task's head depends on."""
    needed = {graph.nodes[-1].name}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update([graph.shortcuts[node.name]] if node.name in skipped else node.sources)
    return needed
