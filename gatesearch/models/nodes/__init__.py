"""Kinds of nodes that encoders are built from, one file each.

A new kind is one file with a class that satisfies `Node` and, for compact networks, its `Step`,
and a line in `NodeStep`.
"""

from gatesearch.models.nodes.activation import Activation, ActivationStep
from gatesearch.models.nodes.add import Add, AddStep
from gatesearch.models.nodes.batch_norm import BatchNorm, BatchNormStep
from gatesearch.models.nodes.conv import Conv, ConvStep, RepeatedConvStep
from gatesearch.models.nodes.interpolate import Interpolate, InterpolateStep
from gatesearch.models.nodes.max_pool import MaxPool, PoolStep
from gatesearch.models.nodes.multiply import Multiply, MultiplyStep
from gatesearch.models.nodes.node import INPUT, Node, Size
from gatesearch.models.nodes.pool import AnyPoolStep, Pool, Windows
from gatesearch.models.nodes.route import Route, concatenation
from gatesearch.models.nodes.step import Step, StepName, StepWeights

__all__ = [
    "INPUT",
    "Activation",
    "ActivationStep",
    "Add",
    "AddStep",
    "AnyPoolStep",
    "BatchNorm",
    "BatchNormStep",
    "Conv",
    "ConvStep",
    "Interpolate",
    "InterpolateStep",
    "MaxPool",
    "Multiply",
    "MultiplyStep",
    "Node",
    "NodeStep",
    "Pool",
    "PoolStep",
    "RepeatedConvStep",
    "Route",
    "Size",
    "Step",
    "StepName",
    "StepWeights",
    "Windows",
    "concatenation",
]

NodeStep = (
    ConvStep
    | RepeatedConvStep
    | AddStep
    | PoolStep
    | BatchNormStep
    | ActivationStep
    | MultiplyStep
    | AnyPoolStep
    | InterpolateStep
)
