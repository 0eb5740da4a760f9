"""`gs.project`: the compact network takes 98 to 100 % of the budget, or nothing changes."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.cost import (
    Budget,
    PatternCost,
    align_tasks,
    count_macs,
    equalize_layer_shares,
    measure_layers,
)
from gatesearch.cost import project as engine_project
from gatesearch.errors import UsageError
from gatesearch.library import projection
from gatesearch.library.network import InterroGate
from gatesearch.methods import build_model
from gatesearch.training import Runtime
from tests.library.toys import assert_same, network, scatter, small
from tests.search.tiny import tiny

pytestmark = pytest.mark.slow("many networks")

SIZE = (48, 64)
SHAPE = (1, 3, *SIZE)
IMAGE = torch.randn(2, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def net():
    return scatter(network())


@pytest.mark.parametrize("text", ["1.3xMTL", "1.05 xmtl", "0.8xSTL", "GMAC", "G", "M"])
@pytest.mark.parametrize("closed", [False, True])
def test_the_budget_is_used_up(net, text: str, closed: bool) -> None:
    net = copy.deepcopy(net)
    if closed:  # opened, not only closed
        net.set_gates({name: torch.zeros_like(g) for name, g in net.hard_gates().items()})
    ends = net.costs(SIZE)
    middle = (ends["mtl"].macs + ends["stl"].macs) / 2
    parameters = (ends["mtl"].params + ends["stl"].params) / 2
    limits = {
        "1.3xMTL": ("macs", 1.3 * ends["mtl"].macs), "1.05 xmtl": ("macs", 1.05 * ends["mtl"].macs),
        "0.8xSTL": ("macs", 0.8 * ends["stl"].macs), "GMAC": ("macs", middle),
        "G": ("macs", middle), "M": ("params", parameters),
    }  # fmt: skip
    measure, limit = limits[text]
    amounts = {"GMAC": 1e-9 * middle, "G": 2e-9 * middle, "M": 1e-6 * parameters}
    written = f"{amounts[text]:.12f}{text}" if text in amounts else text
    share = gs.project(net, written, size=SIZE)
    compact = gs.extract(net)
    counted = getattr(gs.count_macs(compact, SHAPE, cross_check=False), measure)
    assert 0.98 <= share <= 1
    assert share == pytest.approx(counted / limit, rel=1e-9)
    assert_same(compact(IMAGE), net(IMAGE))


def test_one_task_keeps_to_its_own_budget(net) -> None:
    net = copy.deepcopy(net)
    mtl, task = net.costs(SIZE)["mtl"].macs, net.tasks[0]
    gs.project(net, ["1.9xMTL", f"{task}:1.1xMTL"], size=SIZE)
    own = gs.subnetwork(gs.extract(net), [task])
    assert gs.count_macs(own, SHAPE, cross_check=False).macs <= 1.1 * mtl
    with pytest.raises(UsageError, match="unknown task 'nobody'"):
        gs.project(net, "nobody:1.1xMTL", size=SIZE)


def test_several_budgets_hold_together(net) -> None:
    net = copy.deepcopy(net)
    ends = net.costs(SIZE)
    parameters = 1.2 * ends["mtl"].params
    share = gs.project(net, ["1.9xMTL", f"{1e-6 * parameters:.9f}M"], size=SIZE)
    counted = gs.count_macs(gs.extract(net), SHAPE, cross_check=False)
    assert 0.98 <= share <= 1
    assert counted.params <= parameters
    assert counted.macs <= 1.9 * ends["mtl"].macs


def test_the_size_is_that_of_the_last_image(net) -> None:
    net = copy.deepcopy(net)
    net(IMAGE)
    other = copy.deepcopy(net)
    assert gs.project(net, "1.3xMTL") == gs.project(other, "1.3xMTL", size=SIZE)
    assert all(torch.equal(a, other.alpha[name]) for name, a in net.alpha.items())


def test_what_is_most_worth_its_cost_stays_open(net) -> None:
    """The order is α per multiply-add, so within a layer and task the highest α are open."""
    net = copy.deepcopy(net)
    learned = {name: alpha.detach().clone() for name, alpha in net.alpha.items()}
    gs.project(net, "1.3xMTL", size=SIZE)
    crossed = 0
    for name, alpha in net.alpha.items():
        for before, now in zip(learned[name], alpha > 0, strict=True):
            if now.any() and not now.all():
                crossed += int(before[now].min() < before[~now].max())
    rows = sum(len(alpha) for alpha in learned.values())
    assert crossed <= rows / 10  # only gates that would have jumped over the budget


def test_options_are_those_of_a_study(net) -> None:
    """The same steps as in a trial: alignment, spread, then the budget in groups of channels."""
    cost = PatternCost.of(net, SHAPE)
    aligned = align_tasks(net.logits(), net.graph)
    limit = Budget("1.5xMTL", "macs", 1.5 * net.costs(SIZE)["mtl"].macs)
    expected = engine_project(equalize_layer_shares(aligned, cost), cost, [limit], multiple=4)
    net = copy.deepcopy(net)
    share = gs.project(net, "1.5xMTL", size=SIZE, round_to=4, align=True, spread="even")
    assert share == pytest.approx(float(cost.share(expected, [limit])), abs=1e-12)
    assert 0.9 <= share <= 1
    gates = net.hard_gates()
    assert all(torch.equal(gates[name], pattern) for name, pattern in expected.items())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budgets": "1.3xMLT"}, "a budget must be a number with a unit"),
        ({"budgets": "0.9xMTL"}, "out of reach"),
        ({"budgets": "9999G"}, "out of reach"),
        ({"budgets": []}, "needs a budget, found none"),
        ({"budgets": None}, "budgets must be a text"),
        ({"budgets": [1.3]}, "budgets must be a text"),
        ({"budgets": ["1.5xMTL", "5xSTL"]}, "out of reach"),
        ({"budgets": "0.0001ms"}, "out of reach"),
        ({"size": (0, 4)}, "size must be the height and width"),
        ({"size": 64}, "size must be the height and width"),
        ({"size": None}, "has seen none yet"),
        ({"round_to": 0}, "project:\n  round_to"),
        ({"spread": "wide"}, "project:\n  spread"),
    ],
)
def test_what_cannot_be_kept_to_is_refused_and_changes_nothing(net, given, said: str) -> None:
    net = copy.deepcopy(net)
    net.size = None
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        gs.project(net, **{"budgets": "1.3xMTL", "size": SIZE, **given})
    assert said in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_it_takes_supernets_of_studies_and_no_others(tmp_path) -> None:
    supernet = build_model(tiny(tmp_path), "interrogate")
    assert 0.9 <= gs.project(supernet, "1.5xMTL", size=(16, 16)) <= 1
    with pytest.raises(UsageError, match="project takes a supernet"):
        gs.project(gs.extract(supernet), "1.5xMTL", size=(16, 16))


def test_a_latency_is_measured_and_fitted(net, monkeypatch) -> None:
    """On a device whose latency is 1 ms per million multiply-adds."""
    net = copy.deepcopy(net)

    def seconds(network, shape, runtime) -> float:
        return 1e-9 * count_macs(network, shape, cross_check=False).macs

    ends = tuple(1e-9 * cost.macs for cost in net.costs(SIZE).values())

    def measured(network, shape, runtime):
        return replace(measure_layers(network, shape, runtime), ends=ends)

    monkeypatch.setattr(projection, "median_latency", seconds)
    monkeypatch.setattr(projection, "measure_layers", measured)
    limit = sum(ends) / 2
    share = gs.project(net, f"{1e3 * limit:.9f}ms", size=SIZE)
    assert share == pytest.approx(seconds(gs.extract(net), SHAPE, None) / limit, rel=1e-6)
    assert share <= 1


class Waiting(nn.Module):
    """A head that takes ten milliseconds."""

    def forward(self, features: Tensor) -> Tensor:
        time.sleep(0.01)
        return features


def test_latency_of_heads_of_ones_own_is_in_the_table() -> None:
    net = InterroGate(small(), {"slow": Waiting(), "fast": nn.Identity()})
    table = measure_layers(net, SHAPE, Runtime("cpu", "fp32", "nchw"))
    assert 0.01 <= table.heads < 0.1
