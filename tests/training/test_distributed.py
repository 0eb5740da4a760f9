"""Two processes train as one does on the whole batch, and end together."""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from gatesearch.errors import UsageError
from gatesearch.study import AugmentSpec
from gatesearch.training import (
    Checkpoints,
    PhaseCheckpoints,
    Preempted,
    RankError,
    Ranks,
    TrainingError,
    launch,
    trainer,
)
from gatesearch.training.weightings import WEIGHTINGS, build_weighting
from tests.training.toys import (
    Toy,
    spec,
    toy_frames,
    toy_pack,
    toy_supernet,
    toy_tasks,
    train,
)

NAMES = ("depth", "normals")  # of each frame as many pixels have a label


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return toy_pack(tmp_path_factory.mktemp("packs") / "toy", train=17)


def build(kind: str) -> nn.Module:
    """In float64: batch norm over a few frames amplifies what float32 rounds."""
    model = toy_supernet(*NAMES) if kind == "gates" else Toy(*NAMES, dropout=0.0)
    if kind not in ("norm", "gates"):
        model.body[1] = nn.Identity()
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))
    return model.double()


def losses(ranks: Ranks, pack, kind: str, **options):
    """(curves, state behind the last step)."""
    model = build(kind)
    if ranks.rank:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)  # rank 0's count
    own = {}
    if kind == "gates":
        own["penalty"] = lambda image, outputs: 0.5 * model.sparsity(torch.tensor([0.2, 0.3]))
    history = train(
        model, toy_frames(pack, *NAMES), toy_tasks(*NAMES),
        weighting=build_weighting(
            kind if kind in WEIGHTINGS else "uniform", {"depth": 1.0, "normals": 0.5}, seed=3
        ),
        held_out=toy_frames(pack, *NAMES),
        spec=spec(epochs=3, batch_size=4, optimizer="sgd", augment=AugmentSpec(flip=True)),
        ranks=ranks, **own, **options,
    )  # fmt: skip
    return history.curves, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def in_parts(monkeypatch, parts: int) -> None:
    monkeypatch.setattr(trainer, "Progress", partial(trainer.Progress, parts=parts))


BALANCED = ("pcgrad", "uncertainty", "auto_lambda")  # without norm
KINDS = ("without norm", "norm", "gates", *BALANCED)


@dataclass(frozen=True)
class Together:
    """What rank 0 of two processes saw, which take seconds to start: all of it in one go."""

    whole: dict
    statistics_are_alike: bool
    resumed: tuple
    frames: list


def do_all(ranks: Ranks, pack, folder: str) -> Together:
    whole = {kind: losses(ranks, pack, kind) for kind in KINDS}
    own = torch.from_numpy(whole["norm"][1]["body.1.running_mean"])
    ranks.average([mean := own.clone()])
    with pytest.raises(Preempted):
        ask_one(ranks, pack, folder)
    ranks.any(False)  # until rank 0 has kept it
    resumed = go_on(ranks, pack, f"{folder}/0")
    return Together(whole, bool(torch.equal(own, mean)), resumed, tight(ranks, pack))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def together(pack, checkpoints):
    return launch(2, do_all, pack, str(checkpoints))


@pytest.mark.slow("processes")
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_lose_as_one_does(pack, together, monkeypatch, kind) -> None:
    curves, state = together.whole[kind]
    if kind in ("norm", "gates"):
        in_parts(monkeypatch, 2)  # batch norm sees the halves
    alone, expected = losses(Ranks(), pack, kind)
    for name in ("loss.depth", "loss.normals", "weight.depth", "weight.normals", "lr"):
        assert curves[name] == pytest.approx(alone[name], rel=1e-5)
    for name, tensor in expected.items():
        if "running" not in name and "tracked" not in name:
            assert state[name] == pytest.approx(tensor, rel=1e-4, abs=1e-5)


@pytest.mark.slow("processes")
def test_running_statistics_are_those_of_all_frames(together) -> None:
    _, state = together.whole["norm"]
    assert together.statistics_are_alike
    assert state["body.1.running_mean"].any()


def ask_one(ranks: Ranks, pack, folder: str):
    """Only rank 1 is asked to stop, at its third step."""
    begun = 0

    def count(share: float) -> None:
        nonlocal begun
        begun += 1

    def asked() -> bool:
        return ranks.rank == 1 and begun == 3

    # Each has a folder of its own, so that who writes can be seen.
    checkpoints = Checkpoints(Path(folder) / str(ranks.rank), identity="x", stop=asked)
    losses(
        ranks, pack, "norm", checkpoints=PhaseCheckpoints(checkpoints, "p", {}), before_step=count
    )


@pytest.mark.slow("processes")
def test_one_that_is_asked_to_stop_stops_both_at_the_same_step(together, checkpoints) -> None:
    assert [path.name for path in checkpoints.iterdir()] == ["0"]
    found = Checkpoints(checkpoints / "0", identity="x").newest()
    assert found.state["loop"]["progress"]["done"] == 3
    curves, state = together.resumed
    expected, whole = together.whole["norm"]
    assert curves == expected
    assert all((state[name] == tensor).all() for name, tensor in whole.items())


def go_on(ranks: Ranks, pack, folder: str):
    checkpoints = Checkpoints(Path(folder), identity="x")
    return losses(
        ranks,
        pack,
        "norm",
        checkpoints=PhaseCheckpoints(checkpoints, "p", {}, checkpoints.newest()),
    )


class TightOnOne(Toy):
    def __init__(self, rank: int) -> None:
        super().__init__(*NAMES, dropout=0.0)
        self.most = 2 if rank == 1 else 100
        self.seen = []

    def forward(self, image):
        self.seen.append(len(image))
        if len(image) > self.most:
            raise torch.OutOfMemoryError
        return super().forward(image)


def tight(ranks: Ranks, pack):
    model = TightOnOne(ranks.rank)
    own = spec(epochs=1, batch_size=8)
    train(model, toy_frames(pack, *NAMES), toy_tasks(*NAMES), spec=own, ranks=ranks)
    return model.seen


@pytest.mark.slow("processes")
def test_both_split_where_one_runs_out_of_memory(together) -> None:
    assert together.frames == [4, 2, 2, 2, 2]


def obey(ranks: Ranks, folder: str):
    (Path(folder) / str(ranks.rank)).touch()
    while not ranks.asked():
        time.sleep(0.01)
    raise Preempted


@pytest.mark.slow("processes")
def test_asked_to_stop_from_outside(tmp_path) -> None:
    with pytest.raises(Preempted):
        launch(2, obey, str(tmp_path), stop=lambda: len(list(tmp_path.iterdir())) == 2)


def fail(ranks: Ranks, how: str):
    if ranks.rank == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exits":
            os._exit(3)
        raise RuntimeError("the roof is on fire")
    ranks.any(False)  # waits for rank 1, in vain
    time.sleep(60)


@pytest.mark.slow("processes")
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", r"^rank 1 of 2 failed: RuntimeError: the roof is on fire\nTraceback"),
        ("killed", "^rank 1 of 2 was killed by SIGKILL$"),
        ("exits", "rank 1 of 2 exited with 3"),
    ],
)
def test_one_that_fails_ends_all_and_is_named(how, message) -> None:
    start = time.monotonic()
    with pytest.raises(RankError, match=message):
        launch(2, fail, how)
    assert time.monotonic() - start < 50
    assert not multiprocessing.active_children()


def abort_at_the_end(ranks: Ranks):
    atexit.register(os.abort)
    return "done"


@pytest.mark.slow("processes")
def test_what_is_done_counts_whatever_the_way_out_of_python_does() -> None:
    assert launch(2, abort_at_the_end) == "done"


def wait(ranks: Ranks, folder: str):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


PARENT = """
from tests.training.test_distributed import launch, wait
if __name__ == "__main__":
    launch(2, wait, {folder!r})
"""


@pytest.mark.slow("processes")
def test_none_outlives_the_parent(tmp_path) -> None:
    (folder := tmp_path / "pids").mkdir()
    (script := tmp_path / "parent.py").write_text(PARENT.format(folder=str(folder)))
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, script], env=here)
    until = time.monotonic() + 60
    while len(list(folder.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    children = [int(path.name) for path in folder.iterdir()]
    assert len(children) == 2
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, children))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_batch_must_divide(pack) -> None:
    with pytest.raises(TrainingError, match=r"4 frames on 3; take 6"):
        losses(Ranks(0, 3), pack, "norm")


def test_without_accelerate(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(UsageError, match=r"pip install 'gatesearch\[distributed\]'"):
        launch(2, losses)


def test_fewer_devices_than_processes(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="2 processes need a CUDA device each, found 1"):
        launch(2, losses)


def sum_of_ranks(ranks: Ranks) -> float:
    numbers = torch.tensor([float(ranks.rank + 1)])
    torch.distributed.all_reduce(numbers)
    return numbers.item()


@pytest.mark.slow("processes")
def test_processes_meet_in_a_temporary_folder_of_any_name(tmp_path, monkeypatch) -> None:
    odd = tmp_path / "a?rank=7#%5f {x}é"
    odd.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(odd))
    assert launch(2, sum_of_ranks) == 3.0
    assert list(odd.iterdir()) == []
