"""What is drawn before each step, and that it goes on where it was left."""

import torch

from gatesearch.methods.dymu.draws import Draws


def draws(seed: int = 3, **changes: float) -> Draws:
    return Draws(**{"tasks": 3, "blocks": 2, "concentration": 0.2, "seed": seed, **changes})


def next_values(drawn: Draws) -> list[torch.Tensor]:
    drawn.draw()
    return [drawn.preference.clone(), drawn.cost.clone(), drawn.noise.clone()]


def test_draws_go_on_to_the_bit_from_a_state_dict() -> None:
    whole = draws()
    values = [next_values(whole) for _ in range(6)]
    first = draws()
    for _ in range(3):
        first.draw()
    torch.manual_seed(99)
    later = draws()
    later.load_state_dict(first.state_dict())
    for expected in values[3:]:
        assert all(map(torch.equal, next_values(later), expected))
    assert set(first.state_dict()) == {"count"}


def test_draws_leave_the_global_generator_alone_and_differ_by_seed() -> None:
    state = torch.random.get_rng_state()
    ours, other = next_values(draws()), next_values(draws(seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(map(torch.equal, ours, other))


def test_draws_have_their_distributions() -> None:
    drawn = draws()
    values = [next_values(drawn) for _ in range(1500)]
    preferences = torch.stack([r for r, _, _ in values])
    torch.testing.assert_close(preferences.sum(1), torch.ones(1500))
    # Dir(a, a, a): mean 1/3, variance (1/3)(2/3) / (3 a + 1)
    assert (preferences.mean(0) - 1 / 3).abs().max() < 0.04
    assert (preferences.var(0) - 2 / 9 / 1.6).abs().max() < 0.02
    costs = torch.stack([c for _, c, _ in values])
    assert 0 <= costs.min() < 0.01
    assert 0.99 < costs.max() < 1
    assert abs(costs.mean() - 0.5) < 0.04
    noise = torch.cat([g.flatten() for _, _, g in values])
    assert abs(noise.mean() - 0.5772) < 0.02  # Euler's constant
