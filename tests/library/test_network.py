"""`gs.InterroGate`: heads of any class, groups, temperature, penalty, state."""

import copy
import io
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.errors import UsageError
from gatesearch.methods.interrogate.method import gate_groups
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.study import TrainingSpec
from gatesearch.training.optimizer import build_optimizer
from tests.library.toys import Pooled, Sized, assert_same, heads, network, scatter, small

IMAGE = torch.randn(3, 3, 48, 64, generator=torch.Generator().manual_seed(1))


def test_heads_get_what_they_ask_for_and_stay_what_they_are() -> None:
    net = network()
    assert isinstance(net, GatedSupernet)
    output = net(IMAGE)
    assert list(output) == ["vector", "picture"]
    assert output["vector"].shape == (3, 3)
    assert output["picture"]["scores"].shape == (3, 2, 48, 64)
    assert net.size == (48, 64)
    assert type(net.heads["vector"]) is Pooled
    assert type(net.heads["picture"]) is Sized
    assert "heads.vector.linear.weight" in net.state_dict()


def with_second(default: bool):
    """A head whose second argument is no size, or is needed."""
    if default:
        return lambda features, weights=None: features.mean() if weights is None else 1 / 0
    return lambda features, resolution: features.new_tensor(resolution)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_the_second_argument_is_the_size_if_it_is_named_so_or_needed() -> None:
    channels = small().channels
    net = gs.InterroGate(
        small(),
        {
            "named": lambda features, size=(1, 1): features.new_tensor(size),
            "needed": with_second(False),
            "other": with_second(True),
            "builtin": torch.relu,
            "scripted": torch.jit.script(nn.Conv2d(channels, 1, 1)),
        },
    )
    output = net(IMAGE)
    assert output["named"].tolist() == output["needed"].tolist() == [48, 64]
    assert output["other"].shape == ()
    assert output["builtin"].shape[1] == channels
    compact = gs.extract(net.eval())
    assert_same(compact(IMAGE), net(IMAGE))
    weight = compact.heads["scripted"].weight
    assert weight.requires_grad
    assert weight.is_leaf


@dataclass
class Plain:
    """What torch knows nothing of."""

    value: Tensor


def test_heads_may_return_anything() -> None:
    net = gs.InterroGate(small(), {"a": lambda x: Plain(x.mean()), "b": lambda x: [(x, "word")]})
    output = net.eval()(IMAGE)
    compact = gs.extract(net)(IMAGE)
    torch.testing.assert_close(compact["a"].value, output["a"].value, rtol=2e-5, atol=2e-5)
    assert compact["b"][0][1] == "word"


def test_the_same_network_comes_from_the_same_seed() -> None:
    torch.manual_seed(5)
    one = gs.InterroGate(small(), {"a": torch.relu})
    torch.manual_seed(5)
    two = gs.InterroGate(small(), {"a": torch.relu})
    three = gs.InterroGate(small(), {"a": torch.relu})
    weights = [net.streams["a"].layer("conv1").conv.weight for net in (one, two, three)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    fixed = [gs.InterroGate(small(), {"a": torch.relu}, seed=7) for _ in range(2)]
    for name, tensor in fixed[0].state_dict().items():
        assert torch.equal(tensor, fixed[1].state_dict()[name])


def refused(**changes: object) -> str:
    given = {"encoder": small(), "heads": {"a": torch.relu}, **changes}
    with pytest.raises(UsageError) as caught:
        gs.InterroGate(**given)
    return str(caught.value)


class Keeper(nn.Module):
    """A head that keeps a thing as attribute."""

    def __init__(self, kept: object) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, features: Tensor) -> Tensor:
        return features.mean()


class Behind(nn.Module):
    """A head with a function that uses the head's own layer: a copy would use the first one's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(small().channels, 1, 1)
        conv = self.conv
        self.steps = [lambda x: conv(x)]

    def forward(self, features: Tensor) -> Tensor:
        return self.steps[0](features)


HIDDEN = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (Pooled, "must be a module or a function, found <class"),
        (3, "must be a module or a function, found 3"),
        (lambda: 1, "must be called as head(features) or head(features, size)"),
        (lambda a, b, c: a, "must be called as"),
        (lambda a, *, b: a, "must be called as"),
        (lambda x: HIDDEN(x), "weights of a head must be in modules that are its attributes"),
        (HIDDEN.forward, "weights of a head must be in modules"),
        (Keeper([nn.Linear(2, 2)]), "found Linear inside list kept of the head of task a"),
        (Keeper({"x": (nn.Linear(2, 2),)}), "found Linear inside dict kept"),
        (Behind(), "found Conv2d inside list steps"),
        (Keeper(x for x in "ab"), "copy.deepcopy copies them"),
    ],
)
def test_heads_that_could_not_be_carried_over_are_refused(head: object, said: str) -> None:
    message = refused(heads={"a": head})
    assert said in message
    assert "\n" not in message


def test_a_head_may_keep_what_it_registers_too() -> None:
    layer = nn.Linear(2, 2)
    head = Keeper([layer])
    head.layer = layer
    gs.InterroGate(small(), {"a": head, "b": Keeper([nn.ReLU(), torch.ones(2), "word"])})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"heads": {}}, "1 to 256 heads, task -> module, found 0 of them"),
        ({"heads": [torch.relu]}, "must be a dict of 1 to 256 heads, task -> module, found list"),
        (
            {"heads": {"a.b": torch.relu}},
            "heads: a task's name must be of 1 to 100 letters",
        ),
        ({"heads": {3: torch.relu}}, "heads: "),
        ({"heads": {"items": torch.relu}}, "found 'items'; name it differently"),
        ({"heads": {"_shared": torch.relu}}, "found '_shared'"),
        ({"heads": {str(n): torch.relu for n in range(257)}}, "found 257 of them"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'; did you mean 'resnet18'?"),
        (
            {"encoder": nn.Identity()},
            "found Identity; name a module of your own by gs.register_backbone",
        ),
        ({"estimator": "soft"}, "InterroGate:\n  estimator: "),
        ({"initial": 1.0}, "InterroGate:\n  initial: "),
        ({"temperature": (0, 1)}, "InterroGate:\n  temperature"),
        ({"seed": "a"}, "seed must be a whole number of 64 bits, or None to draw one, found 'a'"),
        ({"seed": 2**70}, "seed must be a whole number of 64 bits"),
        ({"seed": 1.5}, "found 1.5"),
    ],
)
def test_what_cannot_be_a_network_is_refused(changes: dict[str, object], said: str) -> None:
    assert said in refused(**changes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "vgg"}, "unknown encoder 'vgg'"),
        ({"name": ["resnet18"]}, "unknown encoder '['resnet18']'"),
        ({"name": "resnet18", "output_stride": 4}, "output_stride must be 8, 16 or 32"),
        ({"name": "resnet18", "width": 0.0}, "width: "),
        (
            {"name": "resnet18", "width": 0.5, "pretrained": True},
            "take width=1, or pretrained",
        ),
        ({"name": "resnet18", "pretrained": "nowhere.safetensors"}, "no file nowhere.safetensors"),
    ],
)
def test_what_cannot_be_an_encoder_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        gs.encoder(**given)
    assert said in str(caught.value)


def test_pretrained_weights_are_in_all_streams(tmp_path) -> None:
    torchvision = pytest.importorskip("torchvision")
    published = torchvision.models.resnet18()
    save_file(published.state_dict(), tmp_path / "weights.safetensors")
    encoder = gs.encoder("resnet18", pretrained=tmp_path / "weights.safetensors")
    net = gs.InterroGate(encoder, {"a": torch.relu})
    for stream in net.streams.values():
        assert torch.equal(stream.layer("conv1").conv.weight, published.conv1.weight)


def test_groups_are_those_of_the_engine() -> None:
    net = network()
    spec = TrainingSpec(epochs=1, lr=3e-3, weight_decay=0.02)
    expected = build_optimizer(net, spec, gate_groups(net, rate=10.0)).param_groups
    given = net.param_groups(3e-3, weight_decay=0.02)
    assert [set(group) for group in given] == [{"params", "lr", "weight_decay"}] * 3
    for ours, theirs in zip(given, expected, strict=True):
        assert (ours["lr"], ours["weight_decay"]) == (theirs["lr"], theirs["weight_decay"])
        assert [id(p) for p in ours["params"]] == [id(p) for p in theirs["params"]]
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in given for p in g["params"]}
    assert len(rates) == len(list(net.parameters()))
    head = net.heads["vector"]
    gate = next(iter(net.alpha.values()))
    mix = next(iter(net.beta.values()))
    assert rates[id(head.linear.weight)] == (3e-3, 0.02)
    assert rates[id(head.linear.bias)] == rates[id(head.norm.weight)] == (3e-3, 0.0)
    assert rates[id(gate)] == rates[id(mix)] == (pytest.approx(0.03), 0.0)
    torch.optim.SGD(given)


def test_frozen_and_shared_parameters_are_in_no_group_or_one() -> None:
    channels = small().channels
    shared = nn.Conv2d(channels, 1, 1)
    net = gs.InterroGate(small(), {"a": shared, "b": shared, "c": Pooled(channels)})
    net.heads["c"].linear.weight.requires_grad_(False)
    listed = [id(p) for group in net.param_groups(1e-3) for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert id(shared.weight) in listed
    assert id(net.heads["c"].linear.weight) not in listed


@pytest.mark.parametrize("given", [{"lr": 0.0}, {"lr": 1e-3, "gate_rate": -1.0},
                                   {"lr": 1e-3, "weight_decay": -0.1}])  # fmt: skip
def test_rates_that_cannot_be_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="param_groups"):
        network().param_groups(**given)


def test_the_temperature_falls_geometrically() -> None:
    net = network(estimator="sigmoid", temperature=(2.0, 0.02))
    assert net.temperature == 2.0
    temperatures = []
    for share in (0, 0.25, 0.5, 1.0):
        net.anneal(share)
        temperatures.append(net.temperature)
    assert temperatures == pytest.approx([2.0, 2 * 0.01**0.25, 0.2, 0.02])
    net.anneal(torch.tensor(0.5))
    assert net.temperature == pytest.approx(0.2)
    for share in (-0.1, 1.5, float("nan"), "a", None, torch.ones(2)):
        with pytest.raises(UsageError, match="found "):
            net.anneal(share)


def test_the_penalty_by_hand() -> None:
    """Probability σ(0.8) = 0.69 and σ(-0.8) = 0.31; τ 0.5 and 0.1: mean of 0.19 and 0.21."""
    net = network()
    with torch.no_grad():
        for alpha in net.alpha.values():
            alpha[0], alpha[1] = 0.8, -0.8
    high, low = 1 / (1 + 2.718281828459045**-0.8), 1 / (1 + 2.718281828459045**0.8)
    expected = 3 * ((high - 0.5) + (low - 0.1)) / 2
    penalty = net.penalty({"vector": 0.5, "picture": 0.1}, weight=3.0)
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    penalty.backward()
    assert all(alpha.grad.abs().min() > 0 for alpha in net.alpha.values())
    assert net.penalty(1.0).item() == 0.0
    assert net.penalty(0.2).item() == pytest.approx((high - 0.2 + low - 0.2) / 2, rel=1e-5)
    for tau in (1.5, {"vector": 0.5}, {"vector": 0.5, "picture": 0.1, "more": 0}, float("nan"),
                "a", None, [0.1, 0.2], {"vector": 0.5, "picture": None}):  # fmt: skip
        with pytest.raises(UsageError, match="tau must be a share"):
            net.penalty(tau)


@pytest.mark.parametrize("way", ["torch", "safetensors"])
def test_temperature_and_threshold_survive_in_the_state(way: str, tmp_path) -> None:
    net = scatter(network(estimator="hard_concrete"))
    net.anneal(0.7)
    net.open_shares(torch.tensor([0.3, 0.8]))
    if way == "torch":
        buffer = io.BytesIO()
        torch.save(net.state_dict(), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    else:
        save_file(net.state_dict(), tmp_path / "net.safetensors")
        state = load_file(tmp_path / "net.safetensors")
    again = network(estimator="hard_concrete")
    assert again.temperature != net.temperature
    again.load_state_dict(state)
    assert again.temperature == net.temperature
    assert torch.equal(again.threshold, net.threshold)
    assert net.threshold.abs().min() > 0
    assert_same(again.eval()(IMAGE), net(IMAGE))
    assert gs.extract(again).description == gs.extract(net).description
    twin = copy.deepcopy(net)
    assert (twin.temperature, twin.size) == (net.temperature, net.size)


def test_a_whole_step_trains_everything() -> None:
    net = network(estimator="sigmoid").train()
    optimizer = torch.optim.AdamW(net.param_groups(1e-2))
    before = {name: tensor.clone() for name, tensor in net.named_parameters()}
    for _ in range(2):
        output = net(IMAGE)
        loss = output["vector"].square().mean() + output["picture"]["scores"].square().mean()
        optimizer.zero_grad()
        (loss + net.penalty(0.1)).backward()
        optimizer.step()
    still = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert not still


def test_extraction_carries_heads_over_whatever_their_class() -> None:
    channels = small().channels
    shared = Pooled(channels)
    net = gs.InterroGate(
        small(),
        {**heads(channels), "one": shared, "two": shared, "function": lambda x: x.mean((1, 2, 3))},
    )
    scatter(net)
    compact = gs.extract(net)
    assert_same(compact(IMAGE), net(IMAGE))
    assert compact.heads["one"] is compact.heads["two"] is not shared
    assert type(compact.heads["vector"]) is Pooled
    assert compact.heads["vector"].shift.dtype == torch.float64
    assert not any("alpha" in name or "beta" in name for name in compact.state_dict())
    before = compact(IMAGE)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert_same(compact(IMAGE), before)


def test_extract_takes_supernets_only() -> None:
    net = network()
    for other in (nn.Linear(1, 1), gs.extract(net), nn.DataParallel(net)):
        with pytest.raises(UsageError, match="extract takes a supernet"):
            gs.extract(other)


@pytest.mark.slow("many networks")
def test_costs_are_those_of_the_networks_at_both_ends() -> None:
    net = scatter(network())
    with pytest.raises(UsageError, match="has seen none yet"):
        network().costs()
    costs = net.costs((48, 64))
    for name, is_open in (("mtl", False), ("stl", True)):
        net.set_gates({n: torch.full_like(g, is_open) for n, g in net.hard_gates().items()})
        counted = gs.count_macs(gs.extract(net), (1, 3, 48, 64), cross_check=False)
        assert (costs[name].macs, costs[name].params) == (counted.macs, counted.params)
        assert costs[name].backbone_macs == counted.backbone_macs
    net(IMAGE)
    assert net.costs() == costs


def test_a_head_that_cannot_be_counted_is_refused_before_training() -> None:
    net = gs.InterroGate(small(), {"a": lambda x: x * float(x.sum())})
    with pytest.raises(UsageError, match="must run on shapes alone"):
        net.costs((32, 32))
