"""Multi-task networks of a chosen cost, the control for any other way of spending a budget."""

import random

import numpy as np
import pytest
import torch

from gatesearch.cost import Budget, count_macs
from gatesearch.cost.budget import read_budget
from gatesearch.cost.narrowing import (
    FEWEST,
    ONE_IN,
    NarrowCost,
    relative_order,
    rounded_down,
    uniform_order,
    widest,
)
from gatesearch.errors import UsageError
from gatesearch.methods import build_model
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.mtl_at import magnitudes, mtl_parts_at
from gatesearch.models import parts_of
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.models.narrowing import narrowed_parts
from gatesearch.study import Study
from tests.methods.toys import parts, random_image
from tests.search.tiny import tiny

SIZE = (32, 48)


def budget_of(study: Study, share: float) -> Budget:
    mtl = count_macs(build_model(study, "mtl"), (1, 3, *study.protocol.size), cross_check=False)
    return read_budget(f"{share}xMTL", mtl=mtl, stl=mtl)


@pytest.mark.parametrize("share", [0.4, 1.0, 1.5])
def test_it_costs_the_budget_as_nearly_as_channels_allow(tmp_path, share: float) -> None:
    study = tiny(tmp_path, "model.width=0.25")
    budget = budget_of(study, share)
    found = mtl_parts_at(study, budget)
    network = MultiTaskNet(found.parts)
    counted = count_macs(network, (1, 3, *study.protocol.size), cross_check=False)
    assert (counted.macs, counted.backbone_macs) == (found.cost.macs, found.cost.backbone_macs)
    assert counted.params == found.cost.params
    assert 0.97 <= found.share <= 1
    assert (found.width < 1, found.width > 1) == (share < 1, share > 1)
    assert network(random_image(16)).keys() == study.tasks.keys()


def test_parameters_are_bounded_too(tmp_path) -> None:
    study = tiny(tmp_path, "model.width=0.25")
    params = sum(p.numel() for p in build_model(study, "mtl").parameters())
    found = mtl_parts_at(study, Budget("x", "params", params / 3))
    assert 0.95 * params / 3 <= found.cost.params <= params / 3


def test_all_layers_are_narrowed_by_one_factor() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.25))
    cost = NarrowCost(whole, SIZE)
    order = uniform_order(cost.groups, np.zeros(cost.groups.count))
    limit = 0.5 * cost.of(np.ones(cost.groups.count, dtype=bool)).macs
    kept, _ = widest(order, lambda kept: cost.of(kept).macs / limit, least=1.0)
    narrow = narrowed_parts(whole, cost.groups, kept)
    ratios = [b.outputs / a.outputs for a, b in zip(whole.graph, narrow.graph, strict=True)]
    # One of the 16 channels of the narrowest layers, rounded.
    assert max(ratios) - min(ratios) <= 1 / 16


def test_of_trained_weights_the_largest_stay() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.125))
    state = {name: x.clone() for name, x in MultiTaskNet(whole).encoder.state_dict().items()}
    state["layers.layer3_0_conv1.conv.weight"][[1, 3, 6, 10]] *= 100
    trained = Parts(whole.graph, whole.heads, 0, state)
    cost = NarrowCost(trained, SIZE)
    order = uniform_order(cost.groups, magnitudes(trained, cost.groups))
    rows = cost.groups.channels(order.narrowest)["layer3.0.conv1"]
    assert set(rows) == {1, 3, 6, 10}  # an eighth of 32
    narrow = narrowed_parts(trained, cost.groups, order.narrowest)
    weight = narrow.encoder().layer("layer3.0.conv1").conv.weight
    assert weight.std() > 10 * narrow.encoder().layer("layer3.0.conv2").conv.weight.std()


def test_every_layer_keeps_its_least() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.5))
    cost = NarrowCost(whole, SIZE)
    worth = np.random.default_rng(0).random(cost.groups.count)
    narrow = narrowed_parts(whole, cost.groups, relative_order(cost.groups, worth).narrowest)
    for node, few in zip(whole.graph, narrow.graph, strict=True):
        assert few.outputs == max(FEWEST, -(-node.outputs // ONE_IN))


def test_layers_of_even_worth_are_narrowed_more() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.25))
    cost = NarrowCost(whole, SIZE)
    worth = np.ones(cost.groups.count)
    few = cost.groups.numbers["layer3.0.conv1"]  # 64 channels
    worth[few[:16]] = 100
    kept = relative_order(cost.groups, worth).kept(cost.groups.count // 2)
    channels = cost.groups.channels(kept)
    assert set(range(16)) <= set(channels["layer3.0.conv1"])
    assert len(channels["layer3.0.conv1"]) < len(channels["layer3.1.conv1"])
    # The scale of a layer's worth does not count.
    worth[few] *= 1e6
    assert (relative_order(cost.groups, worth).kept(cost.groups.count // 2) == kept).all()


def test_layers_keep_multiples_where_that_leaves_enough() -> None:
    whole = parts(BACKBONES["resnet18"](output_stride=32, width=0.25))
    cost = NarrowCost(whole, SIZE)
    draw = np.random.default_rng(1)
    order = relative_order(cost.groups, draw.random(cost.groups.count))
    kept = order.kept(order.always + 250)
    assert (rounded_down(cost.groups, kept, order, multiple=1) == kept).all()
    fewer = rounded_down(cost.groups, kept, order, multiple=8)
    assert (fewer <= kept).all()
    before, after = (narrowed_parts(whole, cost.groups, k).graph for k in (kept, fewer))
    for most, node in zip(before, after, strict=True):
        assert node.outputs == (most.outputs // 8 * 8 or most.outputs)


@pytest.mark.slow("imports a network")
def test_an_imported_network_is_narrowed_as_well() -> None:
    pytest.importorskip("timm", reason="networks of timm need pip install 'gatesearch[timm]'")
    from gatesearch.models.imported import import_backbone

    graph = import_backbone("timm:mobilenetv3_small_100", SIZE, None).graph
    whole = Parts(graph, {"a": HeadSpec("light", graph.outputs, 8, 3)})
    cost = NarrowCost(whole, SIZE)
    full = cost.of(np.ones(cost.groups.count, dtype=bool)).macs
    order = uniform_order(cost.groups, np.zeros(cost.groups.count))
    draw = random.Random(0)
    for limit in [full * draw.uniform(0.25, 1) for _ in range(5)]:
        kept, share = widest(order, lambda kept, most=limit: cost.of(kept).macs / most, least=1.0)
        assert 0.99 <= share <= 1
    network = MultiTaskNet(narrowed_parts(whole, cost.groups, kept))
    assert count_macs(network, (1, 3, *SIZE), cross_check=False).macs == cost.of(kept).macs


@pytest.mark.parametrize(
    ("budget", "overrides", "message"),
    [
        (Budget("12ms", "latency", 0.012), (), "as FLOPs or parameters allow, found 12ms"),
        (Budget("1K", "macs", 1000), (), r"budget 1K must be at least .*narrowest"),
        (Budget("9T", "macs", 9e12), (), "at most 16 times as wide as the study's, found 9T"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, budget, overrides, message) -> None:
    with pytest.raises(UsageError, match=message):
        mtl_parts_at(tiny(tmp_path, *overrides), budget)


def test_trained_weights_are_not_widened(tmp_path) -> None:
    study = tiny(tmp_path)
    stl = build_model(study, "stl").state_dict()
    with pytest.raises(UsageError, match=r"no trained weights to start from, found 1\.5xMTL"):
        mtl_parts_at(study, budget_of(study, 1.5), stl=stl)
    found = mtl_parts_at(study, budget_of(study, 0.7), stl=stl)
    assert found.parts.stl is not None
    with torch.no_grad():
        MultiTaskNet(found.parts)(random_image(16))
    assert parts_of(study, stl=stl).graph != found.parts.graph
