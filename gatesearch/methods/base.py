"""The core types of methods on one page: what a method is, and what it is given to train.

A method is a way in which tasks share. It says how its network is built, in which phases it is
trained, what a search may choose, what it starts from and how its trained network is read again.
`trials` trains by what is said here and knows no method by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, LatencyTable
from gatesearch.cost.budget import Measure
from gatesearch.events import Emit
from gatesearch.methods.space import Space
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts
from gatesearch.strict import Strict
from gatesearch.study import Study, TrainingSpec
from gatesearch.tasks import Task
from gatesearch.training import Hooks, ParameterGroup, Runtime, SplitData
from gatesearch.training.augment import augment
from gatesearch.training.split_data import Batch

Json = Mapping[str, object]


class NoOptions(Strict):
    """Of methods without options of their own."""


@dataclass(frozen=True)
class Stopwatch:
    """How latency is measured where a budget bounds it.

    Attributes:
        runtime: Device and memory format.
        table: Measured layers of the networks that are searched.
    """

    runtime: Runtime
    table: LatencyTable


@dataclass(frozen=True)
class Context:
    """A study with its data opened, ready to train on; made once per run and process.

    Attributes:
        study: The definition.
        tasks: Task name -> task.
        train: Training part, without the validation part.
        validation: Carved from the official training part; every choice is made on it.
        test: The official test part.
        runtime: Device, precision, memory format.
        data: Digest of what was read, for the store.
        stopwatch: For budgets of latency; None without one.
    """

    study: Study
    tasks: dict[str, Task]
    train: SplitData
    validation: SplitData
    test: SplitData
    runtime: Runtime
    data: dict[str, object]
    stopwatch: Stopwatch | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Task -> ω_t."""
        return {name: spec.weight for name, spec in self.study.tasks.items()}

    def augmented(self, training: TrainingSpec) -> Callable[[Batch], Tensor]:
        """Batch -> its images augmented as a training does, by draws that are always the same."""
        generator = torch.Generator().manual_seed(0)
        options = training.augment.model_dump()

        def images(batch: Batch) -> Tensor:
            image = {"image": batch["image"]}
            return augment(self.runtime.tensors(image), {}, generator=generator, **options)["image"]

        return images

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Shape of one image, (1, 3, H, W)."""
        return (1, 3, *self.study.protocol.size)


@dataclass
class TrainedNetwork:
    """A network between two phases of its training, or behind the last.

    Attributes:
        module: Image (B, 3, H, W) -> task -> (B, channels, H, W).
        layers: Names of the layers that tasks share or own, where the method prunes.
        sharing: Task -> for each of them the share of live channels that are the task's own.
    """

    module: nn.Module
    layers: tuple[str, ...] = ()
    sharing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRequest:
    """What a method is given to plan the training of one network.

    Attributes:
        spec: The network.
        context: Data, tasks, runtime.
        start: Reads the weights of what it starts from (`Method.start_of`); None without one.
        emit: Receives events.
    """

    spec: NetworkSpec
    context: Context
    start: Callable[[], Mapping[str, Tensor]] | None
    emit: Emit

    @property
    def study(self) -> Study:
        """The definition."""
        return self.context.study

    def start_state(self) -> Mapping[str, Tensor] | None:
        """The weights that it starts from; None where they are drawn or pretrained."""
        return None if self.start is None else self.start()


def _no_hooks(module: nn.Module) -> Hooks:
    return Hooks()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of a training.

    Phases of one training share its schedule: `span` counts epochs of the whole.

    Attributes:
        name: In checkpoints; unique within the method's phases.
        span: (epochs done before, last epoch); equal where the phase trains nothing.
        begin: Gives the network of this phase from that of the phase before, None for the first.
        hooks: Of the phase's module: penalty, what is done before a step, what is observed.
        groups: Of the phase's module: parameters with learning rates and optimizers of their own;
            parameters in no group are not trained. All of them at the study's rate when None.
        data_part: (index, of): the phase learns from one of so many disjoint shares of the
            training part.
        forward_gflops: GFLOPs of a forward pass on average; counted on the module when None.
        current_gflops: Of the phase's module: GFLOPs of the network that it would come to now, for
            early stopping; those of a forward pass when None.
        describe: Of the phase's module: what `rebuild` needs but weights, as plain JSON values.
        rebuild: Gives the phase's module again from that, to resume a training within the phase;
            where it is None the module of the first phase serves, whose shape it must have.
    """

    name: str
    span: tuple[int, int]
    begin: Callable[[TrainedNetwork | None], TrainedNetwork]
    hooks: Callable[[nn.Module], Hooks] = _no_hooks
    groups: Callable[[nn.Module], Sequence[ParameterGroup]] | None = None
    data_part: tuple[int, int] = (0, 1)
    forward_gflops: Callable[[nn.Module], float] | None = None
    current_gflops: Callable[[nn.Module], Callable[[], float]] | None = None
    describe: Callable[[nn.Module], Json] | None = None
    rebuild: Callable[[Json], nn.Module] | None = None


class Supernet(Protocol):
    """A trained network out of which many others are cut and tried without training.

    Attributes:
        patterns: How many configurations are tried.
    """

    patterns: int

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """(multiply-adds, share of the budgets that they take) of a configuration's network."""

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """(metrics on the validation part, multiply-adds) of a configuration's network."""


Options = TypeVar("Options", bound=Strict)


def _check_nothing(study: Study, budgets: Sequence[str]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Options]):
    """A way in which tasks share; an entry of `gatesearch.methods.METHODS`.

    Attributes:
        name: In studies, on the command line and in stores.
        paper: Where it is from.
        year: When.
        summary: One line.
        build: Module from encoders, heads and options; its submodule `heads` holds the heads, all
            else counts as backbone.
        options: The table `[NAME]` of a study.
        start: Where its weights start: `study` = as `model.init` says, `stl` = always from the
            trained single-task networks; the option `start` overrides it.
        start_of: What a network starts from: another one that is trained first, once per seed;
            None leaves it to `start`.
        training: How it is trained, from the study; `Study.training_of` its name when None.
        phases: How its network is trained; one phase for all epochs when None.
        space: What a search chooses; empty where there is nothing to search.
        bounds: What a budget can bound for its trials.
        unmeasured_parts: Parts (`NetworkSpec.part`) that are no networks to compare.
        supernet: From a request for a trial, and budgets, the supernet out of which its
            configurations are tried before trials are trained; None where every trial trains alone.
        default_trials: How many trials its search has where nobody says.
        baseline: Whether it can be trained without a search.
        unpriced: Why its cost is not known before training; empty where it is.
        read: Reads its kept network from a folder; built anew and filled with weights when None.
        as_compact: Its network as a compact network that computes the same, for export; None where
            there is none.
        latency_table: Measures its layers, for budgets of latency.
        check: Raises `UsageError` where study and budgets (as written) do not suit it.
        built_on: Another method whose options it follows too.
    """

    name: str
    paper: str
    year: int
    summary: str
    build: Callable[[Parts, Options], nn.Module]
    options: type[Options]
    start: Literal["study", "stl"] = "study"
    start_of: Callable[[NetworkSpec, Study], NetworkSpec | None] | None = None
    training: Callable[[Study], TrainingSpec] | None = None
    phases: Callable[[TrainingRequest], Sequence[Phase]] | None = None
    space: Space = field(default_factory=dict)
    bounds: frozenset[Measure] = frozenset()
    unmeasured_parts: frozenset[str] = frozenset()
    supernet: Callable[[TrainingRequest, Sequence[Budget]], Supernet] | None = None
    default_trials: int = 20
    baseline: bool = True
    unpriced: str = ""
    read: Callable[[Path], nn.Module] | None = None
    as_compact: Callable[[nn.Module, Study], nn.Module] | None = None
    latency_table: Callable[[Study, Runtime], LatencyTable] | None = None
    check: Callable[[Study, Sequence[str]], None] = _check_nothing
    built_on: str = ""
