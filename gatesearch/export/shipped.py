"""Prepare a network for export: normalisation inside, and a card that describes its outputs."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gatesearch.datasets.folder.fit import Fit
from gatesearch.errors import UsageError
from gatesearch.pruning.mix import MOST_TASKS
from gatesearch.results import Result, StudyRecord, delta, front
from gatesearch.strict import Strict
from gatesearch.tasks import TASKS, Task, build_task
from gatesearch.training.split_data import MEAN, STD

CARD = "gatesearch.json"
# Largest image of a card, pixels: 4,096 x 4,096.
MOST_PIXELS = 2**24

Side = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
# `predict` names files after tasks, so that a name must be no path.
TaskName = Annotated[str, Field(pattern=r"^[\w -]{1,100}$")]


class TaskCard(Strict):
    """The card of one output of a network.

    Attributes:
        kind: Kind of the task, a name in `gatesearch.tasks.TASKS`, which decodes and draws the
            output.
        classes: Number of classes; 1 for a task without classes.
        values: Meaning of the output's channels.
        metric: Name and unit of the task's metric.
        measured: Part of the data (`validation`, `test`) -> value of the metric there.
        options: Further options of the kind, with what it learned from the training part; empty
            in cards of earlier versions.
    """

    kind: str
    classes: int = Field(ge=1, le=2**16)
    values: str
    metric: str
    measured: dict[str, Finite]
    options: dict[str, Any] = Field(default={})

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.kind not in TASKS:
            raise ValueError(f"unknown kind of task '{self.kind[:100]}', which --plugin may add")
        try:
            _ = self.task
        except UsageError as error:
            raise ValueError(" ".join(str(error).split())) from error
        return self

    @property
    def task(self) -> Task:
        """The task, which decodes its output."""
        return build_task(self.kind, {**self.options, "classes": self.classes}, where="the card")

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.task.channels


class Card(Strict):
    """The card of an exported network, which is the same in every format.

    Attributes:
        study: Name of the study that the network comes from.
        fingerprint: Fingerprint of the study's definition.
        protocol: Name of the protocol: classes, size, encodings and metrics.
        network: Name of the network, as `trial 3`, `mtl` or `mtl + pcgrad`.
        size: Height and width of the images that it was trained on, pixels.
        fit: How images of another shape were brought to that size: see `datasets.folder.fit`.
        image: Type, shape and range of its input.
        mean: Mean that the network subtracts from the input, for values in 0..1, per channel.
        std: Standard deviation that it divides by, for values in 0..1, per channel.
        gflops: FLOPs for one image of that size, 2 x multiply-adds / 1e9.
        params_m: Parameters, millions.
        tasks: Output name -> card of the output, in the order of the outputs.
    """

    format: Literal[2] = 2
    study: str
    fingerprint: str
    protocol: str
    network: str
    size: tuple[Side, Side]
    fit: Fit = "stretch"
    image: str = "float32 (batch, 3, height, width), RGB, 0 to 255"
    mean: tuple[Finite, Finite, Finite] = MEAN
    std: tuple[Finite, Finite, Finite] = STD
    gflops: Finite = Field(ge=0)
    params_m: Finite = Field(ge=0)
    tasks: dict[TaskName, TaskCard] = Field(min_length=1, max_length=MOST_TASKS)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if math.prod(self.size) > MOST_PIXELS:
            raise ValueError(f"size must have at most {MOST_PIXELS:,} pixels, found {self.size}")
        return self


class Shipped(nn.Module):
    """Image 0..255 (B, 3, H, W) -> tuple of predictions, one per task.

    They are (B, channels, H, W), or (B, channels) for tasks of whole images.
    """

    def __init__(self, network: nn.Module, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        self.register_buffer("mean", (mean * 255)[:, None, None])
        self.register_buffer("scale", (1 / (std * 255))[:, None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Normalise the images, and predict."""
        outputs = self.network((image - self.get_buffer("mean")) * self.get_buffer("scale"))
        return tuple(outputs[task] for task in self.tasks)


def choose(record: StudyRecord, name: str, *, budget: str = "", seed: int | None = None) -> Result:
    """Choose a network of a store by its name.

    Args:
        record: Contents of the store.
        name: A trial's number; `best` for the trial of the front with the highest Δ_MTL on the
            validation part; or the name of a baseline or control, as `mtl`, `mtl + pcgrad` or
            `mtl@B of trial 3`.
        budget: With `best`, only trials of the search under this budget.
        seed: Seed of a baseline or control; by default the first in the store.

    Raises:
        UsageError: There is no such network; the error lists those that there are.
    """
    trials = [r for r in record.trials if r.state == "complete"]
    named: Mapping[str, Result] = {str(r.trial): r for r in trials} | {
        r.name: r
        for r in reversed((*record.baselines, *record.controls))
        if r.state == "complete" and seed in (None, r.seed)
    }
    if name == "best":
        # A budget of latency is stored with its device, as `12ms@cpu`.
        within = [r for r in front(record) if not budget or r.budget.split("@")[0] == budget]
        if within:
            return max(within, key=lambda r: delta(record, r, "validation"))
    elif name in named:
        return named[name]
    raise UsageError(
        f"no finished network '{name}' in this store; it has: {', '.join(named) or 'none'}"
        + (f" (budget {budget})" if budget else "")
    )


def _fit(definition: Mapping[str, Any]) -> Fit:
    """How the frames of all data sets of a study were fitted; `stretch` if they differ."""
    sources = (definition["data"], *definition.get("more_data", ()))
    fits: set[Fit] = {source.get("fit", "stretch") for source in sources}
    return fits.pop() if len(fits) == 1 else "stretch"


def card_of(record: StudyRecord, result: Result) -> Card:
    """Make the card of a stored network."""
    definition: Mapping[str, Any] = record.definition
    height, width = definition["protocol"]["size"]
    return Card(
        study=record.name,
        fingerprint=record.fingerprint,
        protocol=record.protocol,
        network=result.name,
        size=(height, width),
        fit=_fit(definition),
        gflops=result.gflops,
        params_m=result.params_m,
        tasks={
            task.name: TaskCard(
                kind=task.kind,
                classes=task.classes,
                values=build_task(task.kind, task.task_options, where=task.name).output_meaning,
                metric=f"{task.metric} {task.unit}".strip(),
                measured={
                    part: metrics[task.name]
                    for part, metrics in result.metrics.items()
                    if math.isfinite(metrics.get(task.name, math.nan))
                },
                options={k: v for k, v in task.task_options.items() if k != "classes"},
            )
            for task in record.tasks
        },
    )
