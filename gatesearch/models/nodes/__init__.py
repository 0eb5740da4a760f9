"""Kinds of nodes that encoders are built from, one file each.

A new kind is one file with a class that satisfies `Node` and, for compact networks, its `Step`,
and a line in `NodeStep`.
"""

from gatesearch.models.nodes.add import Add, AddStep
from gatesearch.models.nodes.conv import Conv, ConvStep, RepeatedConvStep
from gatesearch.models.nodes.max_pool import MaxPool, PoolStep
from gatesearch.models.nodes.node import IMAGE_CHANNELS, INPUT, Node, Size
from gatesearch.models.nodes.step import Step, StepName, StepWeights

__all__ = [
    "IMAGE_CHANNELS",
    "INPUT",
    "Add",
    "AddStep",
    "Conv",
    "ConvStep",
    "MaxPool",
    "Node",
    "NodeStep",
    "PoolStep",
    "RepeatedConvStep",
    "Size",
    "Step",
    "StepName",
    "StepWeights",
]

NodeStep = ConvStep | RepeatedConvStep | AddStep | PoolStep
