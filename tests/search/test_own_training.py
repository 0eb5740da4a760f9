"""`gs.search`: trials trained by a user's function, in a store like any other."""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

import gatesearch as gs
from gatesearch.cli import main
from gatesearch.errors import DataError, StudyRefusedError, UsageError
from gatesearch.methods.cross_stitch import CrossStitchNet
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.search.own_trial import Trial
from gatesearch.search.run import run
from gatesearch.store.opening import read_store
from gatesearch.training import TrainingError
from tests.library.toys import Pooled, assert_same
from tests.search.tiny import ignore

SHAPE = (1, 3, 32, 32)
IMAGE = torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
MODEL = {"width": 0.05, "output_stride": 32, "head": "light", "head_channels": 4}
CHANNELS = gs.encoder("resnet18", width=0.05, output_stride=32).channels


def study_of(**changes: object) -> gs.Study:
    definition = {
        "name": "own",
        "methods": ["mtl"],
        "protocol": {"size": (32, 32)},
        "tasks": {"mask": {"kind": "saliency"}, "far": {"kind": "depth"}},
        "data": {"dataset": "mine", "validation": 4},
        "model": MODEL,
        "training": {"epochs": 2},
        "search": {"startup": 1},
    }
    return gs.Study({**definition, **changes})


def heads() -> dict[str, nn.Module]:
    return {"mask": nn.Conv2d(CHANNELS, 1, 1), "far": Pooled(CHANNELS)}


class Trainer:
    """A training function that notes what it was given; two steps, metrics by the network."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self.outputs: dict[str, Mapping[str, torch.Tensor]] = {}

    def __call__(self, trial: Trial) -> dict[str, float]:
        self.trials.append(trial)
        optimizer = torch.optim.AdamW(trial.param_groups(lr=1e-3))
        for step in range(2):
            trial.anneal(step / 2)
            output = trial.network.train()(IMAGE)
            loss = sum(y.square().mean() for y in output.values()) + trial.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        network = trial.prune()
        assert not network.training
        with torch.no_grad():
            self.outputs[trial.name] = network(IMAGE)
        return {"mask": 50.0 + len(self.trials), "far": torch.tensor(1.5)}

    @property
    def names(self) -> list[str]:
        return [trial.name for trial in self.trials]


@pytest.mark.slow("trains")
def test_a_search_trains_baselines_and_trials_once(tmp_path: Path) -> None:
    train, out = Trainer(), tmp_path / "out"
    study = study_of()
    options = {"budgets": "1.3xMTL", "heads": heads, "out": out, "emit": ignore}
    record = gs.search(study, train, n_trials=2, **options)
    assert train.names == ["stl", "mtl", "trial 0", "trial 1"]
    kinds = [type(trial.network) for trial in train.trials]
    assert kinds == [SingleTaskNets, MultiTaskNet, gs.InterroGate, gs.InterroGate]
    stl, mtl = record.baselines
    assert stl.metrics == {"validation": {"mask": 51.0, "far": 1.5}}
    assert mtl.metrics == {"validation": {"mask": 52.0, "far": 1.5}}
    for trial, asked in zip(record.trials, train.trials[2:], strict=True):
        assert trial.state == "complete"
        assert dict(trial.params) == asked.params
        assert set(asked.params) == {"lambda_s", "tau.mask", "tau.far"}
        assert asked.budgets == ("1.3xMTL",) == (trial.budget,)
        assert 0.98 * 1.3 * mtl.gflops <= trial.gflops <= 1.3 * mtl.gflops
        assert trial.sharing.keys() == study.tasks.keys()
        network = gs.load(out / "trials" / f"{trial.trial:04d}" / "model", heads=heads())
        with torch.no_grad():
            assert_same(network(IMAGE), train.outputs[trial.name])
        assert gs.count_macs(network, SHAPE, cross_check=False).gflops == trial.gflops
    assert read_store(out) == record
    # the same call trains nothing, and one more trial is drawn beside the others
    again = gs.search(study, train, n_trials=2, **options)
    assert (again, len(train.trials)) == (record, 4)
    more = gs.search(study, train, n_trials=3, **options)
    assert train.names[4:] == ["trial 2"]
    assert more.trials[:2] == record.trials


@pytest.mark.slow("trains")
def test_trials_are_drawn_as_by_the_command(tmp_path: Path, data: Path) -> None:
    """The same study and seed try the same λ and τ, whoever trains."""
    tasks = {"semseg": {"kind": "semseg", "classes": 8}, "depth": {"kind": "depth"}}
    frames = {"dataset": "scenes", "train_frames": 10, "test_frames": 2, "validation": 4}
    training = {"epochs": 1, "batch_size": 3, "precision": "fp32", "memory_format": "nchw"}
    study = study_of(tasks=tasks, data=frames, training=training, protocol={"size": (16, 16)})
    engine = run(study, n_trials=2, out=tmp_path / "run", data=data, emit=ignore)

    def train(trial: Trial) -> dict[str, float]:
        return dict.fromkeys(("semseg", "depth"), len(trial.prune().state_dict()))

    ours = gs.search(study, train, n_trials=2, out=tmp_path / "own", emit=ignore)
    assert dict(ours.trials[0].params) == dict(engine.trials[0].params)
    # and neither goes on with the store of the other
    with pytest.raises(StudyRefusedError, match="was made on other data"):
        gs.search(study, train, n_trials=2, out=tmp_path / "run", emit=ignore)
    with pytest.raises(StudyRefusedError, match="was made on other data"):
        run(study, n_trials=2, out=tmp_path / "own", data=data, emit=ignore)
    assert read_store(tmp_path / "run") == engine
    assert read_store(tmp_path / "own") == ours


@pytest.mark.slow("trains")
def test_an_interrupted_trial_goes_on_in_its_folder(tmp_path: Path) -> None:
    out, begun = tmp_path / "out", []

    def train(trial: Trial) -> dict[str, float]:
        begun.append((trial.name, dict(trial.params), trial.folder))
        checkpoint = trial.folder / "checkpoint.pt"
        if trial.method == "interrogate" and not checkpoint.exists():
            torch.save(trial.network.state_dict(), checkpoint)
            raise KeyboardInterrupt
        trial.prune()
        return {"mask": 60, "far": 1}

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gs.search(study_of(), train, n_trials=2, out=out, emit=ignore)
    record = gs.search(study_of(), train, n_trials=2, out=out, emit=ignore)
    names = [name for name, _, _ in begun]
    assert names == ["stl", "mtl", "trial 0", "trial 0", "trial 1", "trial 1"]
    assert begun[2] == begun[3]
    assert begun[2][2].parent == out / "trials" / "0000"
    assert [trial.state for trial in record.trials] == ["complete", "complete"]
    assert [trial.attempts for trial in record.trials] == [2, 2]
    uninterrupted = gs.search(
        study_of(), train_at_once, n_trials=2, out=tmp_path / "b", emit=ignore
    )
    assert [t.params for t in uninterrupted.trials] == [t.params for t in record.trials]


def fail(trial: Trial) -> dict[str, float]:
    raise TrainingError("no")


def train_at_once(trial: Trial) -> dict[str, float]:
    trial.prune()
    return {"mask": 60, "far": 1}


@pytest.mark.slow("trains")
def test_failures_are_kept_and_errors_end_the_search(tmp_path: Path) -> None:
    def train(trial: Trial) -> dict[str, float]:
        trial.prune()
        if trial.name == "trial 0":
            raise TrainingError("the loss is not a number")
        if trial.name == "trial 1":
            return {"mask": float("nan"), "far": 1}
        if trial.name == "trial 2":
            raise ZeroDivisionError
        return {"mask": 60, "far": 1}

    out = tmp_path / "out"
    with pytest.raises(ZeroDivisionError):
        gs.search(study_of(), train, n_trials=3, out=out, emit=ignore)
    trials = read_store(out).trials
    assert [(t.state, t.reason) for t in trials[:1]] == [("failed", "the loss is not a number")]
    assert trials[1].state == "failed"
    assert "Δ_MTL is undefined" in trials[1].reason
    record = gs.search(study_of(), train_at_once, n_trials=3, out=out, emit=ignore)
    assert [t.state for t in record.trials] == ["failed", "failed", "complete"]
    with pytest.raises(TrainingError, match="stl failed"):
        gs.search(study_of(), fail, n_trials=1, out=tmp_path / "other", emit=ignore)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "found None"),
        ({"mask": 1.0}, "{'mask': number, 'far': number}, found {'mask': 1.0}"),
        ({"mask": 1.0, "far": 2.0, "more": 3.0}, "found {'mask'"),
        ({"mask": 1.0, "far": "good"}, "found {'mask'"),
        ({"mask": 1.0, "far": torch.ones(2)}, "found {'mask'"),
    ],
)
@pytest.mark.slow("trains")
def test_what_is_no_metric_is_refused(tmp_path: Path, returned: object, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        gs.search(study_of(), lambda trial: returned, n_trials=0, out=tmp_path / "o", emit=ignore)
    assert "must return the metric of each task on the validation part" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.slow("trains")
def test_a_trial_that_is_not_pruned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the network that trial\.prune\(\) returns"):
        gs.search(study_of(), lambda trial: {"mask": 60, "far": 1}, n_trials=1, out=tmp_path / "o",
                  emit=ignore)  # fmt: skip


def never(trial: Trial) -> dict[str, float]:
    raise AssertionError("nothing must be trained")


same_heads = heads()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"tune": ["one_shot"]}, {}, "found tune = ['one_shot']"),
        ({"weightings": ["uniform", "pcgrad"]}, {}, "found weightings = ['uniform', 'pcgrad']"),
        ({"search": {"weighting": ["gls"]}}, {}, "found search.weighting = ['gls']"),
        ({"search": {"stop": "median"}}, {}, "found search.stop = 'median'"),
        ({"interrogate": {"warmup": 0.5}}, {}, "found interrogate.warmup = 0.5"),
        ({"interrogate": {"finetune": 0.25}}, {}, "found interrogate.finetune = 0.25"),
        ({"interrogate": {"estimater": "ste"}}, {}, "did you mean 'estimator'?"),
        ({}, {"budgets": "0.5xMTL"}, "out of reach"),
        ({}, {"budgets": ["12ms"]}, "bounds FLOPs or parameters, found 12ms"),
        ({}, {"budgets": "much"}, "a budget must be a number with a unit"),
        ({}, {"budgets": 1.3}, "budgets must be a text or a list of texts"),
        ({}, {"n_trials": -1}, "n_trials=-1"),
        ({}, {"n_trials": 2.5}, "n_trials=2.5"),
        ({}, {"train": None}, "found None and n_trials=None"),
        ({"search": {"regulariser": ["flops"]}}, {}, "bounds cost by a budget"),
        ({}, {"heads": heads()}, "must be a function without arguments"),
        ({}, {"heads": lambda: same_heads}, "makes new modules each time"),
        ({}, {"heads": lambda: {"mask": nn.Conv2d(CHANNELS, 1, 1)}}, "found mask"),
        ({}, {"heads": lambda: {"mask": torch.relu, "far": lambda x: x * float(x.sum())}},
         "must run on shapes alone"),
        ({}, {"heads": lambda: {"mask": torch.relu, "far": nn.Conv2d(3, 1, 1)}}, "be counted on"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_before_anything(tmp_path, changes, options, said) -> None:
    given = {"train": never, "out": tmp_path / "out", "emit": ignore, **options}
    with pytest.raises(UsageError) as caught:
        gs.search(study_of(**changes), **given)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file"):
        gs.search(study_of(), never, out=tmp_path / "file" / "out", emit=ignore)


def test_a_study_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="search takes a study, found dict"):
        gs.search({"name": "own"}, never, out=tmp_path / "out")


@pytest.mark.slow("trains")
def test_other_baselines_start_from_the_single_task_networks(tmp_path: Path) -> None:
    """Cross-stitch does by default (`start = "stl"`), also with heads of one's own."""
    seen = {}

    def train(trial: Trial) -> dict[str, float]:
        seen[trial.method] = trial.network
        if trial.method == "stl":
            with torch.no_grad():
                for parameter in trial.network.parameters():
                    parameter.add_(0.5)
        return {"mask": 60, "far": 1}

    study = study_of(methods=["cross_stitch", "mtan"], model={**MODEL, "output_stride": 16})
    gs.search(study, train, n_trials=0, heads=heads, out=tmp_path / "out", emit=ignore)
    net = seen["cross_stitch"]
    assert isinstance(net, CrossStitchNet)
    for name, tensor in seen["stl"].state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
    assert type(seen["mtan"].heads["far"]) is Pooled


@pytest.mark.slow("trains")
def test_single_task_networks_share_no_head(tmp_path: Path) -> None:
    def shared() -> dict[str, nn.Module]:
        head = nn.Conv2d(CHANNELS, 1, 1)
        return {"mask": head, "far": head}

    train = Trainer()
    gs.search(study_of(), train, n_trials=1, heads=shared, out=tmp_path / "out", emit=ignore)
    stl, mtl, trial = (t.network.heads for t in train.trials)
    assert stl["mask"] is not stl["far"]
    assert mtl["mask"] is mtl["far"]
    assert trial["mask"] is trial["far"]


@pytest.mark.slow("trains")
def test_loss_and_groups_of_a_trial(tmp_path: Path) -> None:
    """The drawn λ and τ with the study's ramp, temperature and rate of gates; no others."""
    values = {}

    def train(trial: Trial) -> dict[str, float]:
        trial.anneal(0.25)
        if trial.method == "interrogate":
            net, params = trial.network, trial.params
            tau = {task: params[f"tau.{task}"] for task in net.tasks}
            expected = net.penalty(tau, weight=0.5 * params["lambda_s"]).item()  # ramp 0.5
            values["penalty"] = (trial.penalty().item(), expected)
            values["temperature"] = net.temperature
            values["rates"] = {group["lr"] for group in trial.param_groups(1e-2)}
            trial.prune()
        else:
            values[trial.name] = trial.penalty().item()
            groups = trial.param_groups(1e-2)
            values["decays"] = [(group["lr"], group["weight_decay"]) for group in groups]
        return {"mask": 60, "far": 1}

    options = {"estimator": "sigmoid", "temperature": (4.0, 0.25), "ramp": 0.5, "lr": 3.0}
    study = study_of(interrogate=options, search={"tau": [0.0, 0.1]})
    gs.search(study, train, n_trials=1, out=tmp_path / "out", emit=ignore)
    assert values["penalty"][0] == pytest.approx(values["penalty"][1], rel=1e-6)
    assert values["penalty"][0] > 0
    assert values["temperature"] == pytest.approx(2.0)
    assert sorted(values["rates"]) == pytest.approx([1e-2, 3e-2])
    assert values["stl"] == values["mtl"] == 0.0
    assert values["decays"] == [(1e-2, 1e-4), (1e-2, 0.0)]


@pytest.mark.slow("trains")
def test_commands_read_the_store(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    gs.search(study_of(), Trainer(), n_trials=1, heads=heads, budgets="1.4xMTL", emit=ignore)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["gatesearch", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    for command in ("status", "select", "report"):
        code, printed = call(command, "--study", "runs/own")
        assert code == 0, printed
        assert "trial 0" in printed
    for trial in ("mtl", "0"):
        code, printed = call("export", "--study", "runs/own", "--to", "x.pt2", "--trial", trial)
        assert code == 2
        assert "found heads of its user's" in " ".join(printed.split())


def test_the_package_is_the_function_too(caplog) -> None:
    import inspect

    from gatesearch.search import own_training

    assert callable(gs.search)
    assert inspect.signature(gs.search) == inspect.signature(own_training.search)
    from gatesearch import search

    assert search is gs.search
    with caplog.at_level(logging.INFO, "gatesearch"), pytest.raises(UsageError):
        search(None, never)
