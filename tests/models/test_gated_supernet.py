"""The supernet at the ends of its gates, its regulariser, its mix, and what it starts from."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.encoder import Encoder
from gatesearch.models.gated_supernet import SHARED, GatedSupernet, shared_nodes
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import INPUT, Add, Conv
from gatesearch.pruning import extract
from tests.methods.toys import HEADS, parts, scattered


def below(model: nn.Module, prefix: str) -> dict[str, Tensor]:
    state = model.state_dict()
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def all_gates(model: GatedSupernet, on: bool) -> None:
    model.set_gates({name: torch.full_like(g, on) for name, g in model.hard_gates().items()})


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("granularity", ["conv", "block"])
@torch.no_grad()
def test_all_gates_open_is_stl_and_all_closed_is_mtl(granularity: str, image: Tensor) -> None:
    supernet = scattered(GatedSupernet(parts(), granularity=granularity)).eval()
    stl, mtl = SingleTaskNets(parts()).eval(), MultiTaskNet(parts()).eval()
    for task in HEADS:
        stl.encoders[task].load_state_dict(below(supernet, f"streams.{task}."))
    mtl.encoder.load_state_dict(below(supernet, f"streams.{SHARED}."))
    for model in (stl, mtl):
        model.heads.load_state_dict(supernet.heads.state_dict())
    for beta in supernet.beta.values():
        nn.init.normal_(beta)
    for on, model in ((True, stl), (False, mtl)):
        all_gates(supernet, on)
        ours, theirs = supernet(image), model(image)
        assert ours.keys() == theirs.keys() == HEADS.keys()
        for task, channels in HEADS.items():
            assert ours[task].shape == (2, channels, 64, 64)
            torch.testing.assert_close(ours[task], theirs[task], rtol=1e-5, atol=1e-6)


def by_hand(model: GatedSupernet, image: Tensor) -> list[Tensor]:
    """Equations 2 and 3 in double loops over one chain of convolutions, in evaluation mode."""
    streams = [image] * (len(model.tasks) + 1)
    encoders: list[Encoder] = list(model.streams.values())
    for node in model.graph:
        raw = [encoder.layer(node.name)(x) for encoder, x in zip(encoders, streams, strict=True)]
        gates, shared = model.hard_gates()[node.name], raw[-1]
        own = [x.clone() for x in raw[:-1]]
        for t, x in enumerate(own):
            for c in range(node.outputs):
                if not gates[t, c]:
                    x[:, c] = shared[:, c]
        mix = torch.zeros_like(shared)
        if node.name in model.mixed:
            for c in range(node.outputs):
                beta = [math.exp(model.beta[node.name][t, c]) for t in range(len(own))]
                for t, x in enumerate(own):
                    mix[:, c] += beta[t] / sum(beta) * x[:, c]
        streams = [*own, mix]
    return streams[:-1]


CHAIN = Graph(
    (
        Conv("one", INPUT, 3, 4, 3, stride=2),
        Conv("two", "one", 4, 5, 1),
        Conv("three", "two", 5, 3, 3, relu=False),
    ),
    stride=2,
)


@torch.no_grad()
def test_a_chain_by_the_equations(image: Tensor) -> None:
    model = scattered(GatedSupernet(parts(CHAIN))).eval()
    assert model.mixed == ("one", "two")
    for tensor in (*model.alpha.values(), *model.beta.values()):
        nn.init.normal_(tensor)
    for task, features in zip(HEADS, by_hand(model, image), strict=True):
        expected = model.heads[task](features, (64, 64))
        torch.testing.assert_close(model(image)[task], expected, rtol=1e-5, atol=1e-5)


def test_training_mode_uses_soft_gates(image: Tensor) -> None:
    model = GatedSupernet(parts(CHAIN), estimator="sigmoid", initial=0.75)
    model.temperature = 0.5
    odds = 3**2  # logit log 3, halved temperature
    torch.testing.assert_close(model.gates("two"), torch.full((2, 5), odds / (odds + 1)))
    assert model.eval().gates("two").unique().tolist() == [1]


def test_gradients_reach_every_gate_mix_and_weight(image: Tensor) -> None:
    model = scattered(GatedSupernet(parts(), estimator="sigmoid")).train()
    loss = sum((x * torch.randn_like(x)).sum() for x in model(image).values())
    loss.backward()
    still = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


def test_fused_training_matches_separate_steps_on_a_whole_network(image: Tensor) -> None:
    # the same network with its norms in training mode, once through the fused function and once
    # (without gradients) through separate operations
    model = scattered(GatedSupernet(parts(), estimator="sigmoid")).train()
    fused = model(image)
    with torch.no_grad():
        plain = model(image)
    for task in HEADS:
        torch.testing.assert_close(fused[task], plain[task], rtol=1e-4, atol=1e-4)


def test_cloned_streams_compute_what_the_multi_task_network_does(image: Tensor) -> None:
    mtl = scattered(MultiTaskNet(parts())).eval()
    model = GatedSupernet(parts())
    model.clone_streams(mtl.state_dict())
    for on in (False, True):
        all_gates(model, on)
        ours, theirs = model.eval()(image), mtl(image)
        assert all(torch.allclose(ours[task], theirs[task], atol=1e-5) for task in theirs)


def test_sparsity_by_hand() -> None:
    model = GatedSupernet(parts(CHAIN))
    halves = {"one": (0.5, 0.9), "two": (0.25, 0.9), "three": (0.75, 0.3)}
    with torch.no_grad():
        for name, rows in halves.items():
            for t, p in enumerate(rows):
                model.alpha[name][t] = math.log(p / (1 - p))
    # means over layers, each layer alike whatever its width: 0.5 and 0.7
    torch.testing.assert_close(model.open_share(), torch.tensor([0.5, 0.7]))
    tau = torch.tensor([0.6, 0.3])
    assert model.sparsity(tau).item() == pytest.approx((0 + 0.4) / 2)
    model.sparsity(tau).backward()
    # below its target a task is left alone; d/dα = 1/T 1/L 1/C σ (1 - σ)
    for name, rows in halves.items():
        slope = rows[1] * (1 - rows[1]) / (2 * 3 * model.alpha[name].shape[1])
        assert model.alpha[name].grad[0].abs().max() == 0
        torch.testing.assert_close(
            model.alpha[name].grad[1], torch.full_like(model.alpha[name][1], slope)
        )


def test_sparsity_of_drawn_gates_is_the_share_that_is_drawn_open() -> None:
    model = GatedSupernet(parts(CHAIN), estimator="hard_concrete", initial=0.75)
    model.temperature = 0.5
    # α = log 3; P(G > 0) = σ(log 3 + 0.5 log 11) = 3 √11 / (3 √11 + 1)
    expected = 3 * math.sqrt(11) / (3 * math.sqrt(11) + 1)
    torch.testing.assert_close(model.open_share(), torch.full((2,), expected))
    assert model.sparsity(torch.tensor([0.9, 0.0])).item() == pytest.approx(
        (expected - 0.9 + expected) / 2
    )
    torch.manual_seed(0)
    drawn = torch.stack([model.gates("two") > 0 for _ in range(4_000)]).double().mean()
    assert float(drawn) == pytest.approx(expected, abs=5 * math.sqrt(0.25 / 40_000))


def learned(seed: int) -> GatedSupernet:
    """A supernet with drawn gates, at a temperature and with thresholds of its own."""
    model = scattered(GatedSupernet(parts(CHAIN), estimator="hard_concrete"))
    torch.manual_seed(seed)
    for tensor in (*model.alpha.values(), *model.beta.values()):
        nn.init.normal_(tensor)
    model.temperature = 0.1 + 1 / (seed + 3)
    model.open_shares(torch.tensor([0.3, 0.6]) if seed else torch.tensor([0.8, 0.1]))
    return model


@pytest.mark.parametrize("form", ["dict", "safetensors", "copy"])
def test_a_state_dict_holds_all_that_outputs_depend_on(form: str, image: Tensor) -> None:
    ours, other = learned(0), learned(1)
    state = ours.state_dict()
    if form == "safetensors":
        from safetensors.torch import load, save

        state = load(save(state))
    if form == "copy":
        other = copy.deepcopy(other)
    other.load_state_dict(state)
    assert other.temperature == ours.temperature == 0.1 + 1 / 3
    for mode in (True, False):
        torch.manual_seed(0)
        expected = ours.train(mode)(image)
        torch.manual_seed(0)
        found = other.train(mode)(image)
        assert all(torch.equal(found[task], expected[task]) for task in HEADS)
    assert torch.equal(other.sparsity(torch.zeros(2)), ours.sparsity(torch.zeros(2)))
    ours_cut, other_cut = extract(ours), extract(other)
    assert other_cut.description == ours_cut.description
    assert ours_cut.description != extract(learned(1)).description
    assert all(torch.equal(other_cut(image)[t], ours_cut(image)[t]) for t in HEADS)


def test_a_state_dict_without_gate_state_leaves_it_alone() -> None:
    ours, other = learned(0), learned(1)
    state = ours.state_dict()
    for name in ("threshold", "_extra_state"):
        del state[name]
    temperature, threshold = other.temperature, other.threshold.clone()
    other.load_state_dict(state)
    assert (other.temperature, other.threshold.tolist()) == (temperature, threshold.tolist())
    assert set(state) == set(ours.state_dict()) - {"threshold", "_extra_state"}
    assert all(torch.equal(other.state_dict()[name], state[name]) for name in state)
    with pytest.raises(RuntimeError, match="beta"):  # anything else must be there
        other.load_state_dict({n: t for n, t in state.items() if not n.startswith("beta")})


@pytest.mark.parametrize("initial", [0.2, 0.5, 0.8])
def test_initial_probability(initial: float) -> None:
    model = GatedSupernet(parts(CHAIN), initial=initial)
    torch.testing.assert_close(model.open_share(), torch.full((2,), initial), rtol=0, atol=3e-4)
    opened = {bool(on) for gates in model.hard_gates().values() for on in gates.unique()}
    assert opened == {initial >= 0.5}


def test_set_gates_is_read_back() -> None:
    model = GatedSupernet(parts(CHAIN))
    pattern = {n: torch.rand(2, m.outputs) > 0.5 for n, m in zip(model.gated, CHAIN, strict=True)}
    model.set_gates(pattern)
    assert all(torch.equal(pattern[name], on) for name, on in model.hard_gates().items())


def test_shared_nodes() -> None:
    # Of a ResNet-18 with gates on convolutions, all but the last block's closing ones are read on.
    graph = BACKBONES["resnet18"](width=0.05)
    convs = graph.gated("conv")
    assert set(convs) - set(shared_nodes(graph, convs)) == {"layer4.1.conv2"}
    blocks = graph.gated("block")
    assert blocks[0] == "conv1"
    assert len(blocks) == 1 + 8
    assert set(blocks) - set(shared_nodes(graph, blocks)) == {"layer4.1"}
    bottleneck = BACKBONES["resnet50"](width=0.05)
    convs = bottleneck.gated("conv")
    assert set(convs) - set(shared_nodes(bottleneck, convs)) == {"layer4.2.conv3"}


def test_a_projected_skip_of_the_last_block_is_not_mixed() -> None:
    graph = Graph(
        (
            Conv("stem", INPUT, 3, 4, 3),
            Conv("branch", "stem", 4, 6, 3, relu=False, stage=1),
            Conv("skip", "stem", 4, 6, 1, relu=False, stage=1),
            Add("sum", "branch", "skip", 6, stage=1),
        ),
        stride=1,
    )
    assert shared_nodes(graph, graph.gated("conv")) == ("stem",)
    assert shared_nodes(graph, graph.gated("block")) == ("stem",)


def test_another_seed_gives_other_weights() -> None:
    ours, other = MultiTaskNet(parts(seed=4)).state_dict(), MultiTaskNet(parts(seed=5)).state_dict()
    for name in ("encoder.layers.conv1.conv.weight", "heads.a.layers.0.conv.weight"):
        assert not torch.equal(other[name], ours[name])


def test_heads_of_two_tasks_differ() -> None:
    model = SingleTaskNets(parts())
    first, second = (model.heads[task].layers[0].conv.weight for task in HEADS)
    assert first.shape == second.shape
    assert not torch.equal(first, second)


def test_a_shared_stream_that_continues_from_itself_is_a_plain_encoder() -> None:
    """Behind open gates the paper's shared stream reads what tasks computed; this one does not."""
    found = {}
    for mix in ("tasks", "shared"):
        model = scattered(GatedSupernet(parts(CHAIN), mix=mix)).eval()
        assert len(model.beta) == len(model.mixed) == (2 if mix == "tasks" else 0)
        assert model.continued == (("one", "two") if mix == "shared" else ())
        gates = {name: torch.ones_like(gate) for name, gate in model.hard_gates().items()}
        model.set_gates(gates | {"three": torch.zeros_like(gates["three"])})
        image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found[mix] = model(image)
            plain = model.plain(image, own=False)
        kinds = {step.op for step in extract(model).description.steps}
        assert ("mix" in kinds) == (mix == "tasks")
        alike = all(torch.allclose(found[mix][task], plain[task]) for task in plain)
        assert alike == (mix == "shared")
    # Then tasks' own streams are read nowhere, and the network is the multi-task one.
    assert len(extract(model).description.steps) == 3
