"""A supernet whose channels share gates: whole units, summed gradients, exact costs."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import PatternCost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.pruning import extract
from tests.models.test_gate_placement import vit
from tests.pruning.test_extract import all_gates, gap, parts

SHAPE = (1, 3, 8, 12)


def supernet(tasks: int = 2, seed: int = 0, lean: float = 0.0, **options: str) -> GatedSupernet:
    """A small transformer with a gate for each head, and random weights and logits."""
    torch.manual_seed(seed)
    model = GatedSupernet(parts(vit(), tasks), **{"granularity": "head"} | options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        for alpha in model.alpha.values():
            alpha.normal_().add_(lean)
    return model


def test_there_is_one_logit_for_each_head_and_a_value_for_each_channel() -> None:
    model = supernet()
    assert tuple(model.alpha["qkv"].shape) == (2, 2)
    assert tuple(model.alpha["map"].shape) == (2, 1)
    assert tuple(model.beta["qkv"].shape) == (2, 24)
    for values in (model.logits(), model.open_probability(), model.hard_gates()):
        assert tuple(values["qkv"].shape) == (2, 24)
        first, second = values["qkv"][:, :4], values["qkv"][:, 4:8]
        assert torch.equal(values["qkv"], torch.cat([first, second] * 3, 1))
        assert torch.equal(first, first[:, :1].expand(-1, 4))
    plain = GatedSupernet(parts(vit(), 2))
    alike = {key for key in plain.state_dict() if not key.startswith("alpha")}
    assert {key for key in model.state_dict() if not key.startswith("alpha")} == alike


@pytest.mark.parametrize("estimator", ["ste", "sigmoid", "hard_concrete"])
def test_a_gate_is_drawn_once_for_all_of_its_channels(estimator: str) -> None:
    model = supernet(estimator=estimator).train()
    gate = model.gates("qkv")
    assert torch.equal(gate, torch.cat([gate[:, :8]] * 3, 1))
    assert torch.equal(gate[:, :4], gate[:, :1].expand(-1, 4))


def test_gradients_are_the_sums_of_those_of_gates_for_each_channel() -> None:
    model = supernet().train()
    plain = GatedSupernet(parts(vit(), 2)).train()
    state = model.state_dict()
    for name in model.gated:
        state[f"alpha.{name}"] = model.logits()[name].detach()
    plain.load_state_dict(state)
    image = torch.randn(2, *SHAPE[1:])
    for net in (model, plain):
        net.zero_grad()
        loss = sum(y.square().sum() for y in net(image).values())
        (loss + net.sparsity(torch.tensor([0.1, 0.0]))).backward()
    for name, units in model.units.items():
        sums = torch.zeros_like(model.alpha[name])
        sums.index_add_(1, torch.tensor(units), plain.alpha[name].grad)
        torch.testing.assert_close(model.alpha[name].grad, sums)


def test_patterns_are_set_whole_or_refused() -> None:
    model, other = supernet(seed=1), supernet(seed=2)
    pattern = model.hard_gates()
    other.set_gates(pattern)
    assert all(torch.equal(on, pattern[name]) for name, on in other.hard_gates().items())
    before = copy.deepcopy(other.state_dict())
    pattern["qkv"][0, 3] ^= True
    with pytest.raises(UsageError, match="all open or all closed, found node qkv"):
        other.set_gates(pattern)
    assert all(torch.equal(x, before[key]) for key, x in other.state_dict().items())


def test_shares_of_open_gates_are_nested_and_whole() -> None:
    model = supernet()
    before = {name: torch.zeros_like(on) for name, on in model.hard_gates().items()}
    for share in torch.linspace(0, 1, 12):
        model.open_shares(torch.stack([share, share / 2]))
        gates = model.hard_gates()
        for name, on in gates.items():
            assert not (before[name] & ~on).any()
            for unit in set(model.units[name]):
                rows = on[:, torch.tensor(model.units[name]) == unit]
                assert torch.equal(rows, rows[:, :1].expand_as(rows))
        before = gates
    assert all(bool(on[0].all()) for on in gates.values())
    total = sum(on.shape[1] for on in gates.values())
    half = sum(int(on[1].sum()) for on in gates.values())
    assert total / 2 - 8 <= half <= total / 2  # short of one unit at most, the last norm's


@pytest.mark.slow("many networks")
@settings(max_examples=12, deadline=None)
@given(
    tasks=st.integers(1, 3),
    lean=st.sampled_from([-1.5, 0.0, 1.5]),
    mix=st.sampled_from(["tasks", "shared"]),
    seed=st.integers(0, 2**31),
)
def test_any_pattern_of_heads_is_cut_and_priced(
    tasks: int, lean: float, mix: str, seed: int
) -> None:
    model = supernet(tasks, seed, lean, mix=mix)
    compact, cost = extract(model), PatternCost.of(model, SHAPE)
    assert gap(compact, model, torch.randn(2, *SHAPE[1:])) < 1e-5
    counted = count_macs(compact, SHAPE, cross_check=False)
    assert int(cost.macs(model.hard_gates())) == counted.macs
    assert int(cost.params(model.hard_gates())) == counted.params


def test_the_ends_are_plain_networks() -> None:
    for on, plain in ((False, MultiTaskNet(parts(vit()))), (True, SingleTaskNets(parts(vit())))):
        model = supernet(3)
        all_gates(model, on)
        ours = count_macs(extract(model), SHAPE, cross_check=False)
        theirs = count_macs(plain, SHAPE, cross_check=False)
        assert (ours.macs, ours.params) == (theirs.macs, theirs.params)


def test_heads_share_gates_without_data_too() -> None:
    with torch.device("meta"):
        model = GatedSupernet(parts(vit(), 2), granularity="head")
    assert model.units == supernet().units
