"""Auto-λ on quadratics, where every derivative is known."""

import pytest
import torch
from torch import Tensor, nn

from gatesearch.training.weightings import TrainingView, build_weighting
from tests.training.weightings.toys import Run

CENTRES = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 3.0, 0.5]])
HELD_OUT = torch.tensor([[0.5, 1.0, 1.0], [0.0, 2.0, -1.0]])
CURVATURES = torch.tensor([1.0, 3.0])
OMEGA = {"a": 1.0, "b": 0.5}
LR, MOMENTUM, DECAY = 0.1, 0.9, 0.01


class Quadratics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor([0.3, -0.2, 0.9]))
        self.other = nn.Parameter(torch.tensor([1.5]))

    def losses(self, centres: Tensor) -> Tensor:
        """1/2 a_t |θ - c_t|² + 1/2 φ²."""
        return 0.5 * CURVATURES * (self.at - centres).square().sum(1) + 0.5 * self.other**2


def build(optimizer: str) -> tuple[Quadratics, torch.optim.Optimizer]:
    network = Quadratics()
    groups = [
        {"params": [network.at], "weight_decay": DECAY},
        {"params": [network.other], "lr": 10 * LR, "weight_decay": 0.0},
    ]
    if optimizer == "sgd":
        return network, torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    return network, torch.optim.Adam(groups, lr=LR)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("steps", [0, 3])
def test_derivative_by_the_weights(optimizer, steps) -> None:
    network, opt = build(optimizer)
    for _ in range(steps):  # so that there is momentum
        opt.zero_grad()
        network.losses(CENTRES).sum().backward()
        opt.step()
    before = {name: p.clone() for name, p in network.named_parameters()}

    # By autograd through the virtual step, per group.
    lambdas = torch.full((2,), 0.1, requires_grad=True)
    omega = torch.tensor(list(OMEGA.values()))
    moved = {}
    slopes = torch.autograd.grad(
        torch.dot(lambdas * omega, network.losses(CENTRES)), [network.at, network.other],
        create_graph=True,
    )  # fmt: skip
    for (name, p), slope, group in zip(
        network.named_parameters(), slopes, opt.param_groups, strict=True
    ):
        momentum = opt.state[p].get("momentum_buffer", torch.zeros_like(p))
        change = slope + group.get("momentum", 0.0) * momentum + group["weight_decay"] * p
        moved[name] = p.detach() - group["lr"] * change
    ahead = 0.5 * CURVATURES * (moved["at"] - HELD_OUT).square().sum(1) + 0.5 * moved["other"] ** 2
    (expected,) = torch.autograd.grad(torch.dot(omega, ahead), [lambdas])

    weighting = build_weighting("auto_lambda", OMEGA)
    with weighting.attached(TrainingView(network, opt)):
        weighting.before_step(
            losses=lambda exact=False: network.losses(CENTRES),
            held_out=lambda exact=False: network.losses(HELD_OUT),
        )
    # Central differences of quadratics are exact.
    assert weighting.lambdas.grad.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    # The first step of Adam is as long as its rate.
    turned = 0.1 - 1e-4 * expected.sign()
    assert weighting.lambdas.tolist() == pytest.approx(turned.tolist(), abs=1e-7)
    assert weighting.weights.tolist() == pytest.approx((omega * turned).tolist(), abs=1e-7)


def test_a_task_that_helps_held_out_data_gains() -> None:
    network, opt = build("sgd")
    weighting = build_weighting("auto_lambda", {"a": 1.0, "b": 1.0}, options={"lr": 1e-2})
    goal = CENTRES[:1].repeat(2, 1)
    with weighting.attached(TrainingView(network, opt)):
        for _ in range(20):
            weighting.before_step(
                losses=lambda exact=False: network.losses(CENTRES),
                held_out=lambda exact=False: network.losses(goal),
            )
    assert weighting.lambdas[0] > weighting.lambdas[1]


def test_looking_ahead_leaves_no_trace() -> None:
    run = Run("auto_lambda")
    kept = {name: t.clone() for name, t in run.model.state_dict().items()}
    random, x = torch.get_rng_state(), torch.randn(8, 4)
    torch.set_rng_state(random)
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        losses = run.losses(x)  # whose graph outlives the look ahead
        torch.set_rng_state(random)
        run.model.load_state_dict(kept)
        run.weighting.before_step(
            losses=lambda exact=False: torch.stack(run.losses(x)),
            held_out=lambda exact=False: torch.stack(run.losses(x)),
        )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, kept[name]) for name, t in run.model.state_dict().items())
    assert all(p.grad is None for p in run.model.parameters())
    del losses


@pytest.mark.parametrize("factor", [0.0, torch.inf])
def test_the_weights_stay_where_looking_ahead_tells_nothing(factor) -> None:
    network, opt = build("sgd")
    weighting = build_weighting("auto_lambda", OMEGA)
    with weighting.attached(TrainingView(network, opt)):
        weighting.before_step(
            losses=lambda exact=False: network.losses(CENTRES),
            held_out=lambda exact=False: factor * network.losses(HELD_OUT),
        )
    assert weighting.lambdas.tolist() == pytest.approx([0.1, 0.1])
