"""The policy supernet: Gumbel softmax, the formula of a block, shared prefixes in training."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from gatesearch.cost import count_macs
from gatesearch.methods.adashare import supernet
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.supernet import PolicySupernet, gumbel_noise, gumbel_softmax
from gatesearch.models.backbones import BACKBONES
from tests.methods.toys import parts, random_image, scattered


def test_gumbel_softmax_is_the_arg_max_as_the_temperature_goes_to_0() -> None:
    logits = torch.tensor([[0.3, -0.2], [-1.0, 1.0], [0.0, 0.0]])
    noise = torch.tensor([[0.0, 0.4], [2.5, 0.1], [0.7, 0.2]])
    # Arg-max of logits + noise by hand: .3 > .2; 1.5 > 1.1; .7 > .2.
    found = gumbel_softmax(logits, noise, temperature=1e-3)
    assert torch.equal(found.round(), torch.tensor([[1.0, 0.0]] * 3))
    assert torch.allclose(found, found.round(), atol=1e-6)
    hot = gumbel_softmax(logits, noise, temperature=1e6)
    assert torch.allclose(hot, torch.full((3, 2), 0.5), atol=1e-5)


def test_gumbel_softmax_by_hand() -> None:
    # π = (3/4, 1/4), G = (0, log 2), τ = 1/2: (9, 1·4) / 13
    logits, noise = torch.tensor([3.0, 1.0]).log(), torch.tensor([1.0, 2.0]).log()
    found = gumbel_softmax(logits, noise, temperature=0.5)
    assert found.tolist() == pytest.approx([9 / 13, 4 / 13])


def test_drawn_arg_maxima_follow_the_policy() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.8, 0.2]).log().expand(20_000, 2)
    first = (logits + gumbel_noise(logits)).argmax(-1) == 0
    assert float(first.float().mean()) == pytest.approx(0.8, abs=0.01)


def test_a_block_is_mixed_with_its_shortcut_as_the_paper_says() -> None:
    net = scattered(PolicySupernet(parts())).eval()
    net.set_policy(((True,) * 8, (True,) * 8))
    net.train()
    drawn = torch.rand(2, 8, 2)
    net.relaxed_policy = lambda: drawn
    seen: dict[str, torch.Tensor] = {}
    for task in net.heads:
        net.heads[task].register_forward_pre_hook(
            lambda head, inputs, task=task: seen.update({task: inputs[0]})
        )
    image = random_image()
    with torch.no_grad():
        net(image)
        for t, task in enumerate(net.tasks):
            values = {"image": image}
            for node in net.graph:
                read = [values[source] for source in node.sources]
                if node.name in net.blocks:
                    branch, res = read
                    p = drawn[t, net.blocks.index(node.name)]
                    values[node.name] = p[0] * F.relu(res + branch) + p[1] * res
                else:
                    values[node.name] = net.encoder.apply_node(node, read)
            torch.testing.assert_close(seen[task], values[net.graph.nodes[-1].name])


def test_signs_alone_give_the_same_gradients(monkeypatch) -> None:
    def gradients(*, weights: bool) -> list[torch.Tensor]:
        net = scattered(PolicySupernet(parts())).train()
        for group, learned in (((net.encoder, net.heads), weights), ((net.logits,), not weights)):
            for module in group:
                module.requires_grad_(learned)
        torch.manual_seed(1)
        sum(y.square().mean() for y in net(random_image()).values()).backward()
        return [p.grad for p in net.parameters() if p.requires_grad]

    lean = [gradients(weights=weights) for weights in (True, False)]
    monkeypatch.setattr(supernet, "signs_alone", nullcontext)
    for found, weights in zip(lean, (True, False), strict=True):
        expected = gradients(weights=weights)
        assert len(found) == len(expected) > 0
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_blocks_that_are_not_freed_are_selected_and_computed_once() -> None:
    net = scattered(PolicySupernet(parts())).train()
    net.freed = 3
    calls: dict[str, int] = {}
    for name, layer in net.encoder.layers.items():
        layer.register_forward_hook(
            lambda *_, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
        )
    net(random_image())
    # The first freed block is layer3.1; its branch reads what all tasks share.
    once = [name for name, count in calls.items() if count == 1]
    assert all(name.startswith(("conv1", "layer1", "layer2", "layer3")) for name in once)
    twice = {name for name, count in calls.items() if count == 2}
    assert twice == {name for name in calls if name.startswith("layer4")}
    for logits in net.logits:
        logits.data[:, 1] = 9.0
    assert net.eval().likeliest_policy() == (((True,) * 5 + (False,) * 3),) * 2


@pytest.mark.parametrize("freed", [1, 3, 8])
def test_the_formula_of_a_training_pass_is_what_it_computes(freed: int) -> None:
    net = PolicySupernet(parts())
    net.freed = freed
    cost = PolicyCost.of(parts(), (64, 64))
    counted = count_macs(net, (1, 3, 64, 64), cross_check=False)
    assert cost.training_macs(freed) == counted.macs


def test_temperature_and_freed_blocks_are_in_the_state() -> None:
    net, other = PolicySupernet(parts()), PolicySupernet(parts())
    net.temperature, net.freed = 2.5, 3
    other.load_state_dict(net.state_dict())
    assert (other.temperature, other.freed) == (2.5, 3)


def test_a_mobile_network_has_blocks_to_skip_too() -> None:
    graph = BACKBONES["efficientnet_lite0"](output_stride=32, width=0.25)
    net = PolicySupernet(parts(graph))
    assert 0 < len(net.blocks) < 16, "blocks without a shortcut are computed by all"
    assert set(net(random_image())) == {"a", "b"}
