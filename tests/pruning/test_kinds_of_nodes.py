"""Networks of every kind of node: pruned they compute the same, at the cost that the formula gives.

Here gates stand behind every node with weights, also where no granularity puts any.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import PatternCost, count_macs
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import (
    INPUT,
    Add,
    Attention,
    ClassToken,
    Conv,
    GlobalResponseNorm,
    GroupNorm,
    LayerNorm,
    Linear,
    PositionBias,
    PositionEmbedding,
    Rearrange,
    Scale,
    Shift,
)
from gatesearch.models.nodes.position_operations import Permute, Reshape, Roll, Take
from gatesearch.pruning import extract
from tests.pruning.test_extract import all_gates, gap, parts, put

SHAPE = (2, 3, 8, 12)


def vit() -> Graph:
    """Patches of 5x5, a class token, positions, and a block of two heads."""
    nodes = (
        Conv("patches", INPUT, 3, 8, 5, stride=4, relu=False),
        Rearrange("tokens", "patches", 8, (Reshape(sizes=(-1,)),)),
        ClassToken("class", "tokens", 8),
        PositionEmbedding("places", "class", 8, (7,)),
        LayerNorm("norm1", "places", 8),
        Linear("query", "norm1", 8, 8),
        Linear("key", "norm1", 8, 8),
        Linear("value", "norm1", 8, 8, bias=False),
        Attention("attention", "query", "key", "value", 8, heads=2),
        Linear("project", "attention", 8, 8),
        Scale("scale1", "project", 8),
        Add("sum1", "scale1", "places", 8, relu=False),
        LayerNorm("norm2", "sum1", 8, affine=False),
        Linear("mlp1", "norm2", 8, 16),
        Linear("mlp2", "mlp1", 16, 8),
        Add("sum2", "mlp2", "sum1", 8, relu=False),
        LayerNorm("norm", "sum2", 8),
        Rearrange("map", "norm", 8, (Take(axis=0, start=1), Reshape(sizes=(2, 3)))),
    )
    return Graph(nodes, stride=4)


def swin() -> Graph:
    """Shifted windows of 2x2 with biases by position, on maps of 4x6."""
    index = tuple(
        tuple(3 * (i // 2 - j // 2 + 1) + i % 2 - j % 2 + 1 for j in range(4)) for i in range(4)
    )
    windows = (Roll(axis=0, shift=-1), Reshape(sizes=(2, 2, 3, 2)), Permute(axes=(0, 2, 1, 3)),
               Reshape(sizes=(6, 4)))  # fmt: skip
    back = (Reshape(sizes=(2, 3, 2, 2)), Permute(axes=(0, 2, 1, 3)), Reshape(sizes=(4, 6)),
            Roll(axis=0, shift=1))  # fmt: skip
    regions = tuple(tuple(int(w > 2 and t > 1) for t in range(4)) for w in range(6))
    nodes = (
        Conv("patches", INPUT, 3, 8, 3, stride=2, relu=False),
        LayerNorm("norm1", "patches", 8),
        Rearrange("windows", "norm1", 8, windows),
        Linear("query", "windows", 8, 8),
        Linear("key", "windows", 8, 8),
        Linear("value", "windows", 8, 8),
        Attention(
            "attention", "query", "key", "value", 8, heads=2,
            bias=PositionBias(rows=9, index=index, regions=regions),
        ),
        Linear("project", "attention", 8, 8),
        Rearrange("map", "project", 8, back),
        Add("sum", "map", "patches", 8, relu=False),
    )  # fmt: skip
    return Graph(nodes, stride=2)


def convnext() -> Graph:
    """Depthwise convolution, norms over channels and groups of them, responses, layer scale."""
    nodes = (
        Conv("stem", INPUT, 3, 6, 3, stride=2, relu=False),
        LayerNorm("norm", "stem", 6),
        Conv("depthwise", "norm", 6, 6, 3, relu=False, depthwise=True),
        GroupNorm("groups", "depthwise", 6, split=2),
        Linear("mlp1", "groups", 6, 12),
        GlobalResponseNorm("responses", "mlp1", 12),
        Linear("mlp2", "responses", 12, 6),
        Shift("shift", "mlp2", 6),
        Scale("scale", "shift", 6),
        Add("sum", "scale", "norm", 6, relu=False),
    )
    return Graph(nodes, stride=2)


GRAPHS = {"vit": vit, "swin": swin, "convnext": convnext}


def supernet(graph: Graph, tasks: int, seed: int, mix: str = "tasks") -> GatedSupernet:
    torch.manual_seed(seed)
    model = GatedSupernet(parts(graph, tasks), mix=mix).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@settings(max_examples=15, deadline=None)
@given(
    kind=st.sampled_from(sorted(GRAPHS)),
    tasks=st.integers(1, 3),
    mix=st.sampled_from(["tasks", "shared"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 2**31),
)
def test_any_pattern_is_cut_and_priced(kind, tasks, mix, layout, seed) -> None:
    model = supernet(GRAPHS[kind](), tasks, seed, mix)
    put(model, np.random.default_rng(seed))
    compact, cost = extract(model), PatternCost.of(model, (1, *SHAPE[1:]))
    image = torch.randn(SHAPE).to(memory_format=layout)
    assert gap(compact.to(memory_format=layout), model, image) < 1e-5
    counted = count_macs(compact, (1, *SHAPE[1:]), cross_check=False)
    assert int(cost.macs(model.hard_gates())) == counted.macs
    assert int(cost.params(model.hard_gates())) == counted.params


@pytest.mark.parametrize("kind", GRAPHS)
def test_the_ends_are_plain_networks(kind) -> None:
    graph = GRAPHS[kind]()
    for on, plain in ((False, MultiTaskNet(parts(graph))), (True, SingleTaskNets(parts(graph)))):
        model = supernet(graph, 3, 0)
        all_gates(model, on)
        ours = count_macs(extract(model), (1, *SHAPE[1:]), cross_check=False)
        theirs = count_macs(plain, (1, *SHAPE[1:]), cross_check=False)
        assert (ours.macs, ours.params) == (theirs.macs, theirs.params)
