"""Deep Elastic Networks: widths as slices, their cost and rewards by hand."""

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import NetworkSpec, TrainedNetwork, TrainingRequest, check_study
from gatesearch.methods.den.blocks import FULL, WIDTHS, elastic_blocks, kept_channels
from gatesearch.methods.den.elastic import ElasticNet, usage
from gatesearch.methods.den.method import DENOptions, policy_loss
from gatesearch.methods.den.selector import Selector
from gatesearch.methods.den.widths import encoder_macs, left_out, saved_macs
from gatesearch.models import parts_of
from gatesearch.models.activation import rectified
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.graph import Graph, execute
from gatesearch.models.nodes import INPUT, Node
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from gatesearch.trials.trial import train_network
from tests.methods.toys import parts, random_image, scattered
from tests.search.tiny import ignore, residual


def small(backbone: str = "resnet18", stride: int = 32) -> Graph:
    return BACKBONES[backbone](output_stride=stride, width=0.05)


def fixed(network: ElasticNet, levels: Tensor) -> ElasticNet:
    """The network at given levels, (B, T, blocks)."""
    network.levels = lambda image: levels
    return network


class Sliced:
    """An encoder at one level per block, computed with weights that are cut; counts its work."""

    def __init__(self, network: ElasticNet, levels: list[int]) -> None:
        self.network, self.macs = network, 0
        self.level: dict[str, int] = {}
        self.last = {block.last.name for block in network.blocks}
        for block, level in zip(network.blocks, levels, strict=True):
            for node in (*block.inner, block.last):
                self.level[node.name] = level

    def features(self, image: Tensor) -> Tensor:
        nodes = self.network.encoder.graph.nodes
        return execute(nodes, {INPUT: image}, self.node)[nodes[-1].name]

    def node(self, node: Node, inputs: list[Tensor]) -> Tensor:
        if not node.has_weights:
            return node.run(inputs, None)
        level = self.level.get(node.name, FULL)
        if level == 0:  # nothing of the branch is computed
            return torch.zeros(())
        layer = self.network.encoder.layer(node.name)
        whole = node.name not in self.level or node.name in self.last
        kept = node.outputs if whole else kept_channels(node.outputs, level)
        weight = layer.conv.weight[:kept]
        if not node.channelwise:
            weight = weight[:, : inputs[0].shape[1]]
        conv, norm = layer.conv, layer.bn
        y = F.conv2d(
            inputs[0], weight, None, conv.stride, conv.padding, conv.dilation,
            kept if node.channelwise else 1,
        )  # fmt: skip
        self.macs += weight.numel() * y.shape[2] * y.shape[3]
        y = F.batch_norm(
            y, norm.running_mean[:kept], norm.running_var[:kept], norm.weight[:kept],
            norm.bias[:kept], eps=norm.eps,
        )  # fmt: skip
        return rectified(y, layer.ceiling) if layer.relu else y


@settings(max_examples=12, deadline=None)
@given(
    backbone=st.sampled_from(sorted(BACKBONES.keys() - {"cnn4", "cnn8"})),  # they have no blocks
    seed=st.integers(0, 2**16),
    stride=st.sampled_from([8, 32]),
)
@torch.no_grad()
def test_widths_compute_and_cost_what_slices_do(backbone: str, seed: int, stride: int) -> None:
    graph = small(backbone, stride)
    network = scattered(ElasticNet(parts(graph))).eval()
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 2, len(network.blocks))
    levels = torch.randint(0, len(WIDTHS), shape, generator=generator)
    image = random_image(40)
    found = fixed(network, levels)(image)
    saved = saved_macs(levels, left_out(network, (40, 40)))
    for frame in range(2):  # one image at a time
        for t, task in enumerate(network.tasks):
            sliced = Sliced(network, levels[frame, t].tolist())
            features = sliced.features(image[frame : frame + 1])
            expected = network.heads[task](features, (40, 40))
            off = (found[task][frame] - expected[0]).abs().max() / expected.abs().max()
            assert off < 1e-5
            assert encoder_macs(graph, (40, 40)) - int(saved[frame, t]) == sliced.macs


def test_blocks_of_each_kind() -> None:
    basic = elastic_blocks(small("resnet18"))
    assert [block.name for block in basic] == [f"layer{s}.{b}" for s in range(1, 5) for b in (0, 1)]
    assert [node.name for node in basic[0].inner] == ["layer1.0.conv1"]
    assert basic[0].last.name == "layer1.0.conv2"
    bottleneck = elastic_blocks(small("resnet50"))[0]
    assert [node.name for node in bottleneck.inner] == ["layer1.0.conv1", "layer1.0.conv2"]
    # Of EfficientNet's 16 blocks those that keep size and channels have a sum.
    mobile = elastic_blocks(small("efficientnet_lite0"))
    assert [block.name for block in mobile] == [
        f"blocks.{i}" for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)
    ]


@pytest.mark.parametrize(
    ("channels", "kept"), [(8, [0, 2, 4, 8]), (3, [0, 1, 1, 3]), (1, [0, 1, 1, 1])]
)
def test_kept_channels(channels: int, kept: list[int]) -> None:
    assert [kept_channels(channels, level) for level in range(4)] == kept


def test_multiply_adds_of_a_block_by_hand() -> None:
    graph = BACKBONES["resnet18"](output_stride=32)
    block = next(block for block in elastic_blocks(graph) if block.name == "layer2.0")
    sizes = {node.name: (5, 7) for node in graph}
    for level, kept in enumerate((0, 32, 64, 128)):
        assert block.macs(level, sizes) == 9 * 35 * (64 * kept + kept * 128)


def test_the_selector_is_the_one_that_adashare_counts() -> None:
    selector = Selector(32, decisions=2 * 16, choices=4, seed=0)
    cost = count_macs(selector, (1, 3, 224, 224), cross_check=False)
    assert cost.macs / 1e9 == pytest.approx(2.124, abs=1e-3)
    # Untrained, it draws all alike and chooses the last.
    logits = selector(random_image(9))
    assert logits.shape == (2, 32, 4)
    assert logits.softmax(-1).sub(0.25).abs().max() < 1e-3
    assert set(logits.argmax(-1).flatten().tolist()) == {3}


def test_the_policy_loss_by_hand() -> None:
    log_prob = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], requires_grad=True)
    losses = torch.tensor([[1.0, math.nan], [3.0, 0.5]])
    used = torch.tensor([[1.0, 0.5], [0.5, 0.0]])
    loss = policy_loss(log_prob, losses, used, weights=torch.tensor([2.0, 1.0]), width_reward=0.4)
    # Task 0: R = -2 + 0, -6 + 0.4 x 0.75 = -5.7; less the mean -3.85: +-1.85.
    # Task 1: one frame has labels, and it is its own mean.
    assert loss.item() == pytest.approx(-(-1 * 1.85 + -3 * -1.85) / 2)
    loss.backward()
    torch.testing.assert_close(log_prob.grad, torch.tensor([[-0.925, 0.0], [0.925, 0.0]]))


def test_widths_in_training() -> None:
    network = ElasticNet(parts()).train()
    image = random_image(16, frames=8)
    network.drawing = "mixed"
    levels = network.levels(image)
    assert (levels[:6] == FULL).all()
    assert set(levels[6:].flatten().tolist()) == {0, 1, 2, 3}
    two = network.levels(image[:2])  # of which a quarter is less than one
    assert (two[0] == FULL).all()
    assert (two[1] < FULL).any()
    network.drawing = "chosen"
    assert (network.levels(image) == FULL).all()
    network.drawing = "drawn"
    levels = network.levels(image)
    log_prob, used = network.take_drawn()
    assert set(levels.flatten().tolist()) == {0, 1, 2, 3}
    # A quarter each: log π of 8 blocks is 8 log 0.25.
    torch.testing.assert_close(
        log_prob.detach(), torch.full((8, 2), 8 * math.log(0.25)), atol=0.01, rtol=0
    )
    expected = torch.tensor(WIDTHS)[levels].mean(-1)
    torch.testing.assert_close(used, expected)
    with pytest.raises(AssertionError):
        network.take_drawn()
    network.eval()
    assert (network.levels(image) == FULL).all()


def test_a_selector_learns_what_is_rewarded() -> None:
    """Task a is best at full width, task b is the same at any."""
    torch.manual_seed(0)
    network = ElasticNet(parts()).train()
    network.drawing = "drawn"
    optimizer = torch.optim.Adam(network.selector.parameters(), lr=0.02)
    image = random_image(8, frames=32)
    for _ in range(60):
        network.levels(image)
        log_prob, used = network.take_drawn()
        losses = torch.stack([3 * (1 - used[:, 0]), torch.zeros(32)], 1)
        loss = policy_loss(log_prob, losses, used, weights=torch.ones(2), width_reward=1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.drawing = "chosen"
    wide, narrow = usage(network.levels(image)).mean(0).tolist()
    assert wide > 0.9
    assert narrow < 0.2


@given(
    epochs=st.integers(1, 200),
    elastic=st.floats(0, 1),
    selector=st.floats(0, 1),
    rounds=st.integers(1, 20),
)
def test_phases_share_the_epochs(epochs: int, elastic: float, selector: float, rounds: int) -> None:
    spans = DENOptions(elastic=elastic, selector=selector, rounds=rounds).spans(epochs)
    assert spans[0][0] == "elastic"
    assert spans[0][1][0] == 0
    assert spans[0][1][1] >= 1
    assert spans[-1][1][1] == epochs
    assert all(a[1][1] == b[1][0] for a, b in pairwise(spans))
    if spans[0][1][1] < epochs:
        taught = [last - first for name, (first, last) in spans if name.startswith("selector")]
        assert min(taught) >= 1
        assert len(taught) <= rounds


def test_phases_at_published_settings() -> None:
    spans = dict(DENOptions().spans(100))
    assert spans["elastic"] == (0, 30)
    assert spans["selector 1"] == (30, 32)
    assert spans["network 1"] == (32, 37)
    assert spans["network 10"] == (95, 100)


@pytest.mark.parametrize("bad", ["elastic=1.5", "selector=-1", "rounds=0", "width_reward=-0.1"])
def test_options_out_of_range_are_refused(tmp_path, bad: str) -> None:
    with pytest.raises(UsageError, match=bad.partition("=")[0]):
        check_study(residual(tmp_path, f"options.den.{bad}"))


def test_phases_know_what_they_learn_and_cost(tmp_path, data) -> None:
    study = check_study(residual(tmp_path, "training.epochs=4", "options.den.rate=2"))
    context = open_context(study, data=data, stored=None, emit=ignore)
    request = TrainingRequest(NetworkSpec("den", 0), context, None, ignore)
    elastic, selector, network = phases_of(request)
    module = elastic.begin(None).module
    assert selector.begin(TrainedNetwork(module)).module is module
    choosing = count_macs(module.selector, context.input_shape, cross_check=False).gflops
    whole = count_macs(module, context.input_shape, cross_check=False).gflops
    passes = whole - choosing
    # A step counts as three forward passes. While the selector learns, the rest only runs forward;
    # while the rest learns, the selector does.
    for phase, step in ((elastic, 3 * passes), (selector, passes + 3 * choosing),
                        (network, 3 * passes + choosing)):  # fmt: skip
        assert 3 * phase.forward_gflops(module) == pytest.approx(step)
    own = {id(p) for p in module.selector.parameters()}
    (group,) = selector.groups(module)
    assert (group.rate, group.optimizer) == (2.0, "adam")
    assert {id(p) for p in group.parameters} == own
    for phase in (elastic, network):
        (group,) = phase.groups(module)
        assert {id(p) for p in group.parameters} == {id(p) for p in module.parameters()} - own
    assert [phase.weighting is not None for phase in (elastic, selector, network)] == [0, 1, 0]
    drawings = [phase.hooks(module) and module.drawing for phase in (elastic, selector, network)]
    assert drawings == ["mixed", "drawn", "chosen"]
    module.train()
    assert network.current_gflops(module)() == pytest.approx(whole)  # untrained: at full width
    assert module.training


@pytest.mark.slow("trains")
def test_a_result_has_the_expected_cost_and_the_widths(tmp_path, data) -> None:
    study = check_study(
        residual(tmp_path, "training.epochs=6", "options.den.rate=30", "options.den.selector=0.5")
    )
    context = open_context(study, data=data, stored=None, emit=ignore)
    params = {"width_reward": 1000.0}
    spec = NetworkSpec("den", 0, 0, params)
    result = train_network(spec, context, out=tmp_path / "out", start=None, emit=ignore)
    own = [result.details["validation"][task] for task in study.tasks]
    for figures in own:
        shares = [figures[f"blocks at width {100 * width:g} %, share"] for width in WIDTHS]
        assert sum(shares) == pytest.approx(1)
        means = [figures[f"mean width, stage {stage}"] for stage in range(1, 5)]
        width = sum(share * width for share, width in zip(shares, WIDTHS, strict=True))
        assert sum(means) / 4 == pytest.approx(width)  # as many blocks in each stage
        assert (
            figures["encoder GFLOPs, lowest"]
            <= figures["encoder GFLOPs, mean"]
            <= figures["encoder GFLOPs, highest"]
        )
    assert any(figures["blocks at width 100 %, share"] < 1 for figures in own)
    network = ElasticNet(parts(small()))
    selector = count_macs(network.selector, context.input_shape, cross_check=False).gflops
    passes = sum(figures["encoder GFLOPs, mean"] for figures in own)
    # a whole number of multiply-adds
    assert result.backbone_gflops == pytest.approx(selector + passes, abs=2e-9)


@pytest.mark.slow("trains")
def test_a_training_pays_for_the_gradients_of_each_task(tmp_path, data) -> None:
    study = residual(tmp_path, "den.elastic=1.0", "training.epochs=1")
    context = open_context(study, data=data, stored=None, emit=ignore)
    plain, surgery = (
        train_network(
            NetworkSpec("den", 0, weighting=weighting), context, out=tmp_path / weighting,
            start=None, emit=ignore,
        ).train_pflops
        for weighting in ("uniform", "pcgrad")
    )  # fmt: skip
    network = ElasticNet(parts_of(study))
    whole = count_macs(network, context.input_shape)
    selector = count_macs(network.selector, context.input_shape).macs
    shared = (whole.backbone_macs - selector) / (whole.macs - selector)
    # Forward and backward count three passes; a second backward two, of the encoder alone.
    assert surgery / plain == pytest.approx((3 + 2 * shared) / 3)
