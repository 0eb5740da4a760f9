"""LOMT: the proximal step and the choice of layers by hand, and that cutting changes nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatesearch.errors import UsageError
from gatesearch.events import Log
from gatesearch.methods import NetworkSpec, TrainingRequest, check_study
from gatesearch.methods.lomt.layers import (
    cut_sparse,
    last_layer,
    layer_optimized,
    reading_node,
    specs_of,
)
from gatesearch.methods.lomt.sparse_nets import (
    BETA,
    SparseNets,
    group_norms,
    group_size,
    shrink_groups,
    sparsity_of,
)
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.channel_source import channel_positions
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import execute
from gatesearch.models.model_factory import Parts
from gatesearch.models.nodes import INPUT
from gatesearch.search.setup import ExecutionOptions, check_run
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from gatesearch.trials.trial import train_network
from tests.methods.toys import assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import ignore, residual

IMAGE = random_image(32)


def graph_of(backbone: str):
    return BACKBONES[backbone](output_stride=32, width=0.05)


def emptied(encoder: Encoder, *prefixes: str) -> Encoder:
    """An encoder without the weights of the convolutions whose names begin like this."""
    with torch.no_grad():
        for node in encoder.graph.weighted_nodes:
            if node.name.startswith(prefixes):
                encoder.layer(node.name).conv.weight.zero_()
    return encoder


# -- the proximal step --------------------------------------------------------


def test_groups_shrink_by_hand() -> None:
    # Groups are input channels: (3, 4) of norm 5, (0.6, 0.8) of norm 1, (0, 0).
    conv = nn.Conv2d(3, 2, 1, bias=False)
    conv.weight.data = torch.tensor([[3.0, 0.6, 0], [4.0, 0.8, 0]])[:, :, None, None]
    assert (group_size(conv), group_norms(conv, conv.weight).tolist()) == (2, [5, 1, 0])
    with torch.no_grad():
        shrink_groups(conv, torch.tensor([2.0, 1.0, 1.0]))
    expected = torch.tensor([[1.8, 0, 0], [2.4, 0, 0]])
    torch.testing.assert_close(conv.weight.data[:, :, 0, 0], expected)


def test_groups_of_a_depthwise_convolution_are_its_filters() -> None:
    conv = nn.Conv2d(2, 2, 3, groups=2, bias=False)
    conv.weight.data.fill_(1.0)
    assert (group_size(conv), group_norms(conv, conv.weight).tolist()) == (9, [3, 3])
    with torch.no_grad():
        shrink_groups(conv, torch.tensor([1.5, 3.0]))
    torch.testing.assert_close(conv.weight.data[0], torch.full((1, 3, 3), 0.5))
    assert not conv.weight.data[1].any()


@pytest.mark.parametrize(("metric", "roots"), [("plain", (1, 1)), ("adam", (2, None))])
def test_thresholds_by_hand(metric, roots) -> None:
    """Two steps, whose gradients are 2 and then 4 everywhere."""
    # Means of 4, then of 4 and 16 with the weights β and 1.
    second = roots[1] or math.sqrt((BETA * 4 + 16) / (BETA + 1))
    networks = SparseNets(parts())
    conv, other = networks.convolutions()[1], networks.convolutions()[2]
    untouched = other.weight.clone()
    for gradient, root in zip((2.0, 4.0), (roots[0], second), strict=True):
        before = group_norms(conv, conv.weight.detach())
        conv.weight.grad = torch.full_like(conv.weight, gradient)
        networks.shrink(rate=0.1, strength=0.01, metric=metric)
        shrunk = before - group_norms(conv, conv.weight.detach())
        expected = 0.1 * 0.01 * math.sqrt(conv.weight[:, 0].numel()) / root
        torch.testing.assert_close(shrunk, torch.full_like(shrunk, expected), rtol=1e-3, atol=1e-7)
    # No gradient has reached this one.
    assert torch.equal(other.weight, untouched)


def test_a_group_that_no_gradient_reaches_vanishes() -> None:
    networks = SparseNets(parts())
    conv = networks.convolutions()[1]
    conv.weight.grad = torch.ones_like(conv.weight)
    conv.weight.grad[:, 0] = 0
    networks.shrink(rate=1e-3, strength=1e-3, metric="adam")
    assert (group_norms(conv, conv.weight.detach()) > 0).tolist() == [False, True, True]


def test_sparsity_is_recorded_and_settles_by_hand() -> None:
    networks = SparseNets(parts())
    assert networks.record(tolerance=0.1) == {"sparsity.a": 0.0, "sparsity.b": 0.0}
    assert int(networks.stable) == 0, "no group is zero yet"
    emptied(networks.encoder("a"), "layer4")
    groups = sum(conv.in_channels for conv in networks.convolutions()) // 2
    zero = sum(n.inputs for n in parts().graph.weighted_nodes if n.name.startswith("layer4"))
    assert networks.record(0.1)["sparsity.a"] == pytest.approx(100 * zero / groups)
    emptied(networks.encoder("b"), "layer4.1")
    counts = []
    for _ in range(3):
        networks.record(0.1)
        counts.append(int(networks.stable))
    assert counts == [0, 1, 2]
    emptied(networks.encoder("b"), "layer4.0")
    networks.record(0.1)
    assert int(networks.stable) == 0


# -- the choice of layers -----------------------------------------------------

BRANCHES = ("layer4.0.conv", "layer4.1.conv")


@pytest.mark.parametrize(
    ("gone", "layer", "node"),
    [
        ((), "layer4.1.conv2", "layer4.1"),
        (("layer4.1.conv2",), "layer4.1.conv1", "layer4.1.conv1"),
        # The projection of the skip connection has weights still, and is not counted.
        (BRANCHES, "layer3.1.conv2", "layer3.1"),
        ((*BRANCHES, "layer3.1.conv2"), "layer3.1.conv1", "layer3.1.conv1"),
        # A layer in between that is gone does not matter: the skip connection goes on.
        (("layer3.0.conv", "layer3.1", *BRANCHES[1:]), "layer4.0.conv2", "layer4.0"),
        # Where the skip connection is cut too, layers behind it see nothing of the image.
        (("layer3.0",), "layer2.1.conv2", "layer2.1"),
        (("layer",), "conv1", "maxpool"),
        (("layer", "conv1"), "conv1", "maxpool"),
    ],
)
def test_the_layer_by_hand(gone, layer, node) -> None:
    encoder = emptied(parts().encoder(), *gone) if gone else parts().encoder()
    assert last_layer(encoder) == layer
    assert reading_node(encoder.graph, layer) == node


@pytest.mark.parametrize(
    ("gone", "layer", "node"),
    [
        ((), "blocks.15.project", "blocks.15.project"),
        # A block without a sum: all behind it sees nothing of the image.
        (("blocks.15.depthwise",), "blocks.15.expand", "blocks.15.expand"),
        (("blocks.3.depthwise",), "blocks.3.expand", "blocks.3.expand"),
        (("blocks.5",), "blocks.4.project", "blocks.4"),
    ],
)
def test_the_layer_of_inverted_bottlenecks(gone, layer, node) -> None:
    encoder = parts(graph_of("efficientnet_lite0")).encoder()
    if gone:
        emptied(encoder, *gone)
    assert (last_layer(encoder), reading_node(encoder.graph, layer)) == (layer, node)


# -- what is cut --------------------------------------------------------------


def thinned(made: Parts, seed: int, share: float) -> SparseNets:
    """Networks of which some groups, and some whole layers, are zero."""
    networks = scattered(SparseNets(made))
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for conv in networks.convolutions():
            kept = torch.rand(conv.in_channels, generator=draws) >= share
            kept &= torch.rand(1, generator=draws) >= share / 3
            conv.weight.mul_(kept.view((-1, 1, 1, 1) if conv.groups > 1 else (1, -1, 1, 1)))
    return networks


@pytest.mark.slow("builds many networks")
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    backbone=st.sampled_from(["resnet18", "resnet50", "efficientnet_lite0"]),
)
def test_without_dead_channels_sparse_networks_compute_the_same(seed, share, backbone) -> None:
    made = parts(graph_of(backbone))
    networks = thinned(made, seed, share)
    state = {name: tensor.clone() for name, tensor in networks.state_dict().items()}
    cut = cut_sparse(networks, specs_of(made))
    with torch.no_grad():
        expected, found = networks.eval()(IMAGE), cut(IMAGE)
    for task, prediction in expected.items():
        scale = float(prediction.abs().max())
        torch.testing.assert_close(found[task], prediction, rtol=1e-5, atol=1e-5 * scale)
    assert all(torch.equal(networks.state_dict()[n], t) for n, t in state.items())


def test_dead_channels_are_cut_by_hand() -> None:
    """Of `layer1.0.conv2` of task a one input is left, so `conv1` before it has one output."""
    made = parts()
    networks = scattered(SparseNets(made))
    with torch.no_grad():
        networks.encoder("a").layer("layer1.0.conv2").conv.weight[:, 1:] = 0
        emptied(networks.encoder("a"), "layer4.1.conv2")
    cut = cut_sparse(networks, specs_of(made))
    assert cut.convs["layer1_0_conv1_0"].conv.weight.shape[:2] == (1, 3)
    assert cut.convs["layer1_0_conv2_0"].conv.weight.shape[:2] == (3, 1)
    # A layer that is gone still gives its constants, from one channel; the one before computes it.
    assert cut.convs["layer4_1_conv2_0"].conv.weight.shape[1] == 1
    assert cut.convs["layer4_1_conv1_0"].conv.weight.shape[0] == 1
    assert cut.convs["layer1_0_conv1_1"].conv.weight.shape[:2] == (3, 3)


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_the_network_computes_nothing_that_no_head_reads(backbone) -> None:
    made = parts(graph_of(backbone))
    nodes = made.graph.nodes
    for a, b in ((len(nodes) - 1, 4), (len(nodes) // 2, len(nodes) // 2), (9, 3)):
        reads = {"a": nodes[a].name, "b": nodes[b].name}
        network = layer_optimized(made, reads)
        description = network.description
        description.check()
        read = set()
        for step in description.steps:
            read |= {position for source in step.sources for position in channel_positions(source)}
        for head in description.heads.values():
            read |= set(channel_positions(head.source))
        for tensor, width in enumerate(description.widths[1:], start=1):
            assert {(tensor, channel) for channel in range(width)} <= read
        assert description.widths[-1] == nodes[max(a, b)].outputs, "it ends where a head reads"


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_heads_read_the_features_of_their_nodes(backbone) -> None:
    """Every node that a decoder may read, against the plain encoder."""
    made = parts(graph_of(backbone), seed=4)
    encoder, nodes = made.encoder().eval(), made.graph.nodes
    names = tuple(node.name for node in nodes)
    features = execute(nodes, {INPUT: IMAGE}, encoder.apply_node, keep=names)
    for layer in made.graph.weighted_nodes:
        node = reading_node(made.graph, layer.name)
        network = layer_optimized(made, {"a": node, "b": names[-1]})
        for task, prediction in network(IMAGE).items():
            read = features[{"a": node, "b": names[-1]}[task]]
            expected = network.heads.call_head(task, read, (32, 32))
            torch.testing.assert_close(prediction, expected, rtol=1e-4, atol=1e-5)


def test_weights_are_those_of_every_other_method() -> None:
    """With all layers left it is the multi-task network; a narrower head alone is fresh."""
    made = parts(seed=4)
    reference = MultiTaskNet(made)
    state = torch.random.get_rng_state()
    whole = layer_optimized(made, dict.fromkeys(made.tasks, "layer4.1"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same_outputs(whole, reference, IMAGE)
    tapped = layer_optimized(made, {"a": "layer4.1", "b": "layer1.0"})
    for key, tensor in reference.heads["a"].state_dict().items():
        assert torch.equal(tensor, tapped.heads["a"].state_dict()[key])
    fresh = tapped.heads["b"].layers[0].conv.weight
    assert fresh.shape[1] == made.graph.channels("layer1.0")
    again = layer_optimized(made, {"a": "layer1.0", "b": "layer1.0"})
    assert torch.equal(again.heads["b"].layers[0].conv.weight, fresh)


# -- the method ---------------------------------------------------------------


def request_of(tmp_path, data, *overrides: str, params=None, emit=ignore) -> TrainingRequest:
    study = check_study(residual(tmp_path, "training.epochs=4", *overrides))
    context = open_context(study, data=data, stored=None, emit=ignore)
    spec = NetworkSpec("lomt", 0, None if params is None else 0, params or {})
    return TrainingRequest(spec, context, None, emit)


def test_the_second_phase_follows_the_first_and_says_what_it_found(tmp_path, data) -> None:
    heard: list[Log] = []
    sparse, joint = phases_of(request_of(tmp_path, data, emit=heard.append))
    assert (sparse.span, joint.span) == ((0, 2), (2, 4))
    network = sparse.begin(None)
    emptied(network.module.encoder("depth"), "layer3", "layer4")
    network.module.record(0.1)
    after = joint.begin(network).module
    heads = after.description.heads
    assert (heads["semseg"].inputs, heads["depth"].inputs) == (26, 6)
    (log,) = heard
    assert log.message.startswith(
        "lomt: semseg reads layer4.1 (0.0 % of its groups are zero), depth reads layer2.1 ("
    )
    rebuilt = joint.rebuild(joint.describe(after))
    assert rebuilt.state_dict().keys() == after.state_dict().keys()


def test_the_learning_rate_of_a_step_sets_its_threshold(tmp_path, data) -> None:
    """Polynomial decay over all epochs; λ from the trial."""
    request = request_of(tmp_path, data, "options.lomt.metric=plain", params={"lambda_group": 5e-4})
    training = request.study.training
    sparse, _ = phases_of(request)
    networks = sparse.begin(None).module
    hooks = sparse.hooks(networks)
    conv = networks.convolutions()[1]
    conv.weight.grad = torch.ones_like(conv.weight)
    before = group_norms(conv, conv.weight.detach().double())
    hooks.before_step(0.5)  # a quarter of the training
    hooks.after_step()
    shrunk = before - group_norms(conv, conv.weight.detach().double())
    decay = 0.75**training.power if training.schedule == "poly" else 1.0
    expected = 0.1 * training.lr * decay * 5e-4 * math.sqrt(group_size(conv))
    torch.testing.assert_close(shrunk, torch.full_like(shrunk, expected), rtol=0.2, atol=1e-8)
    groups = sparse.groups(networks)
    assert [(g.rate, g.optimizer, g.weight_decay) for g in groups] == [
        (0.1, "adamw", 0.1), (0.1, "adamw", 0.0), (1.0, None, None),
    ]  # fmt: skip
    assert sum(len(g.parameters) for g in groups) == len(list(networks.parameters()))


@pytest.mark.slow("trains")
def test_a_phase_that_has_settled_ends_early(tmp_path, data) -> None:
    """With a large λ all groups vanish in two epochs; the epochs saved are not used."""
    overrides = ("options.lomt.lambda_group=1000", "options.lomt.sparse=0.8")
    request = request_of(tmp_path, data, "training.epochs=5", *overrides)
    result = train_network(
        request.spec, request.context, out=tmp_path / "out", start=None, emit=ignore
    )
    assert result.curves["sparsity.depth"][1:3] == [100.0, 100.0]
    assert result.epochs == 4, "three of the first phase, whose third is stable, and the last"


def test_budgets_are_refused_with_the_reason(tmp_path) -> None:
    study = residual(tmp_path).model_copy(update={"tune": ("lomt",)})
    with pytest.raises(UsageError, match=r"depends on the layers .* found 1.3xMTL; leave --budget"):
        check_run(study, ["1.3xMTL"], ExecutionOptions())
    check_run(study, [], ExecutionOptions())


def test_sparsity_counts_groups() -> None:
    encoder = parts().encoder()
    assert sparsity_of(encoder) == 0
    assert sparsity_of(emptied(encoder, "conv1", "layer")) == 100


def test_a_search_keeps_to_the_range_of_the_option(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"search.lambda_group must be .* within \[1e-09, 1000\]"):
        check_study(residual(tmp_path, "search.lambda_group=[1e-4, 1e300]"))
