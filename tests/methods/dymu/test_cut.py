"""The controlled supernet, and the plain network of a tree, which computes the same."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.cost import Budget, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods.dymu.blocks import blocks_of
from gatesearch.methods.dymu.cut import cut, shares_alone
from gatesearch.methods.dymu.options import DymuOptions, check_size
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.tree import Tree
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec
from gatesearch.pruning import load_compact, save_compact
from tests.methods.toys import assert_same_outputs, random_image, scattered

SHAPE = (1, 3, 32, 32)
GRAPHS = {
    name: BACKBONES[name](output_stride=32, width=width)
    for name, width in (("resnet18", 0.05), ("resnet50", 0.02), ("efficientnet_lite0", 0.1))
}


def parts(name: str = "resnet18", tasks: str = "abc") -> Parts:
    kinds = {"a": ("light", 3), "b": ("deeplabv3", 1), "c": ("pooled", 2), "d": ("light", 1)}
    graph = GRAPHS[name]
    return Parts(
        graph, {t: HeadSpec(kinds[t][0], graph.outputs, 4, kinds[t][1]) for t in tasks}, seed=5
    )


@cache
def shared_supernet(name: str) -> DymuNet:
    """One for all examples of a property, of which only (r, c) may be set."""
    return supernet(name)


def supernet(name: str = "resnet18", *, tasks: str = "abc") -> DymuNet:
    """Streams, heads and hypernetworks that are all told apart, in evaluation mode."""
    net = scattered(DymuNet(parts(name, tasks), DymuOptions())).eval()
    with torch.no_grad():
        for hypernetwork in (net.edges, net.weights):
            for weights in hypernetwork.parameters():
                weights.normal_(std=0.1)
    return net


def steer(net: DymuNet, preference: Tensor, cost: float) -> tuple[Tensor, Tensor]:
    net.draws.preference.copy_(preference)
    net.draws.cost.fill_(cost)
    return net.draws.preference, net.draws.cost


@pytest.mark.parametrize(
    ("name", "blocks", "first"),
    [
        ("resnet18", 9, ["maxpool", "layer1.0"]),
        ("resnet50", 17, ["maxpool", "layer1.0"]),
        ("efficientnet_lite0", 17, ["stem", "blocks.0.project"]),
    ],
)
def test_a_backbone_is_cut_into_stem_and_blocks(name: str, blocks: int, first: list[str]) -> None:
    found = blocks_of(GRAPHS[name])
    assert len(found) == blocks
    assert [block.name for block in found[:2]] == first
    assert [node for block in found for node in block.nodes] == list(GRAPHS[name].nodes)
    assert [block.source for block in found] == ["image", *(block.name for block in found[:-1])]


def test_a_fresh_supernet_computes_what_the_single_task_networks_do() -> None:
    stl = scattered(SingleTaskNets(parts()))
    net = DymuNet(Parts(GRAPHS["resnet18"], parts().heads, 5, stl=stl.state_dict()), DymuOptions())
    steer(net, torch.tensor([0.2, 0.3, 0.5]), 0.0)
    assert_same_outputs(net, stl, random_image(32))


@st.composite
def trees(draw: st.DrawFn) -> tuple[str, Tree, list[float]]:
    name = draw(st.sampled_from(list(GRAPHS)))
    stream = st.integers(0, 2)
    blocks = len(blocks_of(GRAPHS[name]))
    rows = st.lists(st.tuples(stream, stream, stream), min_size=blocks, max_size=blocks)
    weights = draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
    return name, Tree(tuple(draw(rows))), [weight / sum(weights) for weight in weights]


@pytest.mark.slow("many networks of three backbones")
@given(trees())
@settings(max_examples=8, deadline=None)
def test_the_network_of_any_tree_computes_what_the_supernet_does(case) -> None:
    name, tree, preference = case
    net = shared_supernet(name)
    point = steer(net, torch.tensor(preference), 0.3)
    compact = cut(net, tree, *point)
    image = random_image(32)
    with torch.no_grad():
        expected, found = net.through(image, tree), compact(image)
    for task, prediction in expected.items():
        torch.testing.assert_close(found[task], prediction, rtol=1e-5, atol=1e-5)
    counted, cost = count_macs(compact, SHAPE, cross_check=False), TreeCost.of(net, SHAPE)
    assert (cost.macs(tree), cost.params(tree)) == (counted.macs, counted.params)
    names = [step.name for step in compact.description.steps if hasattr(step, "name")]
    convolutions = [sum(node.has_weights for node in block.nodes) for block in net.blocks]
    computed = sum(n * len(nodes) for n, nodes in zip(convolutions, tree.nodes, strict=True))
    assert len(names) == len(set(names)) == computed, "every block that is shared is there once"


def test_norms_of_the_network_have_their_shifts_folded_in() -> None:
    net = supernet()
    own = Tree(((0, 1, 2),) * 9)
    point = steer(net, torch.tensor([0.6, 0.3, 0.1]), 0.2)
    compact = cut(net, own, *point)
    shifted = net.shifts(*point)
    norm = net.streams["b"].layers["layer1_0_conv1"].bn
    folded = compact.convs["layer1_0_conv1_b"].bn
    expected = shifted[net.block_item(1, 1)]["encoder.layers.layer1_0_conv1.bn.weight"]
    torch.testing.assert_close(folded.weight, expected)
    assert not torch.equal(folded.weight, norm.weight)
    other = cut(net, own, *steer(net, torch.tensor([0.1, 0.3, 0.6]), 0.2))
    assert not torch.equal(folded.weight, other.convs["layer1_0_conv1_b"].bn.weight)


def test_cut_networks_are_kept_and_read(tmp_path) -> None:
    net = supernet()
    compact = cut(net, Tree(((0, 0, 2),) * 9), *steer(net, torch.tensor([0.6, 0.3, 0.1]), 0.2))
    save_compact(compact, tmp_path / "net")
    assert_same_outputs(load_compact(tmp_path / "net"), compact, random_image(32))


@pytest.mark.parametrize("temperature", [5.0, 0.02])
def test_the_mix_of_streams_becomes_a_tree_as_the_temperature_falls(temperature: float) -> None:
    net = supernet()
    steer(net, torch.tensor([0.6, 0.3, 0.1]), 0.0)
    net.edges.edges.bias.data[:] = 0  # no noise, and gaps between logits of about 2
    net.temperature = temperature
    edges = net.sampled_edges()
    torch.testing.assert_close(edges.sum(2), torch.ones(9, 3))
    tree = net.tree(net.draws.preference, net.draws.cost, (32, 32))
    hard = torch.nn.functional.one_hot(torch.tensor(tree.parents), 3).float()
    assert (edges - hard).abs().max() < 1e-6 if temperature < 1 else (edges < 0.9).all()
    image = random_image(32)
    with torch.no_grad():
        mixed, through = net._mixed(image, hard), net.through(image, tree)
    for task, prediction in through.items():
        torch.testing.assert_close(mixed[task], prediction, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_hypernetworks_alone() -> None:
    net = supernet().train()
    net.draws.draw()
    sum(y.square().mean() for y in net(random_image(32)).values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in net.edges.edges.parameters())
    net.zero_grad()
    net.temperature = 0.0
    sum(y.square().mean() for y in net(random_image(32)).values()).backward()
    assert all(p.grad is None for p in net.edges.parameters())
    assert any(p.grad is not None and p.grad.any() for p in net.weights.shifts.parameters())


def test_c_bounds_the_cost_between_single_and_multi_task_networks() -> None:
    net = supernet()
    cost = TreeCost.of(net, SHAPE)
    ends = {
        method: count_macs(method(parts()), SHAPE, cross_check=False)
        for method in (MultiTaskNet, SingleTaskNets)
    }
    mtl, stl = ends[MultiTaskNet], ends[SingleTaskNets]
    for c in (0.0, 0.3, 0.5, 0.9, 1.0):
        tree = net.tree(*steer(net, torch.full((3,), 1 / 3), c), (32, 32))
        assert cost.macs(tree) <= stl.macs - c * (stl.macs - mtl.macs) + 1e-3 * mtl.macs
    assert (cost.macs(tree), cost.params(tree)) == (mtl.macs, mtl.params)
    assert cost.separate_macs(3) == stl.macs
    budgets = (Budget("x", "macs", 2 * mtl.macs), Budget("y", "params", 4 * mtl.params))
    assert cost.share(tree, budgets) == 0.5
    assert cost.share(tree, ()) == 0


def test_shares_say_which_blocks_serve_one_task_alone() -> None:
    net = supernet()
    parents = ((0, 0, 0),) * 8 + ((0, 1, 1),)
    shares = shares_alone(net, Tree(parents))
    assert shares == {"a": (0.0,) * 8 + (1.0,), "b": (0.0,) * 9, "c": (0.0,) * 9}


def test_one_task_is_one_stream() -> None:
    net = supernet(tasks="a")
    tree = net.tree(*steer(net, torch.ones(1), 0.5), (32, 32))
    assert tree.nodes == ((0,),) * 9
    assert net.train()(random_image(32))["a"].shape == (2, 3, 32, 32)


def test_more_edges_than_it_can_choose_from_are_refused_with_their_number() -> None:
    check_size(tasks=10, graph=GRAPHS["resnet50"])
    with pytest.raises(
        UsageError,
        match=r"at most 2,048 edges.*found 11 tasks and 17 blocks, 2,057 edges or about 10\^195 ",
    ):
        check_size(tasks=11, graph=GRAPHS["resnet50"])
