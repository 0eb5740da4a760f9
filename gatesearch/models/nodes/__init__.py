"""Kinds of nodes that encoders are built from, one file each.

A new kind is one file with a class that satisfies `Node` and, for compact networks, its `Step`,
and a line in `NodeStep`.
"""

from gatesearch.models.nodes.activation import Activation, ActivationStep
from gatesearch.models.nodes.add import Add, AddStep
from gatesearch.models.nodes.attention import Attention, AttentionStep, PositionBias
from gatesearch.models.nodes.batch_norm import BatchNorm, BatchNormStep
from gatesearch.models.nodes.class_token import ClassToken, ClassTokenStep
from gatesearch.models.nodes.conv import Conv, ConvStep
from gatesearch.models.nodes.drop_path import DropPath
from gatesearch.models.nodes.global_response_norm import (
    GlobalResponseNorm,
    GlobalResponseNormStep,
)
from gatesearch.models.nodes.group_norm import GroupNorm, GroupNormStep
from gatesearch.models.nodes.interpolate import Interpolate, InterpolateStep
from gatesearch.models.nodes.layer_norm import LayerNorm, LayerNormStep
from gatesearch.models.nodes.linear import Linear, LinearStep
from gatesearch.models.nodes.max_pool import MaxPool, PoolStep
from gatesearch.models.nodes.multiply import Multiply, MultiplyStep
from gatesearch.models.nodes.node import IMAGE_CHANNELS, INPUT, Node, Size
from gatesearch.models.nodes.opaque import Opaque, OpaqueStep
from gatesearch.models.nodes.pool import AnyPoolStep, Pool, Windows
from gatesearch.models.nodes.position_embedding import PositionEmbedding, PositionEmbeddingStep
from gatesearch.models.nodes.rearrange import Rearrange, RearrangeStep
from gatesearch.models.nodes.repeated import RepeatedStep
from gatesearch.models.nodes.route import Route, concatenation
from gatesearch.models.nodes.scale import Scale, ScaleStep
from gatesearch.models.nodes.shift import Shift, ShiftStep
from gatesearch.models.nodes.step import Ids, Mask, Step, StepName, StepWeights

__all__ = [
    "IMAGE_CHANNELS",
    "INPUT",
    "Activation",
    "ActivationStep",
    "Add",
    "AddStep",
    "AnyPoolStep",
    "Attention",
    "AttentionStep",
    "BatchNorm",
    "BatchNormStep",
    "ClassToken",
    "ClassTokenStep",
    "Conv",
    "ConvStep",
    "DropPath",
    "GlobalResponseNorm",
    "GlobalResponseNormStep",
    "GroupNorm",
    "GroupNormStep",
    "Ids",
    "Interpolate",
    "InterpolateStep",
    "LayerNorm",
    "LayerNormStep",
    "Linear",
    "LinearStep",
    "Mask",
    "MaxPool",
    "Multiply",
    "MultiplyStep",
    "Node",
    "NodeStep",
    "Opaque",
    "OpaqueStep",
    "Pool",
    "PoolStep",
    "PositionBias",
    "PositionEmbedding",
    "PositionEmbeddingStep",
    "Rearrange",
    "RearrangeStep",
    "RepeatedStep",
    "Route",
    "Scale",
    "ScaleStep",
    "Shift",
    "ShiftStep",
    "Size",
    "Step",
    "StepName",
    "StepWeights",
    "Windows",
    "concatenation",
]

NodeStep = (
    ConvStep
    | RepeatedStep
    | AddStep
    | PoolStep
    | BatchNormStep
    | ActivationStep
    | MultiplyStep
    | AnyPoolStep
    | InterpolateStep
    | AttentionStep
    | ClassTokenStep
    | GlobalResponseNormStep
    | GroupNormStep
    | LayerNormStep
    | LinearStep
    | PositionEmbeddingStep
    | RearrangeStep
    | ScaleStep
    | ShiftStep
    | OpaqueStep
)
