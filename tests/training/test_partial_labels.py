"""Labels for some frames only, in the training loop: means over those that have them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gatesearch.study import AugmentSpec
from gatesearch.training import (
    Checkpoints,
    PhaseCheckpoints,
    Preempted,
    Ranks,
    evaluate,
    launch,
    recompute_statistics,
    trainer,
)
from gatesearch.training.cuda_graph import CudaGraphStep
from gatesearch.training.label_counts import count_labels
from gatesearch.training.split_data import LABELLED, normalize
from gatesearch.training.weightings import WEIGHTINGS, build_weighting
from tests.training.toys import (
    CPU,
    PartlyLabelled,
    Toy,
    same_state,
    spec,
    toy_frames,
    toy_pack,
    toy_tasks,
    train,
)

NAMES = ("depth", "normals", "edges")  # of each labelled frame as many pixels have a label
OMEGA = {"depth": 1.0, "normals": 0.5, "edges": 2.0}
FRAMES, BATCH = 17, 4
PLAIN = AugmentSpec(flip=True)
# Each part of a batch weighs its own losses under the others.
BY_THE_BATCH = tuple(name for name in WEIGHTINGS if name not in ("mgda_ub", "stch", "famo"))


def presence(seed: int, share: float = 0.4) -> torch.Tensor:
    """Which frames have labels of which tasks: most batches of 4 lack some, a few lack all."""
    generator = torch.Generator().manual_seed(seed)
    labelled = torch.rand(FRAMES, len(NAMES), generator=generator) < share
    labelled[::3] = False
    return labelled


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return toy_pack(tmp_path_factory.mktemp("packs") / "toy", train=FRAMES)


@pytest.fixture(scope="module")
def frames(pack):
    return toy_frames(pack, *NAMES)


def plain_model() -> nn.Module:
    """Without batch norm and dropout, in float64: parts of a batch see what the batch does."""
    model = Toy(*NAMES, dropout=0.0)
    model.body[1] = nn.Identity()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return model.double()


def trained(data, name="uniform", *, model=None, held_out=None, **options):
    model = model or plain_model()
    weighting = build_weighting(name, OMEGA, seed=3)
    defaults = {"spec": spec(epochs=3, batch_size=BATCH, optimizer="sgd", augment=PLAIN)}
    history = train(
        model, data, toy_tasks(*NAMES), held_out=held_out or data, weighting=weighting,
        **defaults | options,
    )  # fmt: skip
    return model, history


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_labels_that_are_all_there_change_no_bit(frames, name) -> None:
    told = PartlyLabelled(frames, torch.ones(FRAMES, len(NAMES), dtype=torch.bool))
    own = {"spec": spec(epochs=3, batch_size=BATCH)}
    plain, expected = trained(frames, name, model=Toy(*NAMES), **own)
    same, found = trained(told, name, model=Toy(*NAMES), **own)
    assert same_state(plain, same)
    assert found.curves == expected.curves


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_weighting_trains_on_some_labels(frames, name, seed) -> None:
    data = PartlyLabelled(frames, presence(seed))
    held_out = PartlyLabelled(frames, presence(seed + 5, share=0.2))
    model, history = trained(
        data, name, model=Toy(*NAMES), held_out=held_out,
        spec=spec(epochs=6, batch_size=2),
    )  # fmt: skip
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert {len(curve) for curve in history.curves.values()} == {6}
    for task in NAMES:
        assert all(map(math.isfinite, history.curves[f"weight.{task}"]))
        assert all(map(math.isfinite, history.curves[f"loss.{task}"]))


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_task_without_any_label_is_a_training_without_it(frames, pack, name) -> None:
    labelled = torch.ones(FRAMES, len(NAMES), dtype=torch.bool)
    labelled[:, 1] = False
    told = []
    ours, history = trained(
        PartlyLabelled(frames, labelled), name, on_epoch=lambda n, values: told.append(values)
    )
    left = ("depth", "edges")
    theirs = plain_model()
    del theirs.heads["normals"]
    frames_of_two = toy_frames(pack, *left)
    expected = train(
        theirs, frames_of_two, toy_tasks(*left), held_out=frames_of_two,
        weighting=build_weighting(name, {task: OMEGA[task] for task in left}, seed=3),
        spec=spec(epochs=3, batch_size=BATCH, optimizer="sgd", augment=PLAIN),
    )  # fmt: skip
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor, rtol=1e-3, atol=1e-5)
    start = plain_model().heads["normals"].weight
    assert torch.equal(ours.heads["normals"].weight, start)  # decay and momentum left it alone
    assert all("loss.normals" not in values for values in told)
    assert "loss.normals" not in history.curves
    for task in left:
        for kind in ("loss", "weight"):
            key = f"{kind}.{task}"
            assert history.curves[key] == pytest.approx(expected.curves[key], rel=1e-3)


def test_epochs_mean_over_labelled_frames(frames) -> None:
    data = PartlyLabelled(frames, presence(4))
    own = spec(
        epochs=1, batch_size=BATCH, optimizer="sgd", lr=1e-12, augment=AugmentSpec(flip=False)
    )
    model, history = trained(data, spec=own)
    generator = torch.Generator().manual_seed(3)
    sums, counts = torch.zeros(3), torch.zeros(3)
    order = torch.randperm(FRAMES, generator=generator)[: FRAMES // BATCH * BATCH]
    batch = data.batch(order)
    with torch.no_grad():
        outputs = model(normalize(batch["image"]))
    for t, (name, task) in enumerate(toy_tasks(*NAMES).items()):
        for i in range(len(order)):
            if batch[LABELLED][i, t]:
                sums[t] += task.loss(outputs[name][i : i + 1].float(), batch[name][i : i + 1])
                counts[t] += 1
    assert len(set(counts.tolist())) > 1
    for name, mean in zip(NAMES, (sums / counts).tolist(), strict=True):
        assert history.curves[f"loss.{name}"] == [pytest.approx(mean, rel=1e-5)]


def test_an_epoch_without_labels_of_a_task_is_a_gap_in_its_curve(frames) -> None:
    # 17 frames in batches of 4 leave one out; only one frame has labels of depth.
    labelled = torch.ones(FRAMES, len(NAMES), dtype=torch.bool)
    labelled[:, 0] = False
    labelled[5, 0] = True
    told = []
    _, history = trained(
        PartlyLabelled(frames, labelled), on_epoch=lambda n, values: told.append(values),
        spec=spec(epochs=20, batch_size=6),
    )  # fmt: skip
    curve = history.curves["loss.depth"]
    gaps = [math.isnan(value) for value in curve]
    assert len(curve) == 20
    assert 0 < sum(gaps) < 20
    assert ["loss.depth" not in values for values in told] == gaps
    assert all(math.isfinite(value) for values in told for value in values.values())
    assert not any(map(math.isnan, history.curves["loss.edges"]))


def test_without_any_label_only_the_penalty_moves_the_network(frames) -> None:
    data = PartlyLabelled(frames, torch.zeros(FRAMES, len(NAMES), dtype=torch.bool))
    model, start = Toy(*NAMES), Toy(*NAMES)
    _, history = trained(
        data, model=model, penalty=lambda image, outputs: (model.gate - 1).square().sum()
    )
    moved = {
        key for key, p in model.named_parameters() if not torch.equal(p, start.get_parameter(key))
    }
    assert moved == {"gate"}
    assert set(history.curves) == {"lr", *(f"weight.{name}" for name in NAMES)}
    _, without = trained(data, "pcgrad", model=Toy(*NAMES))
    assert without.epochs == 3


@pytest.mark.slow("trains")
def test_an_absent_tasks_loss_never_ends_the_training(frames) -> None:
    labelled = torch.ones(FRAMES, len(NAMES), dtype=torch.bool)
    labelled[:, 1] = False
    for name in WEIGHTINGS:
        model = plain_model()
        nn.init.constant_(model.heads["normals"].bias, math.nan)
        trained(PartlyLabelled(frames, labelled), name, model=model)
        assert model.body[0].weight.isfinite().all()


def in_parts(monkeypatch, parts: int) -> None:
    monkeypatch.setattr(trainer, "Progress", partial(trainer.Progress, parts=parts))


def assert_alike(found, expected) -> None:
    (model, curves), (other, others) = found, expected
    for key in others:
        assert curves[key] == pytest.approx(others[key], rel=1e-4, nan_ok=True), key
    for key, tensor in other.items():
        torch.testing.assert_close(model[key], tensor, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", BY_THE_BATCH)
def test_micro_batches_are_the_batch(frames, monkeypatch, name) -> None:
    data = PartlyLabelled(frames, presence(3))
    model, history = trained(data, name)
    in_parts(monkeypatch, 2)
    parted, again = trained(data, name)
    assert again.curves.pop("micro_batch") == [2.0] * 3
    assert_alike((parted.state_dict(), again.curves), (model.state_dict(), history.curves))


def in_two(ranks: Ranks, pack):
    """Name of a weighting -> (state, curves) of a training on two processes."""
    data = PartlyLabelled(toy_frames(pack, *NAMES), presence(3))
    held_out = PartlyLabelled(toy_frames(pack, *NAMES), presence(8, share=0.2))
    found = {}
    for name in BY_THE_BATCH:
        model, history = trained(data, name, held_out=held_out, ranks=ranks)
        found[name] = {k: t.numpy() for k, t in model.state_dict().items()}, history.curves
    for name in sorted({*WEIGHTINGS} - {*BY_THE_BATCH}):
        model, history = trained(data, name, ranks=ranks)
        assert all(t.isfinite().all() for t in model.state_dict().values())
        means = [p.detach().clone() for p in model.parameters()]
        ranks.average(means)
        for p, mean in zip(model.parameters(), means, strict=True):
            torch.testing.assert_close(p.detach(), mean)
    return found


@pytest.fixture(scope="module")
def together(pack):
    return launch(2, in_two, pack)


@pytest.mark.slow("processes")
@pytest.mark.parametrize("name", BY_THE_BATCH)
def test_two_processes_are_one(pack, frames, together, name) -> None:
    data = PartlyLabelled(frames, presence(3))
    held_out = PartlyLabelled(frames, presence(8, share=0.2))
    # A process has no label of a task of which the other has some, and both lack some task.
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(3))[:16]
    halves = data.labelled[order].view(4, 2, 2, 3).any(2)
    assert (halves[:, 0] != halves[:, 1]).any()
    assert not halves.any(1).all()
    model, history = trained(data, name, held_out=held_out)
    state, curves = together[name]
    state = {key: torch.from_numpy(array) for key, array in state.items()}
    assert_alike((state, curves), (model.state_dict(), history.curves))


STATEFUL = (
    "uniform", "uncertainty", "imtl_l", "rlw", "dwa", "famo", "auto_lambda", "gradvac",
    "nash_mtl", "pcgrad", "graddrop",
)  # fmt: skip


@pytest.mark.slow("trains")
@pytest.mark.parametrize("name", STATEFUL)
def test_stopped_at_any_step_it_ends_the_same(frames, tmp_path, name) -> None:
    data = PartlyLabelled(frames, presence(4))
    whole, history = trained(data, name, model=Toy(*NAMES))
    for step in range(1, 12, 2):
        begun: list[float] = []
        folder = tmp_path / str(step)
        stopped = Checkpoints(
            folder, identity="x", stop=lambda begun=begun, step=step: len(begun) == step
        )
        with pytest.raises(Preempted):
            trained(
                data, name, model=Toy(*NAMES), before_step=begun.append,
                checkpoints=PhaseCheckpoints(stopped, "p", {}),
            )  # fmt: skip
        checkpoints = Checkpoints(folder, identity="x")
        phase = PhaseCheckpoints(checkpoints, "p", {}, checkpoints.newest())
        resumed, again = trained(data, name, model=Toy(*NAMES), checkpoints=phase)
        assert same_state(whole, resumed)
        assert str(again.curves) == str(history.curves)  # NaN are alike


def test_a_checkpoint_of_old_goes_on(frames, tmp_path) -> None:
    whole, history = trained(frames, model=Toy(*NAMES))
    stopped = Checkpoints(tmp_path / "x", identity="x", stop=lambda: True)
    with pytest.raises(Preempted):
        trained(frames, model=Toy(*NAMES), checkpoints=PhaseCheckpoints(stopped, "p", {}))
    checkpoints = Checkpoints(tmp_path / "x", identity="x")
    found = checkpoints.newest()
    del found.state["loop"]["progress"]["unlabelled"]
    resumed, again = trained(
        frames, model=Toy(*NAMES), checkpoints=PhaseCheckpoints(checkpoints, "p", {}, found)
    )
    assert same_state(whole, resumed)
    assert again.curves == history.curves


def test_shares_of_labelled_frames_by_hand() -> None:
    labelled = torch.tensor([[1, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.bool)
    batch = {"image": torch.zeros(4, 3, 2, 2), LABELLED: labelled}
    counts = count_labels(batch, processes=2)
    assert counts.present.tolist() == [True, False, True]
    first, second = ({k: t.chunk(2)[i] for k, t in batch.items()} for i in range(2))
    assert counts.shares(first).tolist() == [2 * 2 / 3, 0, 2 * 1 / 2]
    assert counts.shares(second).tolist() == [2 * 1 / 3, 0, 2 * 1 / 2]
    assert count_labels({"image": batch["image"]}) is None
    assert count_labels({**batch, LABELLED: torch.ones(4, 3, dtype=torch.bool)}) is None


@pytest.mark.parametrize("name", toy_tasks())
def test_metrics_leave_out_frames_without_labels(pack, name) -> None:
    frames = toy_frames(pack, name)
    labelled = torch.zeros(FRAMES, 1, dtype=torch.bool)
    labelled[[1, 2, 3, 9]] = True  # batches of two, of which many have none
    model, tasks = Toy(name), toy_tasks(name)
    found = evaluate(model, PartlyLabelled(frames, labelled), tasks, runtime=CPU, batch_size=2)
    some = toy_frames(pack, name, indices=[1, 2, 3, 9])
    expected = evaluate(model, some, tasks, runtime=CPU, batch_size=4)
    assert math.isfinite(expected[name])
    assert found == pytest.approx(expected, rel=1e-5)
    none = PartlyLabelled(frames, torch.zeros(FRAMES, 1, dtype=torch.bool))
    assert math.isnan(evaluate(model, none, tasks, runtime=CPU, batch_size=2)[name])


def test_statistics_are_recomputed_on_all_images(frames) -> None:
    none = PartlyLabelled(frames, torch.zeros(FRAMES, len(NAMES), dtype=torch.bool))
    none.in_order = lambda size, most=None: PartlyLabelled.in_order(none, size)
    models = [Toy(*NAMES), Toy(*NAMES)]
    for model, data in zip(models, (frames, none), strict=True):
        recompute_statistics(model, data, runtime=CPU, batch_size=4)
    assert same_state(*models)
    assert np.any(models[0].body[1].running_mean.numpy())


def test_steps_with_partial_labels_are_not_recorded() -> None:
    taken = []

    def learn(part, share, shares=None):
        taken.append((share, shares))
        return torch.zeros(1)

    step = CudaGraphStep(learn, [], tell=pytest.fail)
    part = {"image": torch.zeros(2, 3, 2, 2), LABELLED: torch.tensor([[True], [False]])}
    shares = torch.ones(1)
    for _ in range(6):  # from the third on it would be watched, then recorded, on a device
        step(part, 1.0, shares)
    assert taken == [(1.0, shares)] * 6
