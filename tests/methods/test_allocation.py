"""Own channels by shares and tilts, worked by hand."""

import pytest
import torch

from gatesearch.cost import Budget, PatternCost, project
from gatesearch.methods.allocation import allotted
from gatesearch.models import GatedSupernet
from gatesearch.models.backbones import BACKBONES
from tests.methods.toys import parts

GRAPH = BACKBONES["resnet18"](output_stride=32, width=0.125)  # 8, 8, 16, 32 and 64 channels
SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module")
def cost() -> PatternCost:
    return PatternCost.of(GatedSupernet(parts(GRAPH)), SHAPE)


def opened(shares, tilts, cost):
    """Stage -> for each task, the share of open gates in each of its layers."""
    found: dict[int, set[tuple[float, ...]]] = {}
    stages = {node.name: node.stage for node in GRAPH}
    for name, logits in allotted(GRAPH, shares, tilts, cost).items():
        found.setdefault(stages[name], set()).add(tuple((logits > 0).double().mean(1).tolist()))
    return found


def test_without_a_tilt_a_task_has_one_share_everywhere(cost) -> None:
    assert opened([0.5, 0.125], [0.0, 0.0], cost) == {s: {(0.5, 0.125)} for s in range(5)}
    assert opened([0.0, 1.0], [0.0, 0.0], cost) == {s: {(0.0, 1.0)} for s in range(5)}


def test_a_tilt_moves_channels_to_late_stages(cost) -> None:
    """0.25 exp(2 (d - 1/2)) at depths 0, 1/4, 1/2, 3/4, 1: .092, .152, .25, .412, .680."""
    found = opened([0.25, 0.25], [2.0, -2.0], cost)
    late = [1 / 8, 1 / 8, 4 / 16, 13 / 32, 43 / 64]  # the nearest whole numbers of channels
    early = [5 / 8, 3 / 8, 4 / 16, 5 / 32, 6 / 64]
    assert found == {stage: {(late[stage], early[stage])} for stage in range(5)}


def test_tasks_own_the_same_channels_as_far_as_they_go(cost) -> None:
    for logits in allotted(GRAPH, [0.75, 0.25], [0.0, 0.0], cost).values():
        more, fewer = logits > 0
        assert not (fewer & ~more).any()


def test_a_budget_changes_all_shares_by_one_factor(cost) -> None:
    logits = allotted(GRAPH, [0.8, 0.2], [0.0, 0.0], cost)
    closed = {name: torch.zeros_like(x) for name, x in logits.items()}
    limit = 1.2 * float(cost.macs(closed))
    gates = project(logits, cost, [Budget("b", "macs", limit)])
    assert 0.98 <= float(cost.macs({n: g.float() for n, g in gates.items()})) / limit <= 1
    whole = torch.cat(list(gates.values()), 1).double().mean(1)
    assert float(whole[0] / whole[1]) == pytest.approx(4, rel=0.25)
