"""Tasks of which a batch has no labels take no part in it, whatever the weighting."""

import copy
import itertools
import math
import random
from collections.abc import Iterator

import pytest
import torch

from gatesearch.training.weightings import WEIGHTINGS, TrainingView
from tests.training.weightings.toys import TASKS, Run, built

EVERY = list(WEIGHTINGS)
# The factor of a loss that a method has learned, whatever the others: at first.
LEARNED = {"uncertainty": 0.5, "auto_lambda": 0.1, "imtl_l": 1.0}


def run_of(name: str, tasks=TASKS, *, present=None, like: Run | None = None) -> Run:
    """A run without draws of its own, with the weights of another network's equal parts."""
    run = Run(name, tasks)
    run.model.body[2].p = 0.0
    run.present = present
    if like is not None:
        theirs = like.model.state_dict()
        run.model.load_state_dict({key: theirs[key] for key in run.model.state_dict()})
    return run


def take(run: Run) -> None:
    """The gradients of one batch."""
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        run.gradients()


def gradients(run: Run, part: str) -> torch.Tensor:
    named = run.model.named_parameters()
    return torch.cat([p.grad.flatten() for name, p in named if name.startswith(part)])


def entries(run: Run, task: str) -> Iterator[torch.Tensor]:
    """All that is kept of a task: entries of tensors (T,), (2, T) and (T, T)."""
    t, count = TASKS.index(task), len(TASKS)
    kept = [run.weighting.state_dict(), *run.optimizer.state.values()]
    while kept:
        value = kept.pop()
        if isinstance(value, dict):
            kept += value.values()
        elif isinstance(value, torch.Tensor) and value.shape == (count, count):
            yield value[t].clone()
            yield value[:, t].clone()
        elif isinstance(value, torch.Tensor) and value.shape[-1:] == (count,):
            yield value[..., t].clone()


@pytest.mark.parametrize("absent", TASKS)
@pytest.mark.parametrize("name", EVERY)
def test_without_its_labels_is_without_the_task(name, absent) -> None:
    left = tuple(task for task in TASKS if task != absent)
    ours = run_of(name, present=left)
    theirs = run_of(name, left, like=ours)
    take(ours)
    take(theirs)
    for part in ("body", *(f"heads.{task}" for task in left)):
        expected = gradients(theirs, part)
        torch.testing.assert_close(gradients(ours, part), expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in ours.model.heads[absent].parameters())
    kept = ours.weighting.weights[[task in left for task in TASKS]]
    torch.testing.assert_close(kept, theirs.weighting.weights, rtol=1e-4, atol=1e-6)


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", EVERY)
def test_a_training_without_its_labels_is_one_without_the_task(name) -> None:
    ours = run_of(name, present=("a", "c"))
    theirs = run_of(name, ("a", "c"), like=ours)
    for run in (ours, theirs):
        run.optimizer = torch.optim.SGD(run.optimizer.param_groups, lr=1e-2, momentum=0.9)
    head = copy.deepcopy(ours.model.heads["b"].state_dict())
    for _ in range(4):
        curves = [run.epoch() for run in (ours, theirs)]
        for task in ("a", "c"):
            key = f"weight.{task}"
            assert curves[0][key] == pytest.approx(curves[1][key], rel=1e-3)
    for key, tensor in theirs.model.state_dict().items():
        torch.testing.assert_close(ours.model.state_dict()[key], tensor, rtol=1e-3, atol=1e-5)
    assert all(torch.equal(head[k], t) for k, t in ours.model.heads["b"].state_dict().items())


@pytest.mark.slow("trains")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("name", EVERY)
def test_what_is_kept_of_an_absent_task_stays(name, optimizer) -> None:
    run = run_of(name)
    if optimizer == "sgd":
        run.optimizer = torch.optim.SGD(run.optimizer.param_groups, lr=1e-2, momentum=0.9)
    for _ in range(3):
        run.epoch()
    before = list(entries(run, "b"))
    others = list(entries(run, "a"))
    assert before
    run.present = ("a", "c")
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        for _ in range(3):
            run.gradients()
            run.optimizer.step()
            run.weighting.after_step(losses=lambda exact=False: torch.stack(run.losses(run.x)))
    after = list(entries(run, "b"))
    # `_summed`, of which the epoch's mean factor is made, counts the factor that stayed.
    moved = [new - old for old, new in zip(before, after, strict=True) if not torch.equal(old, new)]
    assert len(moved) == 1
    torch.testing.assert_close(moved[0], 3 * run.weighting.weights[1])
    if name not in ("uniform", "scalar", "dwa", "pcgrad"):  # these gradients do not conflict
        now = zip(others, entries(run, "a"), strict=True)
        assert sum(not torch.equal(old, new) for old, new in now) > 1


@pytest.mark.parametrize("name", EVERY)
def test_one_task_that_is_present_alone_descends(name) -> None:
    run = run_of(name)
    if name not in LEARNED:
        for _ in range(3):  # whatever was learned of all
            run.epoch()
    run.present = ("b",)
    plain = run_of("uniform", ("b",), like=run)
    plain.data.set_state(run.data.get_state())
    take(run)
    take(plain)
    factor = LEARNED.get(name, 1.0)
    expected = factor * gradients(plain, "body")
    torch.testing.assert_close(gradients(run, "body"), expected, rtol=2e-3, atol=1e-6)
    if name != "dwa":  # whose weights are those of the next step by now
        assert run.weighting.weights[1].item() == pytest.approx(factor, rel=2e-3)
    for other in ("a", "c"):
        assert all(p.grad is None for p in run.model.heads[other].parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_step_without_labels_changes_nothing_but_by_its_penalty(name) -> None:
    run = run_of(name)
    for _ in range(3):
        run.epoch()
    with run.weighting.attached(TrainingView(run.model, run.optimizer)):
        run.present = ()
        before = {
            key: copy.deepcopy(value)
            for key, value in run.weighting.state_dict().items()
            if key not in ("_steps", "_summed")
        }
        parameters = [p.clone() for p in run.model.parameters()]
        run.gradients()
        assert all(p.grad is None for p in run.model.parameters())
        assert all(p.grad is None for p in run.weighting.learned_parameters())
        run.optimizer.step()
        run.weighting.after_step(losses=lambda exact=False: torch.stack(run.losses(run.x)))
        after = run.weighting.state_dict()
        for key, value in before.items():
            assert str(after[key]) == str(value)
        pairs = zip(parameters, run.model.parameters(), strict=True)
        assert all(torch.equal(old, new) for old, new in pairs)
        penalty = run.model.body[0].weight.square().sum()
        run.weighting.backward(
            run.losses(run.x), share=0.5, shares=torch.zeros(3).double(), penalty=penalty
        )
        run.weighting.combine(torch.zeros(3).double())
        assert torch.equal(run.model.body[0].weight.grad, run.model.body[0].weight)
        assert run.model.body[0].bias.grad is None


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", EVERY)
def test_any_order_of_presence_stays_finite(name) -> None:
    run = run_of(name)
    draws = random.Random(name)
    patterns = [
        None,
        *(p for n in range(4) for p in itertools.combinations(TASKS, n)),
    ]
    for _ in range(30):
        run.present = draws.choice(patterns)
        curve = run.epoch(steps=draws.choice([1, 2]))
        assert all(map(math.isfinite, curve.values()))
    assert all(t.isfinite().all() for t in run.model.state_dict().values())
    # Means of epochs are not known at first.
    kept = [t for t in run.weighting.state_dict().values() if isinstance(t, torch.Tensor)]
    assert all(t.isfinite().all() for t in kept)


@pytest.mark.parametrize("name", EVERY)
def test_all_tasks_present_is_as_if_none_were_asked_about(name) -> None:
    plain, told = run_of(name), run_of(name, present=TASKS)
    curves = [[run.epoch() for _ in range(3)] for run in (plain, told)]
    for ours, theirs in zip(*curves, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for key, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(told.model.state_dict()[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_an_absent_tasks_prediction_may_be_no_number(name) -> None:
    run = run_of(name, present=("a", "c"))
    torch.nn.init.constant_(run.model.heads["b"].bias, math.nan)
    take(run)
    assert gradients(run, "body").isfinite().all()


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(7))
# Which of its eight frames have labels of a, b, c; the second half has none of b.
LABELLED = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 0], [1, 1, 1],
                         [0, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)  # fmt: skip


@pytest.mark.parametrize("name", sorted({*EVERY} - {"mgda_ub", "stch", "famo"}))  # weigh each part
def test_parts_weigh_by_their_labelled_frames(name) -> None:
    """The losses of a part are means over its labelled frames, 0 with a graph where it has none."""

    def losses(run: Run, rows: slice) -> list[torch.Tensor]:
        outputs = run.model(X[rows])
        squares = ((outputs[t][:, 0] - 1 - i).square() for i, t in enumerate(TASKS))
        masks = LABELLED[rows].float().unbind(1)
        return [(s * m).sum() / m.sum().clamp(min=1) for s, m in zip(squares, masks, strict=True)]

    found = []
    for parts in ([(0, 8)], [(0, 4), (4, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)]):
        run = Run(name)
        run.model.eval()
        with run.weighting.attached(TrainingView(run.model, run.optimizer)):
            run.weighting.present = LABELLED.any(0)
            run.weighting.before_step(
                losses=lambda run=run, exact=False: torch.stack(losses(run, slice(0, 8))),
                held_out=lambda run=run, exact=False: torch.stack(losses(run, slice(0, 8))),
            )
            for start, end in parts:
                rows = slice(start, end)
                shares = LABELLED[rows].sum(0).double() / LABELLED.sum(0)
                run.weighting.backward(losses(run, rows), share=len(X[rows]) / 8, shares=shares)
            run.weighting.combine(torch.ones(3))
        learned = [p.grad for p in run.weighting.learned_parameters()]
        found.append(torch.cat([gradients(run, ""), *learned]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5)


def test_random_weights_of_those_present_add_up_to_one() -> None:
    weighting = built("rlw", 3)
    weighting.present = torch.tensor([True, False, True])
    for _ in range(5):
        weighting.before_step(losses=None, held_out=None)
        assert weighting.weights[[0, 2]].sum().item() == pytest.approx(1)
        assert weighting.weights[1].item() == 1.0


def test_dwa_counts_the_epochs_with_labels_of_each_task() -> None:
    weighting = built("dwa", 3, temperature=1.0)
    for means in ({"a": 4.0, "b": 1.0, "c": 1.0}, {"a": 2.0}, {"a": 1.0, "c": 2.0}):
        weighting.end_epoch(means)
    # r: a 1/2 as ever, b unknown and so 1, c 2/1.
    raised = torch.tensor([0.5, 1.0, 2.0]).exp()
    whole = 3 * raised / raised.sum()
    assert weighting.weights.tolist() == pytest.approx(whole.tolist())
    weighting.present = torch.tensor([True, False, True])
    weighting.before_step(losses=None, held_out=None)
    pair = 2 * raised[[0, 2]] / raised[[0, 2]].sum()
    assert weighting.weights[[0, 2]].tolist() == pytest.approx(pair.tolist())
    weighting.combine(torch.ones(3).double())
    weighting.present = None
    weighting.before_step(losses=None, held_out=None)
    assert weighting.weights.tolist() == pytest.approx(whole.tolist())


def test_nash_goes_on_from_the_last_solution_of_each_task() -> None:
    run = run_of("nash_mtl", present=("a", "c"))
    take(run)
    first, absent, last = run.weighting.rule.get_extra_state()["alpha"].tolist()
    assert absent == 1  # as at the beginning
    assert 1 not in (first, last)


def test_stch_is_the_smooth_maximum_of_two() -> None:
    # μ log(e^(1/2μ) + e^(3/2μ)) by the losses 1 and 3, for μ = 1
    run = run_of("stch", present=("a", "c"))
    weighting = built("stch", 3, mu=1.0)
    with weighting.attached(TrainingView(run.model, run.optimizer)):
        weighting.present = torch.tensor([True, False, True])
        leaves = [torch.tensor(v, requires_grad=True) for v in (1.0, 3.0)]
        weighting.backward(
            [leaves[0], torch.zeros(()), leaves[1]], shares=weighting.present.double()
        )
    expected = 0.5 * torch.tensor([0.5, 1.5]).softmax(0)
    assert [leaf.grad.item() for leaf in leaves] == pytest.approx(expected.tolist())
