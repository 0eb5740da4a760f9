"""The core types of methods on one page. Read this before you write a method.

A method is a way in which tasks share a network. Its `Method` states how the network is built, in
which phases it is trained, which hyperparameters a search chooses, which weights training starts
from, and how the trained network is read again. `gatesearch.trials` trains any method by these
statements alone.

A new method is one file in this package and one line in `METHODS`. This one trains the heads of a
multi-task network longer than its encoder, and a search chooses by how much:

    def phases(request):
        epochs = request.study.training_of("late_heads").epochs
        joint = round(float(request.spec.params["joint"]) * epochs)

        def start(before):
            parts = parts_of(request.study, seed=request.spec.seed, stl=request.start_state())
            return TrainedNetwork(MultiTaskNet(parts))

        def heads(network):
            return [ParameterGroup(tuple(network.heads.parameters()))]

        return [
            Phase(name="joint", span=(0, joint), begin=start),
            Phase(name="heads", span=(joint, epochs), begin=lambda before: before, groups=heads),
        ]

    LATE_HEADS = Method(
        name="late_heads", paper="none", year=2026, summary="one encoder, heads trained longer",
        build=lambda parts, options: MultiTaskNet(parts),
        options=NoOptions,
        phases=phases,
        space={"joint": Range(0.2, 1.0)},
        baseline=False,
    )
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, Cost, LatencyTable
from gatesearch.cost.budget import Measure
from gatesearch.events import Emit
from gatesearch.methods.space import Space
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts
from gatesearch.strict import Strict
from gatesearch.study import Study, TrainingSpec
from gatesearch.tasks import Task
from gatesearch.training import FrameData, Hooks, ParameterGroup, Runtime, Turn
from gatesearch.training.augment import augment
from gatesearch.training.split_data import Batch
from gatesearch.training.weightings import Entry

Json = Mapping[str, object]


class NoOptions(Strict):
    """The options of a method that has none."""


@dataclass(frozen=True)
class Stopwatch:
    """Measured latency for budgets that bound it.

    Attributes:
        runtime: Device and memory format on which latency is measured.
        table: Measured seconds of the layers of the networks that are searched.
    """

    runtime: Runtime
    table: LatencyTable


@dataclass(frozen=True)
class Context:
    """A study with its data opened and its device chosen; made once per run and process.

    Attributes:
        study: The definition.
        tasks: Task name -> task.
        train: The official training part without the validation part.
        validation: Frames taken from the official training part; every choice is made on them.
        test: The official test part.
        runtime: Device, precision and memory format of training.
        data: Description of the opened data for the store: pack, its SHA-256, number of frames.
        stopwatch: Measured latency; None where no budget bounds latency.
    """

    study: Study
    tasks: dict[str, Task]
    train: FrameData
    validation: FrameData
    test: FrameData
    runtime: Runtime
    data: dict[str, object]
    stopwatch: Stopwatch | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Task -> ω_t, the weight of its loss in the study."""
        return {name: spec.weight for name, spec in self.study.tasks.items()}

    def augmented(self, training: TrainingSpec) -> Callable[[Batch], Tensor]:
        """Make a function that augments a batch's images as training does.

        Its random draws are the same for every function that this returns.

        Returns:
            Batch -> images (B, 3, H, W) on the device.
        """
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
    """A network at the start of a phase, between two phases, or after the last one.

    Attributes:
        module: Image (B, 3, H, W) -> task -> (B, channels, H, W).
        layers: Names of the gated layers, input first, for the report; empty for methods without.
        sharing: Task -> per gated layer, the share of its live channels that the task's own stream
            computes.
        gates: The gate pattern that the network was cut by, in the form of `Result.gates`, without
            open gates whose channels nothing reads; empty for methods without gates.
    """

    module: nn.Module
    layers: tuple[str, ...] = ()
    sharing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    gates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingRequest:
    """A request to a method: plan the training of one network.

    Attributes:
        spec: The network to train.
        context: Study, data, tasks and device.
        start: Reads the state dict of the network that training starts from (`Method.start_of`);
            None where it starts from no other network.
        emit: Receives events for the log.
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
        """Read the state dict of the network that training starts from; None without one."""
        return None if self.start is None else self.start()


def _no_hooks(module: nn.Module) -> Hooks:
    return Hooks()


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of the training of a network.

    All phases of a network share one learning rate schedule, so `span` counts epochs over all of
    them. Functions that take a module take the module of this phase.

    Attributes:
        name: Name in checkpoints; unique among the phases of a network.
        span: (epochs done before the phase, last epoch of the phase). They are equal for a phase
            that changes the network without training it.
        begin: Makes the network of this phase from that of the phase before (None in the first).
        hooks: Module -> functions that the trainer calls: a penalty in the loss, an action before
            each step, values to record after each epoch.
        groups: Module -> groups of parameters, each with its learning rate and optimizer.
            Parameters in no group are not trained. When None, all are trained at the study's rate.
        turns: Module -> turns that every epoch of the phase consists of: in each, other parameters
            learn, from other frames. They stand in place of `groups` and `data_part`.
        weighting: Balances the tasks in this phase in place of the weighting that the run asks for,
            where the method is itself a way to combine gradients.
        training: Training settings of this phase; those of the method when None.
        data_part: (index, n): the phase trains on part `index` of n disjoint parts of the training
            data. (0, 1) is all of it.
        forward_gflops: Module -> mean GFLOPs of a forward pass in training, from which the cost of
            training is computed; counted on the module when None.
        current_gflops: Module -> function that returns the GFLOPs of the network that training
            would end with now, which early stopping compares; those of a forward pass when None.
        describe: Module -> plain JSON values from which `rebuild` makes a module of the same shape.
        rebuild: Makes the phase's module from the values of `describe`; its weights are then read
            from a checkpoint. When None, the module of the first phase is made instead, which must
            have the same shape.
    """

    name: str
    span: tuple[int, int]
    begin: Callable[[TrainedNetwork | None], TrainedNetwork]
    hooks: Callable[[nn.Module], Hooks] = _no_hooks
    groups: Callable[[nn.Module], Sequence[ParameterGroup]] | None = None
    turns: Callable[[nn.Module], Sequence[Turn]] | None = None
    weighting: Entry | None = None
    training: TrainingSpec | None = None
    data_part: tuple[int, int] = (0, 1)
    forward_gflops: Callable[[nn.Module], float] | None = None
    current_gflops: Callable[[nn.Module], Callable[[], float]] | None = None
    describe: Callable[[nn.Module], Json] | None = None
    rebuild: Callable[[Json], nn.Module] | None = None


class Supernet(Protocol):
    """A trained network from which many smaller networks can be cut and measured without training.

    A configuration (values of the parameters in `Method.space`) determines one such network.

    Attributes:
        patterns: Number of configurations that are tried.
        most_patterns: Number up to which more are tried if fewer than the wanted networks are
            within the budgets; the same as `patterns` if the study states that.
    """

    patterns: int
    most_patterns: int

    def network(self, params: Mapping[str, float | str]) -> Hashable:
        """Identify a configuration's network: equal for two configurations of one network."""

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """Compute the cost of a configuration's network.

        Returns:
            (multiply-adds, largest share of any budget that it takes); the share is at most 1
            within the budgets.
        """

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """Measure a configuration's network on the validation part.

        Returns:
            (task -> metric, multiply-adds).
        """


Options = TypeVar("Options", bound=Strict)


def _one_part(study: Study) -> int:
    return 1


def _check_nothing(study: Study, budgets: Sequence[str]) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Method(Generic[Options]):
    """A way in which tasks share a network; an entry of `gatesearch.methods.METHODS`.

    Only the first six attributes are required.

    Attributes:
        name: Name in studies, on the command line and in stores.
        paper: Authors and venue of its paper, as `Liu et al., CVPR`.
        year: Year of that paper.
        summary: One line for `gatesearch methods`.
        build: (encoders and heads, options) -> module. Its submodule `heads` must hold the heads;
            the cost of everything else counts as the backbone's.
        options: Type of the table `[NAME]` of a study; `NoOptions` for a method without options.
        settle: (study, options) -> options with their meaning in that study: what they name outside
            of it, such as a file, is read into them, and refused with a `UsageError` if it does not
            fit. None where they are complete in themselves.
        start: Initial weights: `study` = as `model.init` of the study says, `stl` = always those of
            the trained single-task networks. A study can override it with the method's option
            `start`.
        start_of: (network, study) -> the network that is trained first, once per seed, and whose
            weights the given one starts from, or None. `start` decides when this is None.
        training: Study -> training settings; `Study.training_of(name)` when None.
        phases: Request -> phases of the training, in order; one phase of all epochs when None.
        space: Hyperparameters that a search chooses; empty for a method that cannot be searched.
        bounds: Measures of cost that a budget can bound for its trials.
        bounds_tasks: True if a budget can bound what one task alone costs of its trials' networks.
        least_cost: Study -> cost of the cheapest network that its search can find, down to which
            budgets are accepted; that of the multi-task network when None.
        unmeasured_parts: Start networks (`NetworkSpec.part`) whose cost and metrics are not
            measured, because they are not comparable with other networks.
        supernet: (request for a trial, budgets) -> supernet on which configurations are tried to
            choose those that trials train; None for a method whose trials draw their parameters.
        default_trials: Number of trials of its search where the run gives none.
        most_trials: Study -> (most trials that its search can have, the option that raises this
            number); None for a method whose trials have no such bound.
        baseline: True if the method can be trained without a search.
        balances: True if it combines the tasks' losses or gradients by a rule of its own in all
            phases (`Phase.weighting`). As a baseline it is then trained once, whatever weightings
            a study compares.
        unpriced: Reason why its cost is not known before training; empty if it is known. A function
            of the study where options decide.
        expected_cost: (network, context) -> cost of a network that computes more for some images
            than for others: the mean over the validation part. When None, the network is run on one
            image, for which it must do what it does for any other.
        data_parts: Study -> number of disjoint parts into which it divides the training frames
            (`Turn.data_part`, `Phase.data_part`), each of which must have a batch.
        details: (network, part of the data, context) -> task -> further figures of the network on
            that part by name, for reports, beside those of the task's kind.
        read: Reads a trained network from the path of its files without their suffix. When None,
            the network is built by `build` and its weights are loaded.
        as_compact: (network, study) -> compact network that computes the same, for export; None if
            there is no such network.
        latency_table: (study, runtime) -> measured seconds of the layers of its networks; needed if
            `bounds` has latency.
        check: Raises `UsageError` if the method cannot be searched in this study under these
            budgets, which are given as the user wrote them.
        outline: What happens in each phase, in order, for `gatesearch methods`.
        effort: Cost of its training in multiples of a multi-task network's, in words and with T for
            the number of tasks, as `1`, or `T encoders, then 1`.
        ours: What the paper leaves open and was chosen here, or differs from it; one sentence.
        built_on: Name of another method whose options its results depend on too.
    """

    name: str
    paper: str
    year: int
    summary: str
    build: Callable[[Parts, Options], nn.Module]
    options: type[Options]
    settle: Callable[[Study, Options], Options] | None = None
    start: Literal["study", "stl"] = "study"
    start_of: Callable[[NetworkSpec, Study], NetworkSpec | None] | None = None
    training: Callable[[Study], TrainingSpec] | None = None
    phases: Callable[[TrainingRequest], Sequence[Phase]] | None = None
    space: Space = field(default_factory=dict)
    bounds: frozenset[Measure] = frozenset()
    bounds_tasks: bool = False
    least_cost: Callable[[Study], Cost] | None = None
    unmeasured_parts: frozenset[str] = frozenset()
    supernet: Callable[[TrainingRequest, Sequence[Budget]], Supernet] | None = None
    default_trials: int = 20
    most_trials: Callable[[Study], tuple[int, str]] | None = None
    baseline: bool = True
    balances: bool = False
    unpriced: str | Callable[[Study], str] = ""
    expected_cost: Callable[[nn.Module, Context], Cost] | None = None
    data_parts: Callable[[Study], int] = _one_part
    details: Callable[[nn.Module, FrameData, Context], Mapping[str, Mapping[str, float]]] | None = (
        None
    )
    read: Callable[[Path], nn.Module] | None = None
    as_compact: Callable[[nn.Module, Study], nn.Module] | None = None
    latency_table: Callable[[Study, Runtime], LatencyTable] | None = None
    check: Callable[[Study, Sequence[str]], None] = _check_nothing
    outline: tuple[str, ...] = ("all epochs",)
    effort: str = "1"
    ours: str = ""
    built_on: str = ""
