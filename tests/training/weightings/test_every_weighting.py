"""What every weighting must hold, on friendly and on hostile losses."""

import copy
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from gatesearch.errors import UsageError
from gatesearch.training.weightings import (
    WEIGHTINGS,
    TrainingView,
    UnbalancedError,
    build_weighting,
)
from tests.training.weightings.toys import TASKS, Run, built, combined

EVERY = list(WEIGHTINGS)
# Look at the gradients of what is shared, of which `combined` makes up any.
SURGERY = [n for n, e in WEIGHTINGS.items() if e.kind == "gradient" and n != "mgda_ub"]
ROWS = [[1.0, 0.0, 0.5], [-0.5, 1.0, 0.0], [0.0, 0.3, 2.0]]


def gradients(run: Run, part: str = "") -> torch.Tensor:
    named = run.model.named_parameters()
    return torch.cat([p.grad.flatten() for name, p in named if name.startswith(part)])


def first(name: str, **options) -> Run:
    """One batch's gradients; dropout would draw from torch's own numbers."""
    run = Run(name, **options)
    run.model.body[2].p = 0.0
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        run.gradients()
    return run


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("name", EVERY)
def test_scale_of_all_losses(name, scale) -> None:
    run = first(name, scale=dict.fromkeys(TASKS, scale))
    assert gradients(run).isfinite().all()
    assert run.weighting.weights.isfinite().all()
    assert gradients(run, "body").norm() > 0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
@pytest.mark.parametrize("name", [*sorted(set(SURGERY) - {"nash_mtl", "fairgrad"}), "mgda_ub"])
def test_directions_do_not_depend_on_scale(name, scale) -> None:
    plain, scaled = first(name), first(name, scale=dict.fromkeys(TASKS, scale))
    found = gradients(scaled) / scale
    assert found.tolist() == pytest.approx(gradients(plain).tolist(), rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("name", EVERY)
def test_scales_apart(name) -> None:
    run = first(name, scale={"a": 1e-8, "c": 1e8})
    assert gradients(run).isfinite().all()
    assert run.weighting.weights.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_task_without_gradient(name) -> None:
    run = first(name, scale={"b": 0.0})
    assert gradients(run).isfinite().all()
    assert gradients(run, "heads.b").tolist() == [0.0] * 6
    Run(name).weighting.load_state_dict(run.weighting.state_dict())
    assert gradients(run, "heads.a").norm() > 0
    assert gradients(run, "body").norm() > 0


@pytest.mark.parametrize("name", EVERY)
def test_no_gradient_at_all(name) -> None:
    run = first(name, scale=dict.fromkeys(TASKS, 0.0))
    assert gradients(run).abs().max() == 0


@pytest.mark.parametrize("name", SURGERY)
def test_identical_gradients(name) -> None:
    found = combined(built(name, 3), [[3.0, -4.0]] * 3)
    assert torch.nn.functional.normalize(found, dim=0).tolist() == pytest.approx([0.6, -0.8])


@pytest.mark.parametrize("name", sorted(set(SURGERY) - {"graddrop"}))
def test_no_task_is_hurt_where_none_conflicts(name) -> None:
    rows = [[1.0, 0.2, 0.0], [0.2, 1.0, 0.1], [0.1, 0.0, 1.0]]
    found = combined(built(name, 3), rows)
    assert (torch.tensor(rows) @ found > 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_one_task(name) -> None:
    alone, plain = first(name, tasks=("a",)), first("uniform", tasks=("a",))
    weight = alone.weighting.weights.item()
    expected = weight * gradients(plain, "body")
    assert gradients(alone, "body").tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    if WEIGHTINGS[name].kind == "gradient":
        assert weight == 1


@pytest.mark.parametrize("name", EVERY)
def test_the_task_whose_loss_is_no_number_is_named(name) -> None:
    with pytest.raises(UnbalancedError, match=r"of b became nan") as caught:
        first(name, scale={"b": math.nan})
    assert caught.value.task == "b"


@pytest.mark.parametrize("name", SURGERY)
def test_the_task_whose_gradient_is_no_number_is_named(name) -> None:
    with pytest.raises(UnbalancedError, match="gradient of c became inf"):
        combined(built(name, 3), [[1.0, 0.0], [0.0, 1.0], [math.inf, 0.0]])


@pytest.mark.parametrize("name", EVERY)
def test_weights_are_logged(name) -> None:
    run = Run(name)
    curve = run.epoch(steps=3)
    assert list(curve) == [f"weight.{task}" for task in TASKS]
    assert all(math.isfinite(value) for value in curve.values())
    if name in ("uniform", "scalar", "dwa"):
        assert list(curve.values()) == [1.0] * 3


@pytest.mark.parametrize("name", EVERY)
def test_it_goes_on_to_the_bit(name) -> None:
    run = Run(name)
    for _ in range(2):
        run.epoch()
    states = copy.deepcopy(
        {
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "weighting": run.weighting.state_dict(),
            "data": run.data.get_state(),
            "random": torch.get_rng_state(),
        }
    )
    curves = [run.epoch() for _ in range(2)]

    again = Run(name)
    again.model.load_state_dict(states["model"])
    again.optimizer.load_state_dict(states["optimizer"])
    again.weighting.load_state_dict(states["weighting"])
    again.data.set_state(states["data"])
    torch.set_rng_state(states["random"])
    assert [again.epoch() for _ in range(2)] == curves
    ours, theirs = run.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert plain(states["weighting"])


def plain(state: object) -> bool:
    """Whether a checkpoint can hold it: tensors and JSON."""
    if isinstance(state, dict):
        return all(isinstance(key, str) and plain(value) for key, value in state.items())
    return isinstance(state, torch.Tensor | int | float | str)


@pytest.mark.parametrize("name", EVERY)
def test_the_network_draws_what_it_does_without(name) -> None:
    states = []
    for which in ("uniform", name):
        torch.manual_seed(0)
        Run(which).epoch()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(7))


@contextmanager
def ready(name: str) -> Iterator[Run]:
    """Before the backward pass of the batch `X`, with batch norm in evaluation: it sees parts."""
    run = Run(name)
    run.model.eval()
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        run.weighting.before_step(
            losses=lambda exact=False: torch.stack(run.losses(X)),
            held_out=lambda exact=False: torch.stack(run.losses(X)),
        )
        yield run


@pytest.mark.parametrize("name", sorted({*EVERY} - {"mgda_ub", "stch", "famo"}))  # weigh each part
def test_a_batch_in_two_parts_is_the_batch(name) -> None:
    found = []
    for parts in ([X], [X[:4], X[4:]]):
        with ready(name) as run:
            run.weighting.backward(run.losses(X[:2]), share=0.25)
            run.optimizer.zero_grad()  # that attempt ran out of memory
            run.weighting.clear()
            for part in parts:
                run.weighting.backward(run.losses(part), share=len(part) / len(X))
            run.weighting.combine(torch.ones(3))
        found.append(gradients(run).tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_penalty_is_added_as_it_is(name) -> None:
    def penalty(run: Run, losses: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(losses).sum() + run.model.body[0].weight.square().sum()

    found = []
    for factor in (0.0, 1.0):
        with ready(name) as run:
            losses = run.losses(X)
            run.weighting.backward(losses, penalty=factor * penalty(run, losses))
            run.weighting.combine(torch.ones(3))
        found.append(gradients(run))
    run.optimizer.zero_grad()
    penalty(run, run.losses(X)).backward()
    difference = (found[1] - found[0]).tolist()
    assert difference == pytest.approx(gradients(run).tolist(), rel=1e-3, abs=1e-5)


WITHOUT_TORCHJD = ("uniform", "scalar", "auto_lambda")


@pytest.mark.parametrize("name", WITHOUT_TORCHJD)
def test_some_need_no_package(name, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    assert gradients(first(name)).isfinite().all()


@pytest.mark.parametrize("name", sorted({*EVERY} - {*WITHOUT_TORCHJD}))
def test_a_missing_package_is_told_with_its_command(name, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(UsageError, match=r'pip install "torchjd(\[[a-z-]+\])?>=0\.18"'):
        built(name, 2)


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("cagrad", "cagrad"),
        ("nash_mtl", "nash-mtl"),
        ("upgrad", "quadprog-projector"),
        ("fairgrad", "fairgrad"),
    ],
)
def test_a_missing_solver_is_told_with_its_command(name, extra, monkeypatch) -> None:
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=rf'pip install "torchjd\[{extra}\]>=0\.18"'):
        built(name, 2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cagrd", {}, "did you mean 'cagrad'"),
        ("cagrad", {"radius": 1}, r"unknown option of weighting cagrad 'radius'.*\(known: c\)"),
        ("cagrad", {"c": -1}, "weighting cagrad: c must be non-negative"),
        ("nash_mtl", {"max_norm": -1.0}, "at least 0, found -1.0"),
        ("dwa", {"temperature": 0.0}, "weighting dwa: .*temperature"),
        ("scalar", {"weights": {"depht": 1}}, "unknown task of weighting scalar"),
        ("scalar", {"weights": {"depth": -1}}, "at least 0, found depth = -1"),
    ],
)
def test_wrong_use(name, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        build_weighting(name, {"depth": 1.0}, options=options)
