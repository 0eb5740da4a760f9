"""What the tests of training share: a pack of random frames, small networks, a short training."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gatesearch.datasets import open_pack
from gatesearch.models import GatedSupernet
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.study import AugmentSpec, TrainingSpec
from gatesearch.tasks import TASKS
from gatesearch.training import (
    History,
    Hooks,
    ParameterGroup,
    Runtime,
    SplitData,
    Trainer,
    TrainingData,
)
from gatesearch.training.split_data import LABELLED, Batch
from gatesearch.training.weightings import Weighting, build_weighting
from tests.toy_packs import toy_frame, write_toy_pack

SIZE = (6, 8)
CLASSES = 4
TASK_NAMES = ("semseg", "depth", "normals", "edges")
CPU = Runtime(device="cpu", precision="fp32", memory_format="nchw")


frame = partial(toy_frame, size=SIZE, classes=CLASSES)


def toy_pack(folder, *, train: int = 11, without: tuple[str, ...] = ()):
    def labelled(number: int) -> dict[str, np.ndarray]:
        return {name: array for name, array in frame(number).items() if name not in without}

    path = write_toy_pack(
        folder, size=SIZE, classes=CLASSES, frame=labelled, train=train,
        test=[labelled(100), labelled(101)],
    )  # fmt: skip
    return open_pack(path)


def toy_tasks(*names: str):
    return {name: TASKS[name](classes=CLASSES) for name in names or TASK_NAMES}


def toy_frames(pack, *names: str, indices=None, size=SIZE) -> SplitData:
    rows = range(pack.frames("train")) if indices is None else indices
    return SplitData(pack, "train", indices=list(rows), tasks=toy_tasks(*names), size=size)


class PartlyLabelled:
    """Frames of which some have lost their labels of some tasks.

    Args:
        frames: All frames, with labels of every task.
        labelled: (frames, T) bool, which keep their labels of each task.
    """

    def __init__(self, frames: SplitData, labelled: Tensor) -> None:
        self.frames, self.labelled = frames, labelled

    def __len__(self) -> int:
        return len(self.frames)

    def batch(self, positions: Tensor) -> Batch:
        batch, labelled = self.frames.batch(positions), self.labelled[positions]
        for t, (name, task) in enumerate(self.frames.tasks.items()):
            batch[name][~labelled[:, t]] = task.unknown_value
        return {**batch, LABELLED: labelled}

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[Batch]:
        order = torch.randperm(len(self), generator=generator)
        whole = [part for part in order.split(batch_size) if len(part) == batch_size]
        return map(self.batch, whole[skip:])

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        return map(self.batch, torch.arange(len(self)).split(batch_size))


def uniform(*names: str, **weights: float) -> Weighting:
    return build_weighting("uniform", dict.fromkeys(names, 1.0) | weights)


class Toy(nn.Module):
    """Convolution, norm and dropout, and one more convolution per task."""

    def __init__(self, *names: str, dropout: float = 0.2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(dropout)
            )
            self.heads = nn.ModuleDict(
                {n: nn.Conv2d(5, t.channels, 1) for n, t in toy_tasks(*names).items()}
            )
        self.gate = nn.Parameter(torch.zeros(2, 5))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image) * (1 + self.gate.sum(0))[:, None, None]
        return {name: head(features) for name, head in self.heads.items()}


def toy_supernet(*names: str, estimator: str = "ste") -> GatedSupernet:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    heads = {
        n: HeadSpec("light", graph.outputs, 4, t.channels) for n, t in toy_tasks(*names).items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GatedSupernet(Parts(graph, heads), estimator=estimator)


def spec(**options) -> TrainingSpec:
    return TrainingSpec(
        **{
            "epochs": 2,
            "batch_size": 4,
            "lr": 1e-2,
            "augment": AugmentSpec(zoom=(1.0, 1.5), rotate=10.0),
            **options,
        }
    )


def train(model: nn.Module, frames: SplitData, tasks, *, held_out=None, **options) -> History:
    """Train a network; hooks are among the options, which have defaults."""
    hooks = {f.name: options.pop(f.name) for f in fields(Hooks) if f.name in options}
    defaults = {"weighting": uniform(*tasks), "spec": spec(), "runtime": CPU, "seed": 3}
    data = TrainingData(frames, held_out, tasks)
    return Trainer(model, data, hooks=Hooks(**hooks), **{**defaults, **options}).run()


def two_groups(model: nn.Module, part: str, **options) -> list[ParameterGroup]:
    """A plain group, and one with options for the parameters that have `part` in their name."""
    chosen = tuple(p for name, p in model.named_parameters() if part in name)
    others = tuple(p for name, p in model.named_parameters() if part not in name)
    return [ParameterGroup(others), ParameterGroup(chosen, **options)]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are equal to the bit."""
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())
