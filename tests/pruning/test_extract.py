"""Any gate pattern: the compact network computes what the supernet does, and nothing besides."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from gatesearch.cost import PatternCost, count_macs
from gatesearch.errors import UsageError
from gatesearch.files import FileRefusedError
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.channel_source import channel_positions
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.gated_supernet import SHARED, GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.heads import Head, deeplabv3, light
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.models.nodes import INPUT, Activation, Add, BatchNorm, Conv, ConvStep
from gatesearch.models.nodes.attention import BiasTable
from gatesearch.models.nodes.linear import LinearLayer
from gatesearch.models.nodes.per_channel import ChannelParameters
from gatesearch.pruning import (
    CompactNet,
    extract,
    live_values,
    load_compact,
    number_values,
    save_compact,
    sharing,
)
from gatesearch.pruning.mix import MixStep

HEADS = {"a": 3, "b": 1, "c": 2}
SHAPE = (1, 3, 32, 32)


def parts(graph: Graph, tasks: int = 3) -> Parts:
    names = list(HEADS)[:tasks]
    kinds = {"c": "pooled"}  # the third task is of whole images
    return Parts(
        graph,
        {t: HeadSpec(kinds.get(t, "light"), graph.outputs, 4, HEADS[t]) for t in names},
    )


def scattered(model: nn.Module, seed: int = 0, *, awake: bool = False) -> nn.Module:
    """Weights and statistics that tell every stream and channel from every other.

    Args:
        awake: No ReLU of the network is ever at zero, so that every dependence has a gradient.
    """
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
            if awake:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                module.weight.data /= module.weight[0].numel()
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 9.0 if awake else 0.0, 0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, ChannelParameters | LinearLayer | BiasTable):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
    if isinstance(model, GatedSupernet):
        for beta in model.beta.values():
            nn.init.normal_(beta)
    return model.eval()


def put(model: GatedSupernet, rng: np.random.Generator) -> None:
    """Gates of a density of its own for every layer and task, ends included."""
    pattern = {}
    for name, gates in model.hard_gates().items():
        density = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], size=(gates.shape[0], 1))
        if rng.random() < 0.2:
            density[:] = rng.choice([0.0, 1.0])
        pattern[name] = torch.from_numpy(rng.random(gates.shape) < density)
    model.set_gates(pattern)


def all_gates(model: GatedSupernet, on: bool) -> None:
    model.set_gates({name: torch.full_like(g, on) for name, g in model.hard_gates().items()})


@torch.no_grad()
def gap(ours: nn.Module, theirs: nn.Module, image: Tensor) -> float:
    """Largest difference over the largest value, over all tasks."""
    a, b = ours(image), theirs(image)
    assert a.keys() == b.keys()
    return max(float((a[t] - b[t]).abs().max() / b[t].abs().max().clamp(min=1e-6)) for t in a)


@settings(max_examples=12, deadline=None)
@given(
    backbone=st.sampled_from(sorted(BACKBONES)),
    granularity=st.sampled_from(["conv", "block"]),
    width=st.sampled_from([0.05, 0.08]),
    tasks=st.integers(1, 3),
    mix=st.sampled_from(["tasks", "shared"]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 2**31),
)
def test_compact_computes_what_the_supernet_does(
    backbone, granularity, width, tasks, mix, memory_format, seed
) -> None:
    graph = BACKBONES[backbone](output_stride=32, width=width)
    model = GatedSupernet(parts(graph, tasks), granularity=granularity, mix=mix)
    model = scattered(model, seed)
    put(model, np.random.default_rng(seed))
    compact = extract(model)
    gates, own = model.hard_gates(), sharing(model).own
    assert not any((on & ~gates[name]).any() for name, on in own.items())
    model.set_gates(own)  # the same network, without gates that decide nothing
    same = extract(model)
    assert same.description == compact.description
    for name, value in compact.state_dict().items():
        assert torch.equal(same.state_dict()[name], value), name
    model.set_gates(gates)
    image = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)).double()
    image = image.contiguous(memory_format=memory_format)
    compact.to(torch.float64, memory_format=memory_format)
    assert gap(compact, model.double(), image) < 1e-5
    with torch.no_grad():
        inferred = compact(image)
    followed = compact(image)  # channels are moved in other ways where autograd looks on
    for task, output in inferred.items():
        assert torch.allclose(output, followed[task], rtol=1e-12, atol=1e-12)
    assert not any(
        word in name for name in compact.state_dict() for word in ("alpha", "beta", "gate")
    )


@settings(max_examples=6, deadline=None)
@given(
    granularity=st.sampled_from(["conv", "block"]),
    backbone=st.sampled_from(["resnet18", "resnet50", "efficientnet_lite0"]),
    mix=st.sampled_from(["tasks", "shared"]),
    seed=st.integers(0, 2**31),
)
def test_live_channels_are_those_with_a_gradient(granularity, backbone, mix, seed) -> None:
    """An independent reference: autograd through the supernet, no ReLU of which is at its ends."""
    graph = BACKBONES[backbone](output_stride=32, width=0.04)
    open_ended = (replace(n, ceiling=None) if isinstance(n, Conv) else n for n in graph)
    graph = Graph(tuple(open_ended), graph.stride)
    model = GatedSupernet(parts(graph), granularity=granularity, mix=mix)
    model = scattered(model, seed, awake=True).double()
    put(model, np.random.default_rng(seed))
    image = torch.rand(SHAPE, dtype=torch.float64)
    # positive weights, positive features: no two paths cancel
    sum((x * torch.rand_like(x)).sum() for x in model(image).values()).backward()
    gates = {name: on.numpy() for name, on in model.hard_gates().items()}
    values = number_values(graph, gates, mix=mix)
    live = live_values(graph, values)
    convs = [node.name for node in graph.weighted_nodes]
    expected, found = {}, {}
    for stream, name in enumerate((*model.tasks, SHARED)):
        encoder = model.streams[name]
        assert isinstance(encoder, Encoder)
        for node in graph.weighted_nodes:
            gradient = encoder.layer(node.name).bn.bias.grad
            touched = torch.zeros(node.outputs) if gradient is None else gradient
            expected[node.name, stream] = (touched != 0).tolist()
            raw = values.raw.get((node.name, stream))
            found[node.name, stream] = [False] * node.outputs if raw is None else live[raw].tolist()
    assert found == expected
    for name, own in sharing(model).own.items():
        if granularity == "conv":
            assert own.tolist() == [expected[name, t] for t in range(len(own))]
    # and the compact network holds exactly these, in as many convolutions as there are inputs
    sizes, counted = Counter(), Counter()
    for step in extract(model).description.steps:
        if isinstance(step, ConvStep):
            sizes[next(n for n in convs if step.name.startswith(f"{module_key(n)}_"))] += (
                step.outputs
            )
    for (node, _), on in expected.items():
        counted[node] += sum(on)
    assert sizes == counted


@pytest.mark.parametrize("granularity", ["conv", "block"])
@pytest.mark.parametrize("backbone", ["cnn8", "resnet18", "resnet50", "efficientnet_lite0"])
def test_ends_cost_exactly_stl_and_mtl(backbone: str, granularity: str) -> None:
    graph = BACKBONES[backbone](output_stride=8, width=0.05)
    supernet = GatedSupernet(parts(graph, 2), granularity=granularity)
    for on, method in ((True, SingleTaskNets), (False, MultiTaskNet)):
        all_gates(supernet, on)
        compact, plain = extract(supernet), method(parts(graph, 2))
        assert sum(p.numel() for p in compact.parameters()) == sum(
            p.numel() for p in plain.parameters()
        )
        if backbone != "resnet50":  # tracing the deepest one takes its time
            ours, theirs = (count_macs(m, SHAPE, cross_check=False) for m in (compact, plain))
            assert ours == theirs


def conv_steps(compact: CompactNet) -> dict[str, tuple[int, int]]:
    steps = compact.description.steps
    return {s.name: (s.inputs, s.outputs) for s in steps if isinstance(s, ConvStep)}


CHAIN = Graph(
    (
        Conv("one", INPUT, 3, 2, 1),
        Conv("two", "one", 2, 3, 1),
        Conv("three", "two", 3, 2, 1),
    ),
    stride=1,
)


def chained(one: list[str], two: list[str], three: list[str]) -> GatedSupernet:
    """Two tasks over `CHAIN`; a row a task, `#` = its own channel, `.` = the shared one."""
    model = scattered(GatedSupernet(parts(CHAIN, 2)))
    rows = {"one": one, "two": two, "three": three}
    model.set_gates(
        {name: torch.tensor([[c == "#" for c in row] for row in on]) for name, on in rows.items()}
    )
    return model


def test_liveness_by_hand() -> None:
    """Written out from the heads back.

    three: a owns channel 0 and reads shared 1; b reads shared 0 and 1.
        a's conv 1 of 2 channels, shared 2 of 2, b's none.
    two: a's conv at three reads a's row (own 0, shared 1, shared 2); the shared conv at three reads
        the mix: channel 0 mixes a's own with shared 0 (b's choice), channels 1 and 2 are shared
        for both, a mix of equals. So a's conv 1 channel, shared 3, b's none.
    one: a's conv at two reads (own 0, shared 1); the shared conv at two reads the mix: channel 0
        mixes a's own with b's own, channel 1 is shared. So a 1, b 1, shared channel 1 alone.
    """
    model = chained(["#.", "#."], ["#..", "..."], ["#.", ".."])
    compact = extract(model)
    assert conv_steps(compact) == {
        "one_a_b__shared": (3, 3),
        "two_a": (2, 1), "two__shared": (2, 3),
        "three_a": (3, 1), "three__shared": (3, 2),
    }  # fmt: skip
    mixes = {s.name: s.channels for s in compact.description.steps if isinstance(s, MixStep)}
    assert mixes == {"one_mix": 1, "two_mix": 1}
    # 9 + 2 + 6 + 3 + 6 multiply-adds a pixel
    assert count_macs(compact, (1, 3, 4, 5), cross_check=False).backbone_macs == 20 * 26
    assert gap(compact, model, torch.randn(1, 3, 4, 5)) < 1e-5
    found = sharing(model)
    assert found.layers == ("one", "two", "three")
    # at one, b's own channel lives for the mix; what it owns and nobody reads is not counted
    assert found.shares == {"a": (1 / 2, 1 / 3, 1 / 2), "b": (1 / 2, 0, 0)}
    assert all(torch.equal(found.own[name], on) for name, on in model.hard_gates().items())


def test_own_channels_that_nobody_reads_are_dead() -> None:
    # both tasks take everything from the shared stream in the end: their own last channels are
    # chosen by no gate, and b's own at `two` only live through the mix
    model = chained(["..", ".."], ["...", "###"], ["##", ".."])
    steps = conv_steps(extract(model))
    assert steps["two_b__shared"] == (2, 6)  # one convolution: both read the shared stream
    assert {name: on.tolist() for name, on in sharing(model).own.items()} == {
        "one": [[False] * 2] * 2,
        "two": [[False] * 3, [True] * 3],
        "three": [[True] * 2, [False] * 2],
    }  # fmt: skip
    # with the shared stream unread behind it, the mix is not needed, and b's own follow
    model = chained(["..", ".."], ["...", "###"], ["##", "##"])
    assert conv_steps(extract(model)) == {
        "one__shared": (3, 2), "two_b__shared": (2, 6),
        "three_a": (3, 2), "three_b": (3, 2),
    }  # fmt: skip


def test_a_dead_end_dies_all_the_way_back() -> None:
    # every task goes its own way at the end: the shared stream lives nowhere behind its last reader
    model = chained(["##", ".."], ["###", "###"], ["##", "##"])
    assert conv_steps(extract(model)) == {
        "one_a__shared": (3, 4),
        "two_a": (2, 3), "two_b": (2, 3),
        "three_a": (3, 2), "three_b": (3, 2),
    }  # fmt: skip
    # and the other way round: a's own first layers are computed for nobody
    model = chained(["##", ".."], ["...", "..."], ["..", ".."])
    steps = conv_steps(extract(model))
    assert set(steps) == {"one_a__shared", "two__shared", "three__shared"}  # through the mix
    with torch.no_grad():
        before = extract(model)(torch.ones(1, 3, 2, 2))
        model.beta["one"][0] += 50  # the mix at `one` is now a's alone
        after = extract(model)(torch.ones(1, 3, 2, 2))
    assert not torch.allclose(before["b"], after["b"])


def test_a_common_prefix_is_computed_once() -> None:
    # gates closed up to layer2.1: one encoder until there, then four (three tasks and the shared)
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    model = scattered(GatedSupernet(parts(graph)))
    prefix = {node.name for stage in (0, 1, 2) for node in graph.stage(stage)}
    model.set_gates(
        {name: torch.full_like(g, name not in prefix) for name, g in model.hard_gates().items()}
    )
    compact = extract(model)
    behind = [node for node in graph.weighted_nodes if node.name not in prefix]
    # two of the layers behind it read the prefix, and each is one convolution for all streams
    assert (
        len(conv_steps(compact))
        == len(graph.weighted_nodes) - len(behind) + 3 * (len(behind) - 2) + 2
    )
    assert not compact.mixes
    assert gap(compact, model, torch.randn(SHAPE)) < 1e-5


def test_an_elementwise_node_of_equal_inputs_is_computed_once() -> None:
    graph = Graph(
        (
            Conv("stem", INPUT, 3, 4, 3),
            Conv("branch", "stem", 4, 4, 3, relu=False, stage=1),
            Add("sum", "branch", "stem", 4, stage=1),
        ),
        stride=1,
    )
    model = scattered(GatedSupernet(parts(graph, 2)))
    on = {name: torch.zeros(2, 4, dtype=torch.bool) for name in ("stem", "branch")}
    on["branch"][0, 1] = True  # a's own in one of four channels
    model.set_gates(on)
    values = number_values(graph, {name: gates.numpy() for name, gates in on.items()})
    # four sums of shared, one more for a
    assert len(values.distinct["sum"].outputs) == 5
    assert (values.read["sum", 0] == values.read["sum", 1]).tolist() == [True, False, True, True]
    assert gap(extract(model), model, torch.randn(1, 3, 6, 6)) < 1e-5


def test_a_depthwise_convolution_by_hand() -> None:
    """A mobile block: a channel that one task owns needs one channel below it.

    reduce: a owns channel 0, b none, so a's convolution 1 of 1 channels and the shared one 1.
    deep: a's reads all it sees in its stream (own 0, own 1, shared 2), the shared one all three of
        the mix. So a's 2 channels, the shared 3.
    wide: a's own 0 and 1 each need their channel of what a reads there: a's own 0, and shared 1;
        the shared one needs the mix in 0 and shared 1 and 2. So a's 1 channel, b's none, shared 3.
    """
    graph = Graph(
        (
            Conv("wide", INPUT, 3, 3, 1, ceiling=6.0),
            Conv("deep", "wide", 3, 3, 3, ceiling=6.0, depthwise=True),
            Conv("reduce", "deep", 3, 1, 1, relu=False, ends_block=True),
        ),
        stride=1,
    )
    model = scattered(GatedSupernet(parts(graph, 2)))
    rows = {"wide": ("#..", "..."), "deep": ("##.", "..."), "reduce": ("#", ".")}
    model.set_gates(
        {name: torch.tensor([[c == "#" for c in row] for row in on]) for name, on in rows.items()}
    )
    compact = extract(model)
    assert conv_steps(compact) == {
        "wide_a__shared": (3, 4), "deep_a__shared": (5, 5),
        "reduce_a": (3, 1), "reduce__shared": (3, 1),
    }  # fmt: skip
    # 4 x 3, 5 x 9 and 2 x 3 multiply-adds a pixel
    assert count_macs(compact, (1, 3, 4, 5), cross_check=False).backbone_macs == 20 * 63
    assert int(PatternCost.of(model, (1, 3, 4, 5)).macs(model.hard_gates())) == 20 * 63 + sum(
        20 * (3 * 3 * 1 * 4 + 4 * n) for n in (3, 1)
    )
    image = 9 * torch.randn(1, 3, 4, 5)
    assert gap(compact, model, image) < 1e-5
    assert not torch.equal(*(cut_at(compact, image, ceiling) for ceiling in (6.0, None)))


def cut_at(compact: CompactNet, image: Tensor, ceiling: float | None) -> Tensor:
    """A task's predictions with another ceiling of its convolutions."""
    for conv in compact.convs.values():
        conv.ceiling = ceiling
    with torch.no_grad():
        return compact(image)["a"]


def test_networks_of_before_depthwise_convolutions_load(tmp_path: Path) -> None:
    model = scattered(GatedSupernet(parts(BACKBONES["resnet18"](output_stride=32, width=0.05))))
    put(model, np.random.default_rng(3))
    compact = extract(model)
    save_compact(compact, tmp_path / "net")
    path = tmp_path / "net.json"
    description = json.loads(path.read_text())
    for step in description["steps"]:
        step.pop("ceiling", None), step.pop("depthwise", None)
        if step["op"] == "add":
            step.pop("relu")
    path.write_text(json.dumps(description))
    assert gap(load_compact(tmp_path / "net"), compact, torch.randn(SHAPE)) == 0


def test_a_task_may_be_called_shared() -> None:
    graph = CHAIN
    heads = {task: HeadSpec("light", 2, 4, 1) for task in ("shared", "other")}
    model = scattered(GatedSupernet(Parts(graph, heads)))
    put(model, np.random.default_rng(1))
    assert gap(extract(model), model, torch.randn(1, 3, 4, 5)) < 1e-5


@pytest.fixture
def compact() -> CompactNet:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    model = scattered(GatedSupernet(parts(graph)))
    put(model, np.random.default_rng(2))
    return extract(model)


def test_saved_and_loaded_is_equal_to_the_bit(compact: CompactNet, tmp_path: Path) -> None:
    save_compact(compact, tmp_path / "model")
    loaded = load_compact(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert loaded.description == compact.description
    assert not loaded.training
    image = torch.randn(SHAPE)
    with torch.no_grad():
        ours, theirs = loaded(image), compact(image)
    assert all(torch.equal(ours[task], theirs[task]) for task in HEADS)


class UsersHead(nn.Module):
    """A head that is in no table, with a parameter, a buffer and a branch of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.register_buffer("shift", torch.randn(outputs, 1, 1, dtype=torch.float64))
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        scores = self.norm(nn.functional.conv2d(features, self.weight)) + self.shift.float()
        scores = scores if self.training else scores.square()
        return nn.functional.interpolate(scores, size=size, mode="nearest")


class OwnSpec(HeadSpec):
    """A specification whose kind is not in the table either."""

    def build(self) -> UsersHead:
        return UsersHead(self.inputs, self.outputs)


def users_supernet(way: str) -> GatedSupernet:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    given = parts(graph)
    if way == "specification":
        own = OwnSpec("mine", graph.outputs, 4, HEADS["b"])
        given = replace(given, heads={**given.heads, "b": own})
    model = GatedSupernet(given)
    if way == "module":
        model.heads["b"] = UsersHead(graph.outputs, HEADS["b"])
    model = scattered(model)
    put(model, np.random.default_rng(5))
    return model


@pytest.mark.parametrize("way", ["module", "specification"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_users_head_is_carried_over_as_a_copy(way: str, memory_format) -> None:
    model = users_supernet(way).to(memory_format=memory_format)
    image = torch.randn(SHAPE)
    compact = extract(model.train())
    model.eval()
    assert gap(compact, model, image) < 1e-5
    head = compact.heads["b"]
    assert type(head) is UsersHead
    assert head.shift.dtype == torch.float64
    assert head.weight.is_contiguous()
    names = {name for name in compact.state_dict() if name.startswith("heads.b.")}
    assert {name.removeprefix("heads.b.") for name in names} == head.state_dict().keys()
    with torch.no_grad():  # a copy: what happens to the supernet afterwards does not reach it
        before = compact(image)["b"]
        for parameter in model.heads.parameters():
            parameter.zero_()
        assert torch.equal(compact(image)["b"], before)
    twice = extract(users_supernet(way).double())
    assert twice.heads["b"].weight.dtype == torch.float32
    assert all(x.isfinite().all() for x in twice(image).values())


class RememberingHead(nn.Module):
    """A head that keeps what it computed last, as modules do to look at it later."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.last: list[Tensor] = []

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        self.last = [self.conv(features)]
        return nn.functional.interpolate(self.last[0], size=size)


HEADS_THAT_HOLD_COMPUTED_TENSORS = {
    "remembers": lambda conv: conv,
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "old_weight_norm": nn.utils.weight_norm,
    "old_spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", amount=0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", HEADS_THAT_HOLD_COMPUTED_TENSORS)
def test_a_head_is_carried_over_after_a_training_step(kind: str) -> None:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    model = GatedSupernet(parts(graph))
    change = HEADS_THAT_HOLD_COMPUTED_TENSORS[kind]
    model.heads["b"] = RememberingHead(change(nn.Conv2d(graph.outputs, HEADS["b"], 1)))
    put(scattered(model), np.random.default_rng(5))
    image = torch.randn(2, *SHAPE[1:])
    model.train()(image)["b"].square().mean().backward()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compact = extract(model)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert gap(compact, model.eval(), image) < 1e-5


def test_tasks_that_share_a_head_share_its_copy() -> None:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    model = GatedSupernet(parts(graph))
    model.heads["a"] = model.heads["b"] = UsersHead(graph.outputs, 2)
    compact = extract(model)
    assert compact.heads["a"] is compact.heads["b"] is not model.heads["b"]


@pytest.mark.parametrize("way", ["module", "specification"])
def test_a_users_head_is_refused_when_it_is_saved(way: str, tmp_path: Path) -> None:
    compact = extract(users_supernet(way))
    with pytest.raises(UsageError, match=r"deeplabv3, light.* found UsersHead for task b") as told:
        save_compact(compact, tmp_path / "model")
    assert "\n" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


def other_head(kind: str, compact: CompactNet) -> nn.Module:
    """A head that only nearly is the described one."""
    inputs = compact.description.heads["b"].inputs
    if kind == "subclass":

        class Other(Head):
            pass

        return Other(light(inputs, 4, 1).layers)
    if kind == "dilated":
        head = light(inputs, 4, 1)
        head.layers[0].conv.dilation = (2, 2)
        return head
    return light(inputs, 5, 1) if kind == "wider" else deeplabv3(inputs, 4, 1)


@pytest.mark.parametrize("kind", ["subclass", "dilated", "wider", "deeplabv3"])
def test_a_head_unlike_the_described_one_is_refused_when_saved(
    compact: CompactNet, tmp_path: Path, kind: str
) -> None:
    changed = CompactNet(compact.description, {**compact.heads, "b": other_head(kind, compact)})
    with pytest.raises(UsageError, match="for task b"):
        save_compact(changed, tmp_path / "model")


def test_saving_draws_no_random_number(compact: CompactNet, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    save_compact(compact, tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)


def damaged(stem: Path, kind: str) -> None:
    text, weights = stem.with_suffix(".json"), stem.with_suffix(".safetensors")
    data = text.read_text()
    if kind == "no description":
        text.unlink()
    elif kind == "no weights":
        weights.unlink()
    elif kind == "description cut short":
        text.write_text(data[: len(data) // 2])
    elif kind == "description not text":
        text.write_bytes(b"\xff\xfe\x00")
    elif kind == "another format":
        text.write_text(data.replace('"format": 1', '"format": 2', 1))
    elif kind == "unknown operation":
        text.write_text(data.replace('"op": "conv"', '"op": "exec"', 1))
    elif kind == "unknown key":
        text.write_text(data.replace('"format": 1', '"format": 1, "code": "x"', 1))
    elif kind == "unknown head":
        text.write_text(data.replace('"kind": "light"', '"kind": "lihgt"', 1))
    elif kind == "name that is a path":
        text.write_text(data.replace('"name": "conv1_', '"name": "../conv1_', 1))
    elif kind == "no channels":
        text.write_text(data.replace('"outputs": 1', '"outputs": -1'))
    elif kind == "weights cut short":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif kind == "weights that pickle would run":
        weights.write_bytes(b"\x80\x04cos\nsystem\n")
    elif kind == "weights of another network":
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, weights)
    assert kind.startswith("no ") or text.read_text(errors="replace") != data or "weights" in kind


@pytest.mark.parametrize(
    "kind",
    [
        "no description",
        "no weights",
        "description cut short",
        "description not text",
        "another format",
        "unknown operation",
        "unknown key",
        "unknown head",
        "name that is a path",
        "no channels",
        "weights cut short",
        "weights that pickle would run",
        "weights of another network",
    ],
)
def test_damaged_files_are_refused(compact: CompactNet, tmp_path: Path, kind: str) -> None:
    save_compact(compact, tmp_path / "model")
    damaged(tmp_path / "model", kind)
    file = "safetensors" if "weights" in kind else "json"
    with pytest.raises(FileRefusedError, match=rf"^{tmp_path}/model\.{file} [^\n]*$"):
        load_compact(tmp_path / "model")


def test_compact_is_trained_like_any_network(compact: CompactNet) -> None:
    assert type(compact).__mro__[1] is nn.Module
    compact.train()
    outputs = compact(torch.randn(4, *SHAPE[1:]))
    sum((x * torch.randn_like(x)).sum() for x in outputs.values()).backward()
    # every weight that was kept matters
    still = [n for n, p in compact.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_gated_channelwise_layers_are_stored_as_they_are_read() -> None:
    """A depthwise convolution reads any channels; behind it tasks and mixes read few runs."""
    nodes = (
        Conv("wide", INPUT, 3, 64, 1, relu=False),
        Conv("deep", "wide", 64, 64, 3, depthwise=True, relu=False),
        BatchNorm("norm", "deep", 64),
        Activation("act", "norm", 64, "gelu"),
        Conv("out", "act", 64, 8, 1, ends_block=True),
    )
    model = GatedSupernet(parts(Graph(nodes, stride=1), tasks=2), granularity="conv")
    draw = torch.Generator().manual_seed(0)
    gates = model.hard_gates().items()
    model.set_gates({name: torch.rand(x.shape, generator=draw) > 0.5 for name, x in gates})
    reads = {step.op: step.sources for step in extract(model).description.steps}
    for source in (*reads["mix"], *reads["batch_norm"]):  # the mix of the activation
        places = np.array(channel_positions(source))
        assert np.count_nonzero((np.diff(places, axis=0) != (0, 1)).any(1)) < 4
