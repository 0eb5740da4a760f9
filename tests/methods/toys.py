"""What the tests of methods share: parts of two tasks, and weights that tell channels apart."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gatesearch.cost import Cost, count_macs
from gatesearch.methods import build_model
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.graph import Graph
from gatesearch.models.model_factory import HeadSpec
from gatesearch.study import Study
from gatesearch.training import Trainer

HEADS = {"a": 3, "b": 1}
# What `tests.search.tiny` needs for methods that halve the size once more than its backbone does.
DEEP = ("model.output_stride=16",)


def parts(graph: Graph | None = None, **options: object) -> Parts:
    """A small ResNet-18, or another graph, with a light head for each task."""
    graph = graph or BACKBONES["resnet18"](output_stride=32, width=0.05)
    heads = {task: HeadSpec("light", graph.outputs, 4, n) for task, n in HEADS.items()}
    return Parts(graph, heads, **options)


def scattered(model: nn.Module) -> nn.Module:
    """Weights and statistics that tell every stream and channel from every other."""
    torch.manual_seed(11)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.2)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def random_image(size: int = 64, frames: int = 2) -> Tensor:
    """The same numbers each time, (B, 3, H, W)."""
    return torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same_outputs(ours: nn.Module, theirs: nn.Module, image: Tensor) -> None:
    """Two networks compute the same, up to rounding."""
    with torch.no_grad():
        found, expected = ours.eval()(image), theirs.eval()(image)
    assert found.keys() == expected.keys()
    for task, prediction in expected.items():
        torch.testing.assert_close(found[task], prediction, rtol=1e-4, atol=1e-5)


def ends_of(study: Study) -> dict[str, Cost]:
    """Costs of the multi-task and the single-task networks, counted once."""
    shape = (1, 3, *study.protocol.size)
    return {
        name: count_macs(build_model(study, name), shape, cross_check=False)
        for name in ("mtl", "stl")
    }


def count_steps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many steps any training has taken from now on."""
    taken, step = 0, Trainer.step

    def counted(self, batch, epoch):
        nonlocal taken
        step(self, batch, epoch)
        taken += 1

    monkeypatch.setattr(Trainer, "step", counted)
    return lambda: taken
