"""Which parameters are trained, by which optimizer, at which rate and decay."""

import copy

import pytest
import torch
from torch import nn

from gatesearch.training import ParameterGroup
from gatesearch.training.optimizer import (
    CombinedOptimizer,
    MomentumSGD,
    build_optimizer,
    set_learning_rates,
)
from tests.training.toys import Toy, spec, toy_supernet, two_groups

NAMES = ("semseg", "depth")
SPEC = spec(lr=0.1, weight_decay=0.5, momentum=0.9)


def named_groups(model: nn.Module, optimizer) -> list[tuple[list[str], float, float]]:
    """(names of the parameters, rate, decay) of each torch group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [
        ([names[p] for p in group["params"]], group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
    ]


def test_all_parameters_at_one_rate_are_split_by_decay() -> None:
    model = Toy(*NAMES)
    assert named_groups(model, build_optimizer(model, SPEC)) == [
        (["gate", "body.0.bias", "body.1.weight", "body.1.bias", "heads.semseg.bias",
          "heads.depth.bias"], 0.1, 0.0),
        (["body.0.weight", "heads.semseg.weight", "heads.depth.weight"], 0.1, 0.5),
    ]  # fmt: skip


def test_groups_come_in_the_order_in_which_the_model_names_their_parameters() -> None:
    model = Toy(*NAMES)
    groups = two_groups(model, "body", rate=10.0)
    expected = [
        (["gate", "heads.semseg.bias", "heads.depth.bias"], 0.1, 0.0),
        (["body.0.weight"], 1.0, 0.5),
        (["body.0.bias", "body.1.weight", "body.1.bias"], 1.0, 0.0),
        (["heads.semseg.weight", "heads.depth.weight"], 0.1, 0.5),
    ]
    assert named_groups(model, build_optimizer(model, SPEC, groups)) == expected
    assert named_groups(model, build_optimizer(model, SPEC, groups[::-1])) == expected


@pytest.mark.parametrize("rate", [1.0, 10.0])
def test_groups_of_a_supernet_are_those_of_rates_by_name(rate) -> None:
    model = toy_supernet(*NAMES)
    dense = {id(m.weight) for m in model.modules() if isinstance(m, nn.Conv2d)}
    by_rate: dict[tuple[float, bool], list[str]] = {}
    for name, parameter in model.named_parameters():
        key = (rate if "alpha" in name else 1.0, id(parameter) in dense)
        by_rate.setdefault(key, []).append(name)
    optimizer = build_optimizer(model, SPEC, two_groups(model, "alpha", rate=rate))
    assert named_groups(model, optimizer) == [
        (names, 0.1 * rate, 0.5 if decays else 0.0) for (rate, decays), names in by_rate.items()
    ]


def test_a_decay_of_its_own_is_that_of_the_whole_group() -> None:
    model = Toy(*NAMES)
    groups = two_groups(model, "body", weight_decay=0.25)[1:]
    body = ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]
    assert named_groups(model, build_optimizer(model, SPEC, groups)) == [(body, 0.1, 0.25)]


def test_frozen_parameters_stay_out_and_learned_ones_come_last() -> None:
    model, learned = Toy(*NAMES), nn.Parameter(torch.ones(2))
    model.body.requires_grad_(False)
    optimizer = build_optimizer(model, SPEC, learned=[learned])
    *groups, last = optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == 5  # the gate and two heads
    assert last["params"] == [learned]
    assert (last["lr"], last["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda model: [*model.parameters(), nn.Parameter(torch.ones(7))], r"of shape \(7,\)"),
        (lambda model: [*model.parameters(), model.gate], "found gate in two"),
        (lambda model: [], "at least one parameter, found none"),
    ],
)
def test_groups_that_cannot_be_trained(choose, message) -> None:
    model = Toy(*NAMES)
    *most, last = choose(model) or [None]
    groups = [ParameterGroup(tuple(most)), ParameterGroup(() if last is None else (last,))]
    with pytest.raises(ValueError, match=message):
        build_optimizer(model, SPEC, groups)


def combined(model: nn.Module) -> CombinedOptimizer:
    optimizer = build_optimizer(model, SPEC, two_groups(model, "body", optimizer="sgd", rate=2.0))
    assert isinstance(optimizer, CombinedOptimizer)
    return optimizer


def step(model: nn.Module, optimizer, number: int) -> None:
    """One step on a loss that changes with its number."""
    optimizer.zero_grad()
    torch.stack([(p - number).square().sum() for p in model.parameters()]).sum().backward()
    optimizer.step()


def test_one_optimizer_where_all_groups_ask_for_the_same() -> None:
    model = Toy(*NAMES)
    groups = two_groups(model, "body", optimizer="adam", rate=2.0)
    assert isinstance(build_optimizer(model, SPEC, groups), torch.optim.Adam)


def test_each_group_is_trained_by_its_optimizer() -> None:
    model, alone = Toy(*NAMES), Toy(*NAMES)
    optimizer = combined(model)
    body = torch.optim.SGD(
        [{"params": [alone.body[0].weight], "weight_decay": 0.5},
         {"params": [alone.body[0].bias, *alone.body[1].parameters()]}],
        lr=0.2, momentum=0.9,
    )  # fmt: skip
    others = build_optimizer(alone, SPEC, two_groups(alone, "body")[:1])
    set_learning_rates(optimizer, SPEC, 0.0)
    for number in range(3):
        step(model, optimizer, number)
        others.zero_grad()
        step(alone, body, number)
        others.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, alone.get_parameter(name), msg=name)
    assert set(optimizer.state) == set(model.parameters())
    assert "exp_avg" in optimizer.state[model.gate]
    assert "momentum_buffer" in optimizer.state[model.body[0].weight]


def test_several_optimizers_go_on_to_the_bit() -> None:
    model, again = Toy(*NAMES), Toy(*NAMES)
    optimizer, other = combined(model), combined(again)
    set_learning_rates(optimizer, SPEC, 0.5)
    step(model, optimizer, 1)
    again.load_state_dict(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict())
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    assert numbers == list(range(len(list(model.parameters()))))  # as torch numbers them
    other.load_state_dict(state)
    for number in (2, 3):
        step(model, optimizer, number)
        step(again, other, number)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fused", [False, True])
def test_parameters_may_have_their_first_gradients_in_different_steps(fused) -> None:
    def stepped(optimizer_of) -> list[torch.Tensor]:
        parameters = [nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2)]
        optimizer = optimizer_of(parameters)
        for step in range(3):
            parameters[0].grad = torch.tensor([0.5, -1.0])
            parameters[1].grad = torch.tensor([3.0, 0.25]) if step else None
            optimizer.step()
        return parameters

    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    expected = stepped(lambda p: torch.optim.SGD(p, foreach=False, **options))
    found = stepped(lambda p: MomentumSGD(p, fused=fused, **options))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
