"""What some tasks alone need of a compact network: the same outputs, and the cost of liveness."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gatesearch.cost import PatternCost, count_macs, macs_of_tasks
from gatesearch.cost.events import first_of_events
from gatesearch.errors import UsageError
from gatesearch.models.channel_source import ChannelSlice, ChannelSource
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Add, Conv, ConvStep, RepeatedStep
from gatesearch.pruning import CompactNet, extract, load_compact, save_compact, subnetwork
from gatesearch.pruning.description import Description, HeadDescription
from tests.pruning.test_extract import parts, put, scattered
from tests.pruning.test_kinds_of_nodes import GRAPHS, vit

SHAPE = (1, 3, 8, 12)


def cnn() -> Graph:
    """A stem and two residual blocks, of a depthwise and of a grouped convolution."""
    nodes = (
        Conv("stem", INPUT, 3, 8, 3, stride=2),
        Conv("wide", "stem", 8, 12, 1),
        Conv("depthwise", "wide", 12, 12, 3, depthwise=True),
        Conv("narrow", "depthwise", 12, 8, 1, relu=False),
        Add("sum1", "narrow", "stem", 8),
        Conv("grouped", "sum1", 8, 8, 3, split=2, relu=False),
        Add("sum2", "grouped", "sum1", 8),
    )
    return Graph(nodes, stride=2)


def source(tensor: int, start: int, stop: int) -> ChannelSource:
    return (ChannelSlice(tensor=tensor, start=start, stop=stop),)


def put_units(model: GatedSupernet, seed: int) -> None:
    """Random gates, those of channels that share one alike."""
    rng = np.random.default_rng(seed)
    pattern = {}
    for name, gates in model.hard_gates().items():
        density = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], size=(gates.shape[0], 1))
        drawn = torch.from_numpy(rng.random(gates.shape) < density)
        pattern[name] = drawn[:, torch.tensor(model.units[name])]
    model.set_gates(pattern)


def liveness(model: GatedSupernet, part: CompactNet) -> tuple[int, int]:
    """(macs, params) that the formula gives where only some tasks have heads."""
    cost = PatternCost.of(model, SHAPE)
    names = zip(model.tasks, cost.heads, strict=True)
    heads = tuple(read if task in part.heads else () for task, read in names)
    counted = count_macs(part, SHAPE, cross_check=False)
    alone = replace(
        cost,
        heads=heads,
        head_macs=counted.macs - counted.backbone_macs,
        head_params=sum(p.numel() for p in part.heads.parameters()),
        firsts=first_of_events(cost.graph, cost.units, heads),
    )
    gates = model.hard_gates()
    return int(alone.macs(gates)), int(alone.params(gates))


@torch.no_grad()
def error(part: nn.Module, whole: nn.Module, image: Tensor) -> float:
    """Largest difference over the largest value, over the tasks of the part."""
    ours, theirs = part(image), whole(image)
    return max(float((ours[t] - theirs[t]).abs().max() / theirs[t].abs().max()) for t in ours)


NETWORKS = [
    *(("cnn", "conv"), ("cnn", "block"), ("vit", "conv"), ("vit", "head"), ("vit", "block")),
    *(("swin", "conv"), ("swin", "head"), ("convnext", "conv"), ("convnext", "block")),
]
mixes = st.sampled_from(["tasks", "shared"])
chosen = st.sampled_from(["a", "b", "c", "ab", "ca", "cb"])


def pruned(network: tuple[str, str], seed: int, mix: str = "tasks") -> GatedSupernet:
    kind, granularity = network
    graph = (GRAPHS | {"cnn": cnn})[kind]()
    model = scattered(GatedSupernet(parts(graph), granularity=granularity, mix=mix), seed)
    put_units(model, seed)
    return model


@settings(max_examples=8, deadline=None)
@given(network=st.sampled_from(NETWORKS), mix=mixes, tasks=chosen, seed=st.integers(0, 2**31))
def test_it_computes_the_same(network, mix, tasks, seed) -> None:
    whole = extract(pruned(network, seed, mix)).double()
    part = subnetwork(whole, tasks)
    part.description.check()
    assert list(part.heads) == sorted(tasks)
    image = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)).double()
    assert error(part, whole, image) < 1e-6
    assert subnetwork(whole, "abc").description == whole.description


@pytest.mark.slow("traces networks")
@settings(max_examples=4, deadline=None)
@given(network=st.sampled_from(NETWORKS), mix=mixes, tasks=chosen, seed=st.integers(0, 2**31))
def test_its_cost_is_that_of_liveness(network, mix, tasks, seed) -> None:
    model = pruned(network, seed, mix)
    part = subnetwork(extract(model), tasks)
    counted = count_macs(part, SHAPE, cross_check=False)
    assert liveness(model, part) == (counted.macs, counted.params)


def test_of_two_encoders_one_is_left() -> None:
    model = scattered(GatedSupernet(parts(cnn(), 2)))
    model.set_gates({name: torch.ones_like(a).bool() for name, a in model.logits().items()})
    whole = extract(model)
    both = count_macs(whole, SHAPE, cross_check=False)
    one, other = (count_macs(subnetwork(whole, [t]), SHAPE, cross_check=False) for t in "ab")
    assert one.macs + other.macs == both.macs
    assert one.params + other.params == both.params


def test_what_all_tasks_share_is_whole_for_each() -> None:
    model = scattered(GatedSupernet(parts(cnn(), 2)))
    model.set_gates({name: torch.zeros_like(a).bool() for name, a in model.logits().items()})
    whole = extract(model)
    part = subnetwork(whole, ["b"])
    assert part.description.steps == whole.description.steps
    image = torch.randn(SHAPE)
    assert error(part, whole, image) == 0


def repeating() -> CompactNet:
    """A depthwise layer of 4 channels that is computed twice more; head a reads the first half."""
    layer = ConvStep(
        name="layer", source=source(1, 0, 4), inputs=4, outputs=4, kernel=3, stride=1, dilation=1,
        relu=True, depthwise=True,
    )  # fmt: skip
    stem = layer.model_copy(
        update={"name": "stem", "source": source(0, 0, 3), "inputs": 3, "depthwise": False}
    )
    again = [RepeatedStep(of="layer", source=source(i, 0, 4), outputs=4) for i in (2, 3)]
    heads = {
        "a": HeadDescription(source=source(4, 0, 2), kind="light", inputs=2, channels=2, outputs=1),
        "b": HeadDescription(source=source(4, 0, 4), kind="light", inputs=4, channels=2, outputs=1),
        "c": HeadDescription(
            source=(*source(2, 0, 2), *source(3, 2, 4)), kind="light", inputs=4, channels=2,
            outputs=1,
        ),
    }  # fmt: skip
    net = CompactNet(Description(steps=(stem, layer, *again), heads=heads))
    net.description.check()
    return scattered(net)


@pytest.mark.parametrize(
    ("task", "layers", "repeats"),
    [
        ("a", {"layer": 2}, [2, 2]),
        ("b", {"layer": 4}, [4, 4]),
        # Two channels of the second, of which the first computes these and two more for the head.
        ("c", {"layer": 4, "layer_2": 2}, []),
    ],
)
def test_a_repeated_layer_keeps_its_weights_where_all_are_cut_alike(task, layers, repeats) -> None:
    whole = repeating()
    part = subnetwork(whole, [task])
    part.description.check()
    steps = part.description.steps
    named = {s.name: s.width for s in steps if isinstance(s, ConvStep) and s.name != "stem"}
    assert named == layers
    assert [s.width for s in steps if isinstance(s, RepeatedStep)] == repeats
    assert error(part.double(), whole.double(), torch.randn(SHAPE).double()) < 1e-12


def test_it_is_saved_and_loaded_like_any_compact_network(tmp_path) -> None:
    model = scattered(GatedSupernet(parts(vit(), 2)))
    put(model, np.random.default_rng(5))
    part = subnetwork(extract(model), ["b"])
    save_compact(part, tmp_path / "part")
    loaded = load_compact(tmp_path / "part")
    assert loaded.description == part.description
    image = torch.randn(SHAPE)
    with torch.no_grad():
        assert torch.equal(loaded(image)["b"], part(image)["b"])


def test_the_whole_network_stays_as_it_is() -> None:
    model = scattered(GatedSupernet(parts(cnn(), 2)))
    whole = extract(model)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    state = torch.random.get_rng_state()
    part = subnetwork(whole, ["a"])
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    assert all(torch.equal(before[n], t) for n, t in whole.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("tasks", "fault"), [(["d"], "unknown task 'd'"), ([], "a task or more of a, b, found none")]
)
def test_other_tasks_are_refused(tasks: list[str], fault: str) -> None:
    whole = extract(GatedSupernet(parts(cnn(), 2)))
    with pytest.raises(UsageError, match=fault):
        subnetwork(whole, tasks)


def test_other_networks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"takes a compact network, as gs.extract .* found Conv2d"):
        subnetwork(nn.Conv2d(3, 3, 1), ["a"])


@pytest.mark.slow("traces subnetworks")
@pytest.mark.parametrize("kind", ["cnn", "vit"])
def test_costs_of_tasks_are_those_of_their_subnetworks(kind) -> None:
    whole = extract(pruned((kind, "conv"), 3))
    cost = count_macs(whole, SHAPE, cross_check=False)
    found = macs_of_tasks(whole, SHAPE, whole=cost.macs)
    assert list(found) == ["a", "b", "c", "a+b", "a+c", "b+c"]
    part = subnetwork(whole, "ac")
    assert found["a+c"] == count_macs(part, SHAPE, cross_check=False).macs
    if kind == "cnn":  # where torch does not count what fvcore does, fvcore counts each
        assert macs_of_tasks(whole, SHAPE, whole=cost.macs + 1) == found
    assert macs_of_tasks(nn.Conv2d(3, 3, 1), SHAPE, whole=1) == {}


def test_a_repeated_layer_counts_each_time() -> None:
    whole = repeating()
    cost = count_macs(whole, SHAPE, cross_check=False)
    found = macs_of_tasks(whole, SHAPE, whole=cost.macs)
    pixels = 8 * 12
    assert found["b"] - found["c"] == pixels * (3 * 4 - (4 + 2)) * 9  # heads are alike
