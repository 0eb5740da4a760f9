"""Channels in multiples: of single nodes, and of patterns within budgets."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import Budget, PatternCost, count_macs, project, rounded
from gatesearch.cost.rounding import allowed_counts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.nodes import ConvStep
from gatesearch.pruning import extract
from tests.pruning.test_extract import parts

SHAPE = (1, 3, 40, 56)


def allowed(own: torch.Tensor, multiple: int) -> bool:
    """Whether what every task owns, and what is shared, is a multiple, or all."""
    shared = own.shape[1] - int(own.all(0).sum())
    return {shared, *own.sum(1).tolist()} <= set(allowed_counts(own.shape[1], multiple))


@settings(max_examples=200, deadline=None)
@given(
    tasks=st.integers(1, 4),
    channels=st.integers(1, 40),
    multiple=st.integers(1, 9),
    lean=st.floats(-2, 2),
    learned=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_counts_are_multiples_and_stay(tasks, channels, multiple, lean, learned, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.randn(tasks, channels, generator=generator)
    # gates that were projected need not be where α is high
    gates = (alpha if learned else torch.randn(alpha.shape, generator=generator)) + lean > 0
    own = rounded({"x": gates}, {"x": alpha}, multiple=multiple)["x"]
    assert allowed(own, multiple)
    assert torch.equal(rounded({"x": own}, {"x": alpha}, multiple=multiple)["x"], own)
    if channels % multiple == 0:
        assert int((own.sum(1) - gates.sum(1)).abs().max()) <= multiple // 2
    if multiple == 1:
        assert torch.equal(own, gates)


@pytest.mark.parametrize("channels", [24, 20, 3])
@pytest.mark.parametrize("own", [True, False])
def test_all_or_nothing_stays(channels: int, own: bool) -> None:
    gates = torch.full((2, channels), own)
    assert torch.equal(
        rounded({"x": gates}, {"x": torch.zeros(2, channels)}, multiple=8)["x"], gates
    )


def pattern(*owned: list[int]) -> torch.Tensor:
    return torch.stack(
        [torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(o), True) for o in owned]
    )


def test_counts_and_exchanges_by_hand() -> None:
    a = [5.0, 4, 3, 2, 1, -1, -2, -3]
    b = [1.0, -1, 2, -2, 3, -0.5, 4, -1.5]
    gates = {"x": pattern([0, 1, 2, 3, 4], [0, 2, 4, 6])}
    # a gives up its lowest, 4. Both own 0 and 2, so six are shared, and none or four must be owned
    # by both. None: b leaves 0 for 5 and 2 for 7, which loses 1.5 + 3.5. Four: a leaves 3 for 4,
    # which loses 1, then b leaves 6 or 4 for 1, which loses 5, or more.
    alone = rounded(gates, {"x": torch.tensor([a, b])}, multiple=4)["x"]
    assert torch.equal(alone, pattern([0, 1, 2, 3], [4, 5, 6, 7]))
    # with 7 worth less to b that is dearer, 1.5 + 6
    b[7] = -4.0
    together = rounded(gates, {"x": torch.tensor([a, b])}, multiple=4)["x"]
    assert torch.equal(together, pattern([0, 1, 2, 4], [0, 1, 2, 4]))


def test_a_tie_goes_down_and_the_last_group_may_be_smaller() -> None:
    alpha = torch.arange(12.0).flip(0).repeat(2, 1)
    gates = torch.arange(12) < torch.tensor([[4], [10]])
    # 4 is as near to 0 as to 8, and 10 to 8 as to all 12
    own = rounded({"x": gates}, {"x": alpha}, multiple=8)["x"]
    assert own.sum(1).tolist() == [0, 8]
    # of 12 and 8, the 8 owned by both leave 4 shared, which is no multiple: the larger goes down
    own = rounded({"x": torch.arange(12) < torch.tensor([[12], [8]])}, {"x": alpha}, multiple=8)[
        "x"
    ]
    assert own.sum(1).tolist() == [8, 8]
    assert int(own.all(0).sum()) == 4


@pytest.mark.slow("many networks")
@settings(max_examples=6, deadline=None)
@given(
    granularity=st.sampled_from(["conv", "block"]),
    width=st.sampled_from([0.125, 0.2]),
    tasks=st.integers(1, 3),
    share=st.floats(0, 1),
    measure=st.sampled_from(["macs", "params"]),
    lean=st.floats(-2, 2),
    seed=st.integers(0, 2**31),
)
def test_projection_in_multiples_stays_inside(
    granularity, width, tasks, share, measure, lean, seed
) -> None:
    graph = BACKBONES["resnet18"](output_stride=16, width=width)
    model = GatedSupernet(parts(graph, tasks), granularity=granularity)
    cost = PatternCost.of(model, SHAPE)
    generator = torch.Generator().manual_seed(seed)
    alpha = {n: torch.randn(a.shape, generator=generator) + lean for n, a in model.logits().items()}
    least, most = (
        float(getattr(cost, measure)({n: torch.full(a.shape, own) for n, a in alpha.items()}))
        for own in (False, True)
    )
    budget = Budget("x", measure, least + share * (most - least))
    gates = project(alpha, cost, [budget], multiple=4)
    assert all(allowed(own, 4) for own in gates.values())
    model.set_gates(gates)
    compact = extract(model)
    taken = budget.share(count_macs(compact, SHAPE, cross_check=False))
    assert taken <= 1
    if width == 0.125:  # 8, 16, 32 and 64 channels
        steps = [step for step in compact.description.steps if isinstance(step, ConvStep)]
        assert all(step.outputs % 4 == 0 for step in steps)
