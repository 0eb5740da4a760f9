"""The network of a policy: the same as the supernet, at the cost of the formula."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.files import FileRefusedError
from gatesearch.methods.adashare.plan import Policy, network_of, plan, residual_blocks
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.supernet import PolicySupernet
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.models.nodes import INPUT, Conv
from gatesearch.pruning import CompactNet, load_compact, save_compact
from tests.methods.toys import parts, random_image, scattered

RESNET = BACKBONES["resnet18"](output_stride=16, width=0.05)
MOBILE = BACKBONES["efficientnet_lite0"](output_stride=32, width=0.1)
TASKS = ("a", "b", "c")


def three(graph: Graph = RESNET) -> Parts:
    heads = {task: HeadSpec("light", graph.outputs, 4, 2) for task in TASKS}
    return Parts(graph, heads)


def policies(graph: Graph, tasks: int = 3) -> st.SearchStrategy[Policy]:
    row = st.tuples(*[st.booleans()] * len(residual_blocks(graph)))
    return st.tuples(*[row] * tasks)


def cut(net: PolicySupernet, policy: Policy, *, separate: bool = False) -> CompactNet:
    planned = plan(net.graph, policy, separate=separate)
    return network_of(planned, net.encoder, dict(net.heads), net.head_specs)


@pytest.mark.slow("counts")
@settings(max_examples=8, deadline=None)
@given(policy=policies(RESNET), separate=st.booleans())
def test_it_computes_what_the_supernet_does_at_the_cost_of_the_formula(policy, separate) -> None:
    net = scattered(PolicySupernet(three())).eval()
    net.set_policy(policy)
    network = cut(net, policy, separate=separate).eval()
    image = random_image(32)
    with torch.no_grad():
        expected, found = net(image), network(image)
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-5)
    counted = count_macs(network, (1, 3, 32, 32), cross_check=False)
    cost = PolicyCost.of(three(), (32, 32), separate=separate)
    assert (cost.macs(policy), cost.params(policy)) == (counted.macs, counted.params)


@pytest.mark.slow("counts")
@settings(max_examples=5, deadline=None)
@given(policy=policies(MOBILE, tasks=2))
def test_a_mobile_network_too(policy: Policy) -> None:
    net = scattered(PolicySupernet(parts(MOBILE))).eval()
    net.set_policy(policy)
    network = cut(net, policy).eval()
    with torch.no_grad():
        expected, found = net(random_image(32)), network(random_image(32))
    for task, prediction in expected.items():
        torch.testing.assert_close(found[task], prediction, rtol=1e-5, atol=1e-5)
    cost = PolicyCost.of(parts(MOBILE), (32, 32))
    assert cost.macs(policy) == count_macs(network, (1, 3, 32, 32), cross_check=False).macs


ALL = (True,) * 8


def test_equal_policies_are_one_multi_task_network() -> None:
    mtl = count_macs(MultiTaskNet(three()), (1, 3, 32, 32), cross_check=False)
    cost = PolicyCost.of(three(), (32, 32))
    assert (cost.macs((ALL,) * 3), cost.params((ALL,) * 3)) == (mtl.macs, mtl.params)
    separate = PolicyCost.of(three(), (32, 32), separate=True)
    assert separate.macs((ALL,) * 3) == mtl.macs + 2 * mtl.backbone_macs
    assert separate.params((ALL,) * 3) == mtl.params


@pytest.mark.parametrize("separate", [False, True])
def test_one_policy_by_the_formula(separate: bool) -> None:
    policy = ((True, False) * 4, (True,) * 8, (True, False, True, True) * 2)
    net = scattered(PolicySupernet(three())).eval()
    net.set_policy(policy)
    network = cut(net, policy, separate=separate).eval()
    with torch.no_grad():
        expected, found = net(random_image(32)), network(random_image(32))
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-5)
    counted = count_macs(network, (1, 3, 32, 32))
    cost = PolicyCost.of(three(), (32, 32), separate=separate)
    assert (cost.macs(policy), cost.params(policy)) == (counted.macs, counted.params)
    assert not counted.disagreements


def test_tasks_part_at_the_first_block_that_one_of_them_skips() -> None:
    # Block 4 of 8 (layer2.1) is skipped by task b: from it on b computes all by itself.
    policy = (ALL, (*ALL[:3], False, *ALL[4:]), ALL)
    planned = plan(RESNET, policy)
    tasks = {}
    for value in planned.values:
        tasks.setdefault(value.node.name, []).append(value.tasks)
    assert tasks["layer2.0"] == [[0, 1, 2]]
    assert tasks["layer2.1.conv1"] == [[0, 2]]
    assert tasks["layer3.0.conv1"] == [[0, 2], [1]]
    shares = planned.shares(residual_blocks(RESNET), 3)
    assert shares[0] == shares[2] == (0.0,) * 8
    assert shares[1] == pytest.approx((0, 0, 0, math.nan, 1, 1, 1, 1), nan_ok=True)


def test_blocks_that_nobody_selects_are_gone_but_their_shortcut_stays() -> None:
    # layer2.0 has a convolution in its shortcut, layer1.0 has none.
    row = (False, True, False, *ALL[3:])
    names = [value.node.name for value in plan(RESNET, (row, row)).values]
    assert not [name for name in names if name.startswith("layer1.0")]
    assert [name for name in names if name.startswith("layer2.0")] == ["layer2.0.downsample"]
    network = network_of(
        plan(RESNET, (row, row)), three().encoder(), dict(list(three().all_heads().items())[:2]),
        three().heads,
    )  # fmt: skip
    assert "layer1_0_conv1" not in network.convs


def test_weights_of_a_block_are_held_once_and_learn_from_all_its_tasks() -> None:
    net = scattered(PolicySupernet(parts(RESNET)))
    network = cut(net, (ALL, (False, *ALL[1:]))).train()
    outputs = network(random_image(32))
    weight = network.convs["layer4_1_conv2"].conv.weight
    both = [torch.autograd.grad(y.sum(), weight, retain_graph=True)[0] for y in outputs.values()]
    assert all(gradient.abs().sum() > 0 for gradient in both)
    (total,) = torch.autograd.grad(sum(y.sum() for y in outputs.values()), weight)
    torch.testing.assert_close(total, both[0] + both[1], rtol=1e-4, atol=1e-4)


def test_it_is_written_and_read_again(tmp_path) -> None:
    net = scattered(PolicySupernet(parts(RESNET)))
    network = cut(net, (ALL, (True, False, *ALL[2:]))).eval()
    save_compact(network, tmp_path / "net")
    again = load_compact(tmp_path / "net")
    with torch.no_grad():
        expected, found = network(random_image(32)), again(random_image(32))
    assert all(torch.equal(found[task], y) for task, y in expected.items())


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"of": "conv9"}, "must repeat a layer before it, found conv9"),
        ({"of": "conv1"}, "must have .3, 3. inputs and outputs, found "),
        ({"outputs": 7}, "inputs and outputs, found "),
        ({"source": [{"tensor": 1, "start": 0, "stop": 1}]}, "inputs and outputs, found .1, "),
        ({"source": []}, "must read channels, found no slice"),
        ({"kernel": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_repeated_step_that_does_not_fit_is_refused(tmp_path, change, fault: str) -> None:
    network = cut(PolicySupernet(parts(RESNET)), (ALL, (True, False, *ALL[2:])))
    save_compact(network, tmp_path / "net")
    description = json.loads((tmp_path / "net.json").read_text())
    repeated = next(step for step in description["steps"] if step["op"] == "conv_again")
    repeated |= change
    (tmp_path / "net.json").write_text(json.dumps(description))
    with pytest.raises(FileRefusedError, match=fault):
        load_compact(tmp_path / "net")


def test_a_backbone_without_residual_blocks_is_refused() -> None:
    plain = Graph((Conv("conv", INPUT, 3, 4, 3, ends_block=True),), stride=1)
    with pytest.raises(UsageError, match=r"found a backbone without any: set model.backbone"):
        PolicySupernet(Parts(plain, {"a": HeadSpec("light", 4, 4, 1)}))


def test_the_cut_network_is_plain() -> None:
    network = cut(PolicySupernet(parts(RESNET)), (ALL, ALL))
    assert not [m for m in network.modules() if isinstance(m, nn.ParameterList)]
    assert type(network) is CompactNet
