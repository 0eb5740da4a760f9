"""Nested gate patterns, and the supernet that is trained under drawn ones."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from gatesearch.methods.interrogate.nested import Nested
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.pruning import extract
from tests.methods.toys import parts, random_image, scattered


@pytest.fixture
def image() -> Tensor:
    return random_image()


@pytest.fixture
def supernet() -> GatedSupernet:
    model = scattered(GatedSupernet(parts())).eval()
    with torch.no_grad():
        for alpha in model.alpha.values():
            alpha.normal_(mean=-3.0)
    return model


def opened(supernet: GatedSupernet, *shares: float) -> dict[str, Tensor]:
    supernet.open_shares(torch.tensor(shares))
    return supernet.hard_gates()


def test_each_task_opens_its_share_with_the_highest_logits(supernet: GatedSupernet) -> None:
    total = sum(alpha.shape[1] for alpha in supernet.alpha.values())
    for shares in ((0.0, 1.0), (0.25, 0.6), (1.0, 0.0), (1 / total, 1 - 1 / total)):
        gates = torch.cat(list(opened(supernet, *shares).values()), 1)
        assert gates.sum(1).tolist() == [round(share * total) for share in shares]
        alpha = torch.cat(list(supernet.alpha.values()), 1)
        for own, logits in zip(gates, alpha, strict=True):
            if own.any() and not own.all():
                assert logits[own].min() > logits[~own].max()


def test_a_richer_pattern_keeps_what_a_poorer_one_opened(supernet: GatedSupernet) -> None:
    patterns = [opened(supernet, share, 0.5) for share in torch.linspace(0, 1, 9).tolist()]
    for poorer, richer in pairwise(patterns):
        assert all((richer[name] >= poorer[name]).all() for name in poorer)


def test_a_pattern_that_is_set_forgets_the_shares(supernet: GatedSupernet) -> None:
    opened(supernet, 0.3, 0.7)
    pattern = {name: torch.rand(g.shape) < 0.5 for name, g in supernet.hard_gates().items()}
    supernet.set_gates(pattern)
    assert all(torch.equal(g, pattern[name]) for name, g in supernet.hard_gates().items())


@pytest.mark.parametrize("own", [False, True])
@torch.no_grad()
def test_plain_ends_are_the_gated_ones(supernet: GatedSupernet, image: Tensor, own: bool) -> None:
    plain = supernet.plain(image, own=own)
    opened(supernet, *[float(own)] * 2)
    for task, expected in supernet(image).items():
        assert torch.allclose(plain[task], expected, rtol=1e-4, atol=1e-5)
    for task, found in extract(supernet)(image).items():
        assert torch.allclose(plain[task], found, rtol=1e-4, atol=1e-5)


def test_draws_are_ends_common_and_separate(supernet: GatedSupernet) -> None:
    nested = Nested(supernet, ends=0.2, seed=3)
    draws = []
    for _ in range(600):
        nested.draw()
        draws.append(tuple(nested.shares.tolist()))
    closed, richest = draws.count((0.0, 0.0)), draws.count((1.0, 1.0))
    common = sum(a == b for a, b in draws) - closed - richest
    # Binomial with 600 draws: five standard deviations are about 50.
    assert abs(closed - 120) < 50
    assert abs(richest - 120) < 50
    assert abs(common - 180) < 56
    again = Nested(supernet, ends=0.2, seed=3)
    again.draw()
    assert tuple(again.shares.tolist()) == draws[0]


def test_gradient_reaches_the_order_between_the_ends_only(
    supernet: GatedSupernet,
    image: Tensor,
) -> None:
    nested = Nested(supernet, ends=0.0, seed=0).train()
    nested.draw()
    sum(y.square().mean() for y in nested(image).values()).backward()
    moved = sum(alpha.grad.abs().sum() for alpha in supernet.alpha.values())
    assert moved > 0
    supernet.zero_grad()
    nested.ends = 0.5
    nested.draw()
    sum(y.square().mean() for y in nested(image).values()).backward()
    assert all(alpha.grad is None for alpha in supernet.alpha.values())


def test_a_state_of_the_old_form_is_read(supernet: GatedSupernet) -> None:
    # checkpoints once held the threshold beside the shares, and no temperature
    nested = Nested(supernet, ends=0.0, seed=2)
    nested.draw()
    state = nested.state_dict()
    state["_extra_state"]["threshold"] = state.pop("supernet.threshold")
    del state["supernet._extra_state"]
    other = Nested(GatedSupernet(parts()), ends=0.0, seed=9)
    other.load_state_dict(state)
    assert torch.equal(other.shares, nested.shares)
    for model in (nested, other):  # the next step draws the same pattern
        model.draw()
    assert torch.equal(other.shares, nested.shares)
    ours, theirs = (model.supernet.hard_gates() for model in (nested, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
