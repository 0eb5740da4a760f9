"""The loop: the same to the bit, each parameter at its own rate, and loud where it must stop."""

import gc
import math
import weakref

import pytest
import torch
from torch import nn

from gatesearch.training import (
    History,
    Trainer,
    TrainingData,
    TrainingError,
    evaluate,
    predict,
    recompute_statistics,
)
from gatesearch.training import runtime as runtimes
from gatesearch.training.runtime import measure_memory_format, resolve_runtime
from gatesearch.training.split_data import normalize
from tests.training.toys import (
    CPU,
    TASK_NAMES,
    Toy,
    same_state,
    spec,
    toy_frames,
    toy_pack,
    toy_tasks,
    train,
    two_groups,
    uniform,
)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy"))


def trained(frames, *, seed=3, model=None, names=(), **options):
    own = {k: options.pop(k) for k in list(options) if k in ("groups", "penalty", "before_step",
           "observe", "halt", "on_epoch", "span")}  # fmt: skip
    model = model or Toy(*names)
    history = train(model, frames, toy_tasks(*names), spec=spec(**options), seed=seed, **own)
    return model, history


def test_a_seed_gives_the_same_weights_to_the_bit(frames) -> None:
    one, first = trained(frames, seed=3)
    torch.rand(17)
    again, second = trained(frames, seed=3)
    other, _ = trained(frames, seed=4)
    assert same_state(one, again)
    assert first.curves == second.curves
    assert not same_state(one, other)


def test_history(frames) -> None:
    seen = []
    _, history = trained(
        frames,
        epochs=3,
        observe=lambda n: {"extra": 7.0},
        on_epoch=lambda n, v: seen.append((n, v)),
    )
    # 11 frames in whole batches of 4
    assert (history.epochs, history.images) == (3, 3 * 8)
    expected = {f"{kind}.{task}" for kind in ("loss", "weight") for task in TASK_NAMES}
    assert {name: len(curve) for name, curve in history.curves.items()} == dict.fromkeys(
        expected | {"lr", "extra"}, 3
    )
    assert [n for n, _ in seen] == [1, 2, 3]
    assert [v["lr"] for _, v in seen] == history.curves["lr"]


def test_poly_schedule_at_every_epoch(frames) -> None:
    # 2 steps an epoch, 8 in all: lr (1 - step / 8) ^ 0.9
    _, history = trained(frames, epochs=4, lr=0.01)
    expected = [0.01 * (1 - s / 8) ** 0.9 for s in (2, 4, 6, 8)]
    assert history.curves["lr"] == pytest.approx(expected)
    _, history = trained(frames, epochs=4, lr=0.01, schedule="constant")
    assert history.curves["lr"] == [0.01] * 4


def test_phases_of_one_schedule(frames) -> None:
    _, whole = trained(frames, epochs=4)
    seen: dict[str, list] = {"epochs": [], "shares": []}
    model, first = trained(frames, epochs=4, span=(0, 1))
    _, later = trained(
        frames, model=model, epochs=4, span=(1, 4), before_step=seen["shares"].append,
        on_epoch=lambda n, v: seen["epochs"].append(n), observe=lambda n: {"extra": 7.0},
    )  # fmt: skip
    assert first.curves["loss.depth"] == whole.curves["loss.depth"][:1]
    assert seen["epochs"] == [2, 3, 4]
    assert seen["shares"] == [i / 6 for i in range(6)]  # two steps an epoch
    first.follow(later)
    assert (first.epochs, first.images) == (whole.epochs, whole.images)
    assert first.curves["lr"] == pytest.approx(whole.curves["lr"])
    assert math.isnan(first.curves["extra"][0])
    assert first.curves["extra"][1:] == [7.0] * 3


class Line(nn.Module):
    """Parameters whose gradient is 1 everywhere, whatever the image; their loss does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(2, 2)
        self.mix = nn.Parameter(torch.empty(2, 2))
        self.alpha = nn.ParameterDict({"one": torch.empty(2, 2)})
        for parameter in self.parameters():
            nn.init.constant_(parameter, 10.0)

    def forward(self, image):
        return {"depth": image[:, :1] * 0}

    def pull(self):
        return torch.stack([parameter.sum() for parameter in self.parameters()]).sum()


@pytest.mark.parametrize("schedule", ["poly", "constant"])
def test_gates_keep_their_own_rate_through_ten_steps(frames, schedule) -> None:
    model = Line()
    trained(
        frames,
        model=model,
        names=("depth",),
        groups=two_groups(model, "alpha.", rate=10.0),
        penalty=lambda image, outputs: model.pull(),
        epochs=5,
        optimizer="sgd",
        momentum=0.0,
        weight_decay=0.0,
        lr=0.01,
        schedule=schedule,
    )
    share = 1 if schedule == "constant" else sum((1 - s / 10) ** 0.9 for s in range(10)) / 10
    assert model.dense.weight.unique().item() == pytest.approx(10 - 10 * 0.01 * share, rel=1e-6)
    assert model.dense.bias.unique().item() == pytest.approx(10 - 10 * 0.01 * share, rel=1e-6)
    assert model.alpha["one"].unique().item() == pytest.approx(10 - 10 * 0.1 * share, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_only_weights_decay(frames, optimizer) -> None:
    model = Line()
    trained(
        frames,
        model=model,
        names=("depth",),
        groups=two_groups(model, "alpha.", rate=10.0),
        epochs=1,
        optimizer=optimizer,
        penalty=lambda image, outputs: model.pull() * 0,
        weight_decay=0.5,
        lr=0.01,
        schedule="constant",
    )
    assert model.dense.weight.max() < 10
    for kept in (model.dense.bias, model.mix, model.alpha["one"]):
        assert kept.unique().item() == 10
    if optimizer == "adamw":  # decoupled: two steps of 1 - lr decay
        assert model.dense.weight.unique().item() == pytest.approx(10 * (1 - 0.005) ** 2)


def test_norms_and_biases_do_not_decay(frames) -> None:
    # one step, with and without decay
    plain, decayed = (
        trained(frames, names=("depth",), epochs=1, batch_size=8, optimizer="sgd", weight_decay=d)[
            0
        ]
        for d in (0.0, 0.5)
    )
    differ = {
        n for n, p in plain.named_parameters() if not torch.equal(p, decayed.get_parameter(n))
    }
    # `gate` starts at zero, of which decay takes nothing
    assert differ == {"body.0.weight", "heads.depth.weight"}


def test_weights_of_the_losses_and_zero_of_them(frames) -> None:
    model, start = Toy(), Toy().state_dict()
    weights = {"semseg": 0.0, "depth": 1.0, "normals": 0.0, "edges": 2.0}
    own = spec(weight_decay=0.0, optimizer="sgd")
    train(model, frames, toy_tasks(), weighting=uniform(**weights), spec=own)
    for task, weight in weights.items():
        moved = not torch.equal(model.heads[task].weight, start[f"heads.{task}.weight"])
        assert moved == (weight > 0)


def test_a_phase_ends_where_it_is_halted(frames) -> None:
    asked = []

    def halt() -> bool:
        asked.append(len(seen))
        return len(asked) == 2

    seen = []
    _, history = trained(frames, epochs=5, halt=halt, on_epoch=lambda n, v: seen.append(n))
    assert (history.epochs, history.images) == (2, 16)
    assert asked == [1, 2]  # after the values of the epoch are known
    _, whole = trained(frames, epochs=5)
    assert history.curves["loss.depth"] == whole.curves["loss.depth"][:2]


def test_a_trainer_that_is_done_frees_its_memory_at_once(frames) -> None:
    trainer = Trainer(
        Toy(), TrainingData(frames, None, toy_tasks()), weighting=uniform(*toy_tasks()),
        spec=spec(epochs=1), runtime=CPU, seed=0,
    )  # fmt: skip
    trainer.run()
    kept = [weakref.ref(trainer), weakref.ref(trainer.optimizer)]
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in kept] == [None, None]
    finally:
        gc.enable()


def test_an_empty_span_trains_nothing(frames) -> None:
    before = torch.get_rng_state()
    model, history = trained(frames, epochs=4, span=(2, 2), on_epoch=pytest.fail)
    assert same_state(model, Toy())
    assert history == History()
    assert torch.equal(torch.get_rng_state(), before)


def test_two_optimizers_in_one_training(frames) -> None:
    start, model = Toy("depth"), Toy("depth")
    groups = two_groups(model, "heads", optimizer="sgd", rate=0.5)
    trained(frames, model=model, names=("depth",), groups=groups, epochs=1, batch_size=8)
    # One step of Adam moves each entry that has a gradient by its rate, one of SGD by the gradient.
    moved = (model.body[0].weight - start.body[0].weight).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-2), rtol=1e-3, atol=0)
    head, before = model.heads["depth"].weight, start.heads["depth"].weight
    expected = before - 0.5 * 1e-2 * (head.grad + 1e-4 * before)
    torch.testing.assert_close(head.detach(), expected.detach())


def test_a_loss_that_is_no_number_names_task_epoch_and_step(frames) -> None:
    class Bursting(Toy):
        calls = 0

        def forward(self, image):
            outputs = super().forward(image)
            self.calls += 1
            if self.calls == 4:  # the second step of the second epoch
                outputs["normals"] = outputs["normals"] * float("nan")
            return outputs

    with pytest.raises(TrainingError, match=r"loss of normals became nan in epoch 2, step 4;.*lr"):
        trained(frames, model=Bursting())


def test_an_absurd_rate_ends_in_an_error_not_in_figures(frames) -> None:
    with pytest.raises(TrainingError, match=r"became (nan|inf) in epoch \d, step \d"):
        trained(frames, lr=1e30, epochs=4)


def test_fewer_frames_than_a_batch(frames) -> None:
    with pytest.raises(TrainingError, match="batch_size is 12 but only 11 frames"):
        trained(frames, batch_size=12)


def test_the_share_of_training_done(frames) -> None:
    shares = []
    trained(frames, epochs=2, before_step=shares.append)
    assert shares == [0, 0.25, 0.5, 0.75]


def test_training_learns(frames) -> None:
    _, history = trained(frames, epochs=40, lr=3e-2, augment={"flip": False})
    for name, curve in history.curves.items():
        if name.startswith("loss."):
            assert curve[-1] < curve[0]


class Normed(nn.Module):
    """A norm behind the image itself, so that its statistics are those of the pixels."""

    def __init__(self, momentum: float | None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=momentum)
        self.drop = nn.Dropout(0.5)
        self.behind = nn.BatchNorm2d(3)

    def forward(self, image):
        return {"depth": self.behind(self.drop(self.norm(image)))[:, :1]}


def test_recomputed_statistics_are_those_of_the_population(frames) -> None:
    model = Normed(momentum=0.03)
    model.norm.running_mean.fill_(1e3)
    model.train()
    recompute_statistics(model, frames, runtime=CPU, batch_size=11)
    image = normalize(next(frames.in_order(11))["image"])
    mean, var = image.mean((0, 2, 3)), image.var((0, 2, 3))
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, var)
    # layers see their input as in training, without dropout: here zero mean and unit deviation
    torch.testing.assert_close(model.behind.running_mean, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(model.behind.running_var, torch.ones(3), atol=0.01, rtol=0)
    assert (model.norm.momentum, model.behind.momentum) == (0.03, 0.1)
    assert not any(module.training for module in model.modules())


def test_recomputed_statistics_are_the_mean_over_batches(frames) -> None:
    model = Normed(momentum=0.1)
    recompute_statistics(model, frames, runtime=CPU, batch_size=5)
    # 5, 5 and a lonely frame, which has no deviation to speak of and is left out
    batches = [normalize(b["image"]) for b in frames.in_order(5)][:2]
    expected = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(model.norm.running_var, expected)
    assert model.norm.num_batches_tracked == 2


def test_statistics_are_recomputed_on_what_training_saw(frames) -> None:
    model = Normed(momentum=0.1)
    drawn = [torch.rand(5, 3, 4, 4) * 255 for _ in range(2)]
    left = iter(drawn)
    recompute_statistics(
        model, frames, runtime=CPU, batch_size=5, max_frames=10, augmented=lambda batch: next(left)
    )
    expected = torch.stack([normalize(image).mean((0, 2, 3)) for image in drawn]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, expected)


def test_evaluate_is_the_meter_over_all_frames(frames) -> None:
    model = Toy(dropout=0.9)
    model.train()
    tasks = toy_tasks()
    found = [evaluate(model, frames, tasks, runtime=CPU, batch_size=n) for n in (3, 11)]
    assert not model.training
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    batch = next(frames.in_order(11))
    with torch.no_grad():
        outputs = model(normalize(batch["image"]))
    # by hand, without the meters
    known = batch["depth"] > 0
    error = (outputs["depth"][:, 0] - batch["depth"])[known]
    assert found[0]["depth"] == pytest.approx(error.square().mean().sqrt().item(), rel=1e-5)
    cosine = nn.functional.cosine_similarity(outputs["normals"], batch["normals"], dim=1)
    assert found[0]["normals"] == pytest.approx(cosine.acos().rad2deg().mean().item(), rel=1e-4)
    chosen, truth = outputs["semseg"].argmax(1), batch["semseg"]
    ious = []
    for c in range(4):
        ours, theirs = (chosen == c) & (truth != 255), truth == c
        ious.append(((ours & theirs).sum() / (ours | theirs).sum()).item())
    assert found[0]["semseg"] == pytest.approx(100 * sum(ious) / 4, rel=1e-5)
    drawn = predict(model, batch["image"], tasks, runtime=CPU)
    assert torch.equal(drawn["semseg"], chosen.to(torch.uint8))


def test_a_task_without_one_label_has_no_figure(frames, tmp_path) -> None:
    class Blank:
        def in_order(self, size):
            for batch in frames.in_order(size):
                yield {**batch, "depth": batch["depth"] * 0}

    found = evaluate(Toy(), Blank(), toy_tasks(), runtime=CPU, batch_size=4)
    assert math.isnan(found.pop("depth"))
    assert all(map(math.isfinite, found.values()))


def test_bf16_keeps_weights_and_losses_in_fp32(frames) -> None:
    runtime = resolve_runtime("bf16", "nhwc")
    model = runtime.place(Toy())
    assert (runtime.precision, runtime.memory_format) == ("bf16", "nhwc")
    train(model, frames, toy_tasks(), runtime=runtime)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    found = evaluate(model, frames, toy_tasks(), runtime=runtime, batch_size=4)
    plain = evaluate(model, frames, toy_tasks(), runtime=CPU, batch_size=4)
    assert found["depth"] == pytest.approx(plain["depth"], rel=0.02)


def test_what_is_asked_of_a_runtime_is_given() -> None:
    assert resolve_runtime("fp32", "nchw").precision == "fp32"
    assert resolve_runtime("fp32", "nchw").memory_format == "nchw"
    assert resolve_runtime("auto", "auto").memory_format == "nhwc"
    state = torch.random.get_rng_state()
    measured = measure_memory_format(Toy, (2, 3, 8, 8), resolve_runtime("fp32", "auto"))
    assert (measured.device, measured.precision) == (resolve_runtime("fp32", "auto").device, "fp32")
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("nchw", "chosen"),
    [
        ([9.0, 1.0, 1.0, 1.0, 1.0], "nchw"),  # the first lap does not count
        ([1.0, 1.0, 1.0, 3.0, 1.0], "nhwc"),  # faster in three of four laps only
        ([1.0, 3.0, 3.0, 3.0, 3.0], "nhwc"),
    ],
)
def test_the_memory_format_that_is_clearly_faster_is_chosen(monkeypatch, nchw, chosen) -> None:
    laps = iter(nchw)
    monkeypatch.setattr(
        runtimes, "_step_seconds",
        lambda model, image, runtime: next(laps) if runtime.memory_format == "nchw" else 2.0,
    )  # fmt: skip
    measured = measure_memory_format(Toy, (2, 3, 8, 8), resolve_runtime("fp32", "auto"))
    assert measured.memory_format == chosen
