"""Values worked out by hand, closed forms, and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

from gatesearch.training.weightings import TrainingView, build_weighting
from gatesearch.training.weightings.gradients import compute_gramian, weighted_sum
from tests.training.weightings.toys import Point, built, combined

TWO = [[1.0, 0.0], [-1.0, 1.0]]
THREE = [[1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]]
SPATIAL = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0], [0.5, -2.0, 1.0]]


def simplex(count: int, steps: int) -> np.ndarray:
    """All points of the simplex on a grid."""
    cells = itertools.product(range(steps + 1), repeat=count - 1)
    inside = [(*cell, steps - sum(cell)) for cell in cells if sum(cell) <= steps]
    return np.array(inside) / steps


def test_pcgrad_of_two() -> None:
    # g1 + g2/2 = (.5, .5) and g2 + g1 = (0, 1)
    assert combined(built("pcgrad", 2), TWO).tolist() == [0.5, 1.5]


def test_pcgrad_of_three_in_every_order() -> None:
    # g1: (.5, 0) or (.5, .5); g2: 0 in both orders; g3: (-.5, -.5) or (0, -.5)
    weighting = built("pcgrad", 3)
    drawn = torch.stack([combined(weighting, THREE) for _ in range(400)])
    assert {tuple(row) for row in drawn.tolist()} == {(0, -0.5), (0.5, -0.5), (0, 0), (0.5, 0)}
    assert drawn.mean(0).tolist() == pytest.approx([0.25, -0.25], abs=0.05)


@pytest.mark.parametrize("rows", [TWO, THREE, SPATIAL])
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
def test_cagrad_against_its_dual_on_a_grid(rows, c) -> None:
    g = np.array(rows)
    mean = g.mean(0)
    radius = c * np.linalg.norm(mean)
    grid = simplex(len(g), 400)
    mixed = grid @ g
    lengths = np.linalg.norm(mixed, axis=1)
    best = mixed[np.argmin(mixed @ mean + radius * lengths)]
    expected = mean + radius * best / np.linalg.norm(best)
    found = combined(built("cagrad", len(g), c=c), rows).numpy()
    assert found == pytest.approx(expected, abs=0.02 * np.linalg.norm(g))
    # What the method is for: no direction of the ball is better for the worst-off task.
    angle = np.linspace(0, 2 * np.pi, 721)
    if g.shape[1] == 2:
        ball = mean + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        assert (g @ found).min() >= (ball @ g.T).min(1).max() - 1e-3


def test_mgda_of_two_in_closed_form() -> None:
    # w1 = (g2 - g1) g2 / |g1 - g2|² = 3/5
    weighting = built("mgda", 2)
    assert combined(weighting, TWO).tolist() == pytest.approx([0.2, 0.4])
    assert weighting.weights.tolist() == pytest.approx([0.6, 0.4])
    # where the shortest point is an end
    assert combined(built("mgda", 2), [[1.0, 0.0], [3.0, 1.0]]).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize("rows", [THREE, SPATIAL, [[1.0, 2.0, 0.0], [2.0, 1.0, 1.0], [1, 1, -3]]])
def test_mgda_of_three_against_a_grid(rows) -> None:
    shortest = np.linalg.norm(simplex(3, 300) @ np.array(rows), axis=1).min()
    found = combined(built("mgda", 3), rows).norm().item()
    assert found == pytest.approx(shortest, abs=0.02)


def test_imtl_g_projects_equally() -> None:
    rows = [[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 0.3, 2.0]]
    weighting = built("imtl_g", 3)
    found = combined(weighting, rows)
    units = torch.nn.functional.normalize(torch.tensor(rows), dim=1)
    assert (units @ found).tolist() == pytest.approx([(units @ found)[0].item()] * 3, rel=1e-4)
    assert weighting.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1.0, 1e8])
def test_nash_is_the_bargain(scale) -> None:
    # torchjd's own is off where gradients are as short as 1e-3.
    g = scale * torch.tensor([[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 0.3, 2.0]])
    rows = g.tolist()
    weighting = built("nash_mtl", 3, max_norm=0.0)
    found = combined(weighting, rows)
    assert (weighting.weights * (g @ found)).tolist() == pytest.approx([1.0] * 3, rel=1e-3)
    assert combined(built("nash_mtl", 3, max_norm=0.3), rows).norm().item() <= 0.3001


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_fairgrad_is_fair(scale) -> None:
    rows = (scale * torch.tensor([[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 0.3, 2.0]])).tolist()
    weighting = built("fairgrad", 3, alpha=2.0)
    gains = torch.tensor(rows) @ combined(weighting, rows)
    assert gains.tolist() == pytest.approx((weighting.weights**-0.5).tolist(), rel=1e-3)


def test_upgrad_of_torchjds_manual() -> None:
    found = combined(built("upgrad", 2), [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
    assert found.tolist() == pytest.approx([0.2929, 1.9004, 1.9004], abs=1e-4)


def test_config_has_equal_cosines() -> None:
    rows = [[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 0.3, 2.0]]
    found = combined(built("config", 3), rows)
    g = torch.tensor(rows)
    cosines = torch.nn.functional.normalize(g, dim=1) @ found / found.norm()
    assert cosines.tolist() == pytest.approx([cosines[0].item()] * 3, rel=1e-4)
    assert found.norm().item() == pytest.approx((g @ found).sum().item() / found.norm().item())


def test_aligned_mtl_of_orthogonal_gradients() -> None:
    # Principal components 3 and 1 are scaled to 1, then averaged.
    assert combined(built("aligned_mtl", 2), [[3.0, 0], [0, 1.0]]).tolist() == pytest.approx(
        [0.5, 0.5]
    )


def test_gradvac_first_projects_like_pcgrad() -> None:
    # The usual cosine begins at 0, which is PCGrad.
    assert combined(built("gradvac", 2), TWO).tolist() == pytest.approx([0.5, 1.5], abs=1e-4)


def test_graddrop_keeps_one_sign() -> None:
    rows = [[3.0, 1.0, 0.0], [-1.0, 1.0, 0.0]]
    weighting = built("graddrop", 2)
    drawn = torch.stack([combined(weighting, rows) for _ in range(600)])
    # purity (1 + 2 / 4) / 2 = 3/4 of the first entry is positive; the second always is
    assert set(drawn[:, 0].tolist()) == {3.0, -1.0}
    assert (drawn[:, 0] == 3).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert drawn[:, 1:].tolist() == [[2.0, 0.0]] * 600


def test_dwa_by_hand() -> None:
    weighting = build_weighting("dwa", {"a": 1.0, "b": 10.0})
    for losses in ({"a": 2.0, "b": 4.0}, {"a": 1.0, "b": 4.0}):
        assert weighting.weights.tolist() == [1.0, 10.0]
        weighting.end_epoch(losses)
    # r = (1/2, 1), e^(1/4) and e^(1/2) of their sum, times 2
    share = 1 / (1 + math.exp(0.25))
    assert weighting.weights.tolist() == pytest.approx([2 * share, 20 * (1 - share)])
    weighting.end_epoch({"a": 0.0, "b": 4.0})
    assert weighting.weights.tolist() == pytest.approx([1.0, 10.0])


@pytest.mark.parametrize(("name", "weight"), [("uncertainty", 0.5), ("imtl_l", 1.0)])
def test_learned_scales_even_the_losses_out(name, weight) -> None:
    # Their fixed points are s = log L and s = -log L, where w = 1/(2L) and 1/L.
    losses = torch.tensor([0.2, 2.0, 8.0])
    weighting = built(name, 3)
    point = Point(3)
    optimizer = torch.optim.Adam(weighting.learned_parameters(), lr=0.05)
    with weighting.attached(TrainingView(point, optimizer)):
        for step in range(1500):
            optimizer.param_groups[0]["lr"] = 0.05 * 0.997**step
            optimizer.zero_grad()
            weighting.backward(list(losses + point.at))
            weighting.combine(losses)
            optimizer.step()
    assert (weighting.weights * losses).tolist() == pytest.approx([weight] * 3, rel=1e-3)
    (s,) = weighting.learned_parameters()
    sign = 1 if name == "uncertainty" else -1
    assert (sign * s).tolist() == pytest.approx(losses.log().tolist(), abs=1e-3)


def test_rlw_draws_softmax_of_normals_and_leaves_the_network_its_numbers() -> None:
    weighting = built("rlw", 3)
    before = torch.get_rng_state()
    drawn = []
    for _ in range(4000):
        weighting.before_step(losses=lambda exact=False: None, held_out=lambda exact=False: None)
        drawn.append(weighting.weights.clone())
    w = torch.stack(drawn).numpy()
    assert torch.equal(torch.get_rng_state(), before)
    z = np.exp(np.random.default_rng(0).standard_normal((200_000, 3)))
    expected = z / z.sum(1, keepdims=True)
    assert w.sum(1) == pytest.approx(np.ones(4000), abs=1e-5)
    assert w.mean(0) == pytest.approx(np.full(3, 1 / 3), abs=0.01)
    assert np.cov(w.T) == pytest.approx(np.cov(expected.T), abs=0.003)
    assert np.quantile(w, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(expected, [0.1, 0.5, 0.9]), abs=0.02
    )
    # one draw does not tell the next
    assert abs(np.corrcoef(w[1:, 0], w[:-1, 0])[0, 1]) < 0.05


def test_stch_is_the_softmax_of_the_losses() -> None:
    weighting = built("stch", 2, mu=0.5)
    point = Point(2)
    with weighting.attached(TrainingView(point, torch.optim.SGD(point.parameters(), lr=1))):
        weighting.backward([1.0 + point.at[0], 3.0 + point.at[1]])
    # ∂/∂ℓ_t of μ log Σ exp(ℓ_t / (2 μ)) is half the softmax of ℓ
    expected = torch.tensor([1.0, 3.0]).softmax(0) / 2
    assert point.at.grad.tolist() == pytest.approx(expected.tolist())


def test_famo_by_hand() -> None:
    weighting = built("famo", 2)
    point = Point(2)

    def step(after: list[float]) -> list[float]:
        point.zero_grad()
        weighting.backward([1.0 + point.at[0], 4.0 + point.at[1]])
        weighting.combine(torch.tensor([1.0, 4.0]))
        weighting.after_step(losses=lambda exact=False: torch.tensor(after))
        return weighting.weights.tolist()

    with weighting.attached(TrainingView(point, torch.optim.SGD(point.parameters(), lr=1))):
        # z = 1/2: c z_t / L_t = (1, 1/4) / (5/4)
        assert step([0.5, 4.0]) == pytest.approx([0.8, 0.2])
        # the first loss fell: the first step of Adam moves ξ by 0.025, down for it
        z = torch.tensor([-0.025, 0.025]).softmax(0) / torch.tensor([1.0, 4.0])
        assert step([1.0, 4.0]) == pytest.approx((z / z.sum()).tolist(), rel=1e-4)


def test_scalar_takes_the_place_of_the_studys_weights() -> None:
    weighting = build_weighting("scalar", {"a": 2.0, "b": 3.0}, options={"weights": {"b": 0.5}})
    assert weighting.weights.tolist() == [2.0, 0.5]
    assert combined(weighting, TWO).tolist() == [1.5, 0.5]


def test_gradient_methods_balance_losses_that_the_study_weighs() -> None:
    weighting = build_weighting("mgda", {"a": 1.0, "b": 2.0})
    assert combined(weighting, [[1.0, 0.0], [-0.5, 0.5]]).tolist() == pytest.approx([0.2, 0.4])
    assert weighting.weights.tolist() == pytest.approx([0.6, 2 * 0.4])


@pytest.mark.parametrize("shape", [(), (3,), (40000,), (64, 48, 3, 3)])
def test_combinations_of_gradients_of_any_size_and_layout(shape) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = {t: torch.randn(shape, generator=generator) for t in (0, 2, 1)}
    if len(shape) == 4:
        rows[2] = rows[2].to(memory_format=torch.channels_last)
        rows[1] = rows[1].transpose(2, 3)
    expected = 0.5 * rows[0] - 3.0 * rows[1] + 2.0 * rows[2]
    found = weighted_sum(rows, [0.5, -3.0, 2.0])
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.stride() == rows[0].stride()
    gramian = compute_gramian([rows], 3)
    flat = torch.stack([rows[t].flatten() for t in range(3)]).double()
    assert torch.allclose(gramian, flat @ flat.T, rtol=1e-4)
