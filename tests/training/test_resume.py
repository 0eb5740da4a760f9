"""Wherever a training is stopped, it ends with the same bits as one that never was."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gatesearch.methods.interrogate.nested import Nested
from gatesearch.study import TrainingSpec
from gatesearch.training import Checkpoint, Checkpoints, PhaseCheckpoints, Preempted, Runtime
from gatesearch.training.weightings import build_weighting
from tests.training.toys import (
    CPU,
    Toy,
    spec,
    toy_frames,
    toy_pack,
    toy_supernet,
    toy_tasks,
    train,
    two_groups,
)

NAMES = ("semseg", "depth")
EPOCHS, STEPS = 3, 6  # two steps per epoch
LONG = spec(epochs=EPOCHS)
SHORT = spec(epochs=2)  # for supernets, whose steps take longer


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return toy_frames(toy_pack(tmp_path_factory.mktemp("packs") / "toy"), *NAMES)


@dataclass
class Stop:
    """Asks a training to stop after so many of its steps."""

    after: int
    begun: int = 0

    def __call__(self) -> bool:
        return self.begun >= self.after


@dataclass
class Case:
    """A training that is built anew, from other weights than it will go on with."""

    build: Callable[[], nn.Module]
    runtime: Runtime = CPU
    extra: Callable[[nn.Module], dict[str, Any]] = lambda model: {}
    spec: TrainingSpec = LONG
    weighting: str = "uniform"

    @property
    def steps(self) -> int:
        """Two per epoch."""
        return 2 * self.spec.epochs

    def run(self, frames, folder: Path, stop: Stop, *, seconds: float = 1e9) -> Checkpoint:
        """The checkpoint that it stops with."""
        model = self.runtime.place(self.build())
        extra = self.extra(model)
        own = extra.pop("before_step", lambda share: None)

        def before_step(share: float) -> None:
            own(share)
            stop.begun += 1

        checkpoints = Checkpoints(folder, identity="x", seconds=seconds, stop=stop)
        resume = checkpoints.newest()
        phase = PhaseCheckpoints(checkpoints, "warmup", {"trial": 7}, resume)
        # Training seeds torch alone; another process begins with other states.
        for sow in (random.seed, np.random.seed, torch.manual_seed):
            sow(0 if resume is None else 1 + stop.after)
        with pytest.raises(Preempted):
            train(
                model, frames, toy_tasks(*NAMES), held_out=frames,
                weighting=build_weighting(self.weighting, dict.fromkeys(NAMES, 1.0), seed=5),
                spec=self.spec, runtime=self.runtime,
                before_step=before_step, checkpoints=phase, **extra,
            )  # fmt: skip
        found = checkpoints.newest()
        assert found is not None
        assert found.state["phase"] == "warmup"
        assert found.state["context"] == {"trial": 7}
        return found


def bits(checkpoint: Checkpoint) -> tuple[str, dict[str, bytes]]:
    """All of a checkpoint but the time it took."""
    state = json.loads(json.dumps(checkpoint.state))
    assert state["loop"]["progress"]["history"].pop("seconds") > 0
    tensors = {n: t.flatten().view(torch.uint8).numpy().tobytes()
               for n, t in checkpoint.tensors.items()}  # fmt: skip
    return json.dumps(state), tensors


def gates(model: nn.Module) -> dict[str, Any]:
    risen = 0.0

    def anneal(share: float) -> None:
        nonlocal risen
        model.temperature = 2 * 0.25**share
        risen = share

    return {
        "before_step": anneal,
        "penalty": lambda image, outputs: risen * model.sparsity(torch.tensor([0.2, 0.3])),
        "observe": lambda epoch: {"risen": risen, "temperature": model.temperature},
        "groups": two_groups(model, "alpha", rate=10.0),
    }


def nested(model: nn.Module) -> dict[str, Any]:
    def open_gates(epoch: int) -> dict[str, float]:
        return {n: float(on.float().mean()) for n, on in model.supernet.hard_gates().items()}

    return {"before_step": lambda share: model.draw(), "observe": open_gates}


class Drawing(Toy):
    """Draws from every generator there is."""

    def forward(self, image):
        noise = random.random() + np.random.rand() + float(torch.rand(()))
        return super().forward(image * (1 + 0.01 * noise))


NHWC = replace(CPU, memory_format="nhwc")
CASES = {
    "adam": Case(lambda: Toy(*NAMES)),
    "adamw": Case(lambda: Toy(*NAMES), spec=spec(epochs=EPOCHS, optimizer="adamw")),
    "sgd": Case(lambda: Toy(*NAMES), spec=spec(epochs=EPOCHS, optimizer="sgd", momentum=0.9)),
    "sgd without momentum": Case(
        lambda: Toy(*NAMES), spec=spec(epochs=EPOCHS, optimizer="sgd", momentum=0.0)
    ),
    "channels last": Case(lambda: Toy(*NAMES), runtime=NHWC),
    "all generators": Case(lambda: Drawing(*NAMES)),
    "gates": Case(lambda: toy_supernet(*NAMES, estimator="hard_concrete"), NHWC, gates, SHORT),
    "nested gates": Case(
        lambda: Nested(toy_supernet(*NAMES), ends=0.2, seed=5), extra=nested, spec=SHORT
    ),
    "two optimizers": Case(
        lambda: Toy(*NAMES),
        extra=lambda model: {"groups": two_groups(model, "body", optimizer="sgd", rate=0.1)},
    ),
    "two optimizers under auto_lambda": Case(
        lambda: Toy(*NAMES), weighting="auto_lambda",
        extra=lambda model: {"groups": two_groups(model, "body", optimizer="sgd", rate=0.1)},
    ),
    "a part of the network": Case(
        lambda: Toy(*NAMES), extra=lambda model: {"groups": two_groups(model, "heads")[1:]}
    ),
    # Weights that are learned, drawn, taken from earlier epochs, from angles, by moments of their
    # own, from held-out frames.
    **{
        name: Case(lambda: Toy(*NAMES), weighting=name)
        for name in ("uncertainty", "rlw", "dwa", "gradvac", "famo", "auto_lambda", "mgda_ub")
    },
    "gates under pcgrad": Case(
        lambda: toy_supernet(*NAMES, estimator="hard_concrete"), NHWC, gates, SHORT, "pcgrad"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_stopped_at_any_step_it_ends_the_same(frames, tmp_path, case) -> None:
    training = CASES[case]
    whole = bits(training.run(frames, tmp_path / "whole", Stop(training.steps)))
    for step in range(1, training.steps):
        folder = tmp_path / str(step)
        training.run(frames, folder, Stop(step))
        assert bits(training.run(frames, folder, Stop(training.steps, step))) == whole


@pytest.mark.parametrize("case", ["adam", "nested gates"])
def test_stopped_at_every_step_it_ends_the_same(frames, tmp_path, case) -> None:
    training = CASES[case]
    whole = bits(training.run(frames, tmp_path / "whole", Stop(training.steps)))
    for step in range(training.steps):
        last = training.run(frames, tmp_path / "steps", Stop(step + 1, step))
    assert bits(last) == whole


def test_from_disk_instead_of_memory(frames, tmp_path, monkeypatch) -> None:
    whole = bits(CASES["adam"].run(frames, tmp_path / "whole", Stop(STEPS)))
    monkeypatch.setattr("gatesearch.training.split_data.IN_MEMORY_BYTES", 0)
    read = toy_frames(toy_pack(tmp_path / "toy"), *NAMES)
    CASES["adam"].run(read, tmp_path / "cut", Stop(3))
    assert bits(CASES["adam"].run(read, tmp_path / "cut", Stop(STEPS, 3))) == whole


def trained(frames, **options):
    model = Toy(*NAMES)
    history = train(model, frames, toy_tasks(*NAMES), spec=spec(epochs=EPOCHS), **options)
    return model.state_dict(), history


def test_checkpoints_change_nothing(frames, tmp_path) -> None:
    plain, history = trained(frames)
    checkpoints = Checkpoints(tmp_path / "x", identity="x", seconds=0)
    seen = []
    kept, same = trained(
        frames,
        checkpoints=PhaseCheckpoints(checkpoints, "p", {}),
        on_epoch=lambda n, v: seen.append(n),
    )
    assert all(torch.equal(plain[name], kept[name]) for name in plain)
    assert (history.curves, history.images, history.epochs) == (
        same.curves, same.images, same.epochs,
    )  # fmt: skip
    # The last one is behind the last epoch: what goes on from it has nothing left to do.
    resumed, again = trained(
        frames,
        checkpoints=PhaseCheckpoints(checkpoints, "p", {}, checkpoints.newest()),
        on_epoch=seen.append,
    )
    assert all(torch.equal(plain[name], resumed[name]) for name in plain)
    assert (again.curves, again.images, again.epochs) == (same.curves, same.images, same.epochs)
    assert seen == [1, 2, 3]


def test_seconds_go_on(frames, tmp_path) -> None:
    stopped = Checkpoints(tmp_path / "x", identity="x", stop=lambda: True)
    with pytest.raises(Preempted):
        trained(frames, checkpoints=PhaseCheckpoints(stopped, "p", {}))
    checkpoints = Checkpoints(tmp_path / "x", identity="x")
    found = checkpoints.newest()
    found.state["loop"]["progress"]["history"]["seconds"] = 1000.0
    _, history = trained(frames, checkpoints=PhaseCheckpoints(checkpoints, "p", {}, found))
    assert 1000 < history.seconds < 1010


def test_a_phase_does_not_go_on_from_another(frames, tmp_path) -> None:
    checkpoints = Checkpoints(tmp_path / "x", identity="x", seconds=0)
    trained(frames, checkpoints=PhaseCheckpoints(checkpoints, "warmup", {}))
    with pytest.raises(ValueError, match=r"the phase gates cannot go on from .* phase warmup"):
        trained(
            frames, checkpoints=PhaseCheckpoints(checkpoints, "gates", {}, checkpoints.newest())
        )


def test_a_later_phase_goes_on_within_its_span(frames, tmp_path) -> None:
    whole, history = trained(frames, span=(1, 3))
    checkpoints = Checkpoints(tmp_path / "x", identity="x", stop=(stop := Stop(3)))

    def count(share: float) -> None:
        stop.begun += 1
        shares.append(share)

    shares: list[float] = []
    with pytest.raises(Preempted):
        trained(
            frames,
            span=(1, 3),
            before_step=count,
            checkpoints=PhaseCheckpoints(checkpoints, "p", {}),
        )
    stop.after = 100
    numbers = []
    resumed, again = trained(
        frames, span=(1, 3), before_step=count, on_epoch=lambda n, v: numbers.append(n),
        checkpoints=PhaseCheckpoints(checkpoints, "p", {}, checkpoints.newest()),
    )  # fmt: skip
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert again.curves == history.curves
    assert shares == [0, 0.25, 0.5, 0.75]
    assert numbers == [3]
