"""Train a network through the phases of its method, from the start or the newest checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial

from torch import nn

from gatesearch.cost import count_macs
from gatesearch.events import Progress, Warned
from gatesearch.methods import (
    Context,
    NetworkSpec,
    Phase,
    TrainedNetwork,
    TrainingRequest,
    build_model,
    method_of,
    training_of,
)
from gatesearch.results import MULTI_TASK
from gatesearch.training import (
    Checkpoint,
    Checkpoints,
    History,
    Hooks,
    PhaseCheckpoints,
    Ranks,
    Trainer,
    TrainingData,
)
from gatesearch.training.weightings import WEIGHTINGS, Basis, Entry, Weighting, build_weighting
from gatesearch.trials.costs import costs
from gatesearch.trials.early_stopping import Stopper

# Prefix of the parameters `weight.<task>` of a trial that tries weights of losses.
WEIGHT = "weight."


@dataclass
class Training:
    """The state of a network's training between two phases.

    Attributes:
        network: The network after the last phase, or at the start of the next.
        history: Curves, epochs, seconds and images of its phases so far; those of a network that
            it started from are not included.
        pflops: Training cost of these phases, FLOPs / 1e15.
    """

    network: TrainedNetwork
    history: History = field(default_factory=History)
    pflops: float = 0.0


@dataclass(frozen=True)
class TrainingControls:
    """Checkpoints, early stopping and processes of a network's training; its method ignores them.

    Attributes:
        checkpoints: Keeps checkpoints of the training; None for no checkpoints.
        stopper: Stops a trial early; None for a network that is never stopped.
        ranks: The processes that train the network together.
    """

    checkpoints: Checkpoints | None = None
    stopper: Stopper | None = None
    ranks: Ranks = field(default_factory=Ranks)


def run_phases(request: TrainingRequest, controls: TrainingControls) -> Training:
    """Train a network through all phases of its method.

    If there is a checkpoint, training goes on in its phase. A trial that is stopped early does not
    begin its next phase.

    Raises:
        TrainingError: The training cannot go on.
        Preempted: The training was asked to stop, and has kept a checkpoint.
    """
    phases = phases_of(request)
    saved = None if controls.checkpoints is None else controls.checkpoints.newest()
    first = 0
    training: Training | None = None
    if saved is not None:
        first = [phase.name for phase in phases].index(saved.state["phase"])
        training = _resumed(phases, first, saved)
    for i, phase in enumerate(phases[first:], start=first):
        resume = saved if i == first else None
        if resume is None:
            network = phase.begin(None if training is None else training.network)
            training = Training(network) if training is None else replace(training, network=network)
        assert training is not None
        _place(training.network, request.context)
        if phase.span[0] < phase.span[1]:
            checkpoints = None
            if controls.checkpoints is not None:
                context = _context(phase, training)
                checkpoints = PhaseCheckpoints(
                    controls.checkpoints, phase.name, context, resume=resume
                )
            _train(request, phase, training, checkpoints, controls)
        if controls.stopper is not None and controls.stopper.verdict:
            break
    assert training is not None
    _place(training.network, request.context)
    return training


def phases_of(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the phases: those of the method, or one of all epochs for a method that gives none."""
    method = method_of(request.spec.method)
    if method.phases is not None:
        return method.phases(request)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        spec = request.spec
        state = request.start_state()
        return TrainedNetwork(build_model(request.study, spec.method, seed=spec.seed, stl=state))

    epochs = training_of(request.study, request.spec.trained_as).epochs
    return [Phase(name="whole", span=(0, epochs), begin=begin)]


def _place(network: TrainedNetwork, context: Context) -> None:
    network.module = context.runtime.place(network.module)


def _context(phase: Phase, training: Training) -> dict[str, object]:
    """Describe, as plain JSON values, what `_resumed` needs beside weights to go on from here."""
    network = training.network
    return {
        "module": None if phase.describe is None else phase.describe(network.module),
        "history": asdict(training.history),
        "pflops": training.pflops,
        "layers": list(network.layers),
        "sharing": {task: list(shares) for task, shares in network.sharing.items()},
        "gates": {node: list(rows) for node, rows in network.gates.items()},
    }


def _resumed(phases: Sequence[Phase], index: int, saved: Checkpoint) -> Training:
    """Make the training that `_context` described; the trainer then reads the checkpoint's weights.

    Args:
        phases: Phases of the training.
        index: Index of the checkpoint's phase.
        saved: The checkpoint.
    """
    context = saved.state["context"]
    rebuild = phases[index].rebuild
    module = phases[0].begin(None).module if rebuild is None else rebuild(context["module"])
    network = TrainedNetwork(
        module,
        tuple(context["layers"]),
        {task: tuple(shares) for task, shares in context["sharing"].items()},
        # Checkpoints of earlier versions have none.
        {node: tuple(rows) for node, rows in context.get("gates", {}).items()},
    )
    return Training(network, History(**context["history"]), context["pflops"])


def _train(
    request: TrainingRequest,
    phase: Phase,
    training: Training,
    checkpoints: PhaseCheckpoints | None,
    controls: TrainingControls,
) -> None:
    """Train the network through one phase, and add its history and PFLOPs to the training's."""
    spec, context, module = request.spec, request.context, training.network.module
    label = spec.label
    training_spec = phase.training or training_of(context.study, spec.trained_as)
    entry = phase.weighting or WEIGHTINGS[spec.weighting]
    gflops, passes = _step_cost(phase, entry, module, context)

    def report(epoch: int, values: Mapping[str, float]) -> None:
        losses = " ".join(
            f"{name.removeprefix('loss.')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss.")
        )
        request.emit(Progress(label, epoch, training_spec.epochs, "epochs", losses, values))

    hooks = phase.hooks(module)
    if controls.stopper is not None:
        current = None if phase.current_gflops is None else phase.current_gflops(module)
        hooks = _judged(hooks, controls.stopper, module, current or (lambda: gflops))
    history = trainer_of(
        request, phase, module, hooks=hooks, checkpoints=checkpoints, ranks=controls.ranks,
        on_epoch=report,
    ).run()  # fmt: skip
    training.history.follow(history)
    training.pflops += (3 + passes) * gflops * history.images / 1e6


def trainer_of(
    request: TrainingRequest,
    phase: Phase,
    module: nn.Module,
    *,
    hooks: Hooks,
    checkpoints: PhaseCheckpoints | None = None,
    ranks: Ranks | None = None,
    on_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Trainer:
    """Make the trainer of a phase.

    Args:
        request: The request.
        phase: The phase.
        module: The network that it began with, on the device.
        hooks: What the phase adds to plain training.
        checkpoints: See `Trainer`.
        ranks: See `Trainer`.
        on_epoch: See `Trainer`.
    """
    spec, context = request.spec, request.context
    index, parts = phase.data_part
    return Trainer(
        module,
        TrainingData(
            context.train if parts == 1 else context.train.part(index, parts),
            context.validation,
            context.tasks,
        ),
        weighting=_weighting(spec, context)
        if phase.weighting is None
        else phase.weighting.build(Basis(context.weights, spec.seed, context.runtime.device)),
        spec=phase.training or training_of(context.study, spec.trained_as),
        runtime=context.runtime,
        seed=spec.seed,
        span=phase.span,
        groups=None if phase.groups is None else phase.groups(module),
        turns=() if phase.turns is None else phase.turns(module),
        hooks=hooks,
        checkpoints=checkpoints,
        ranks=ranks,
        on_epoch=on_epoch,
        tell=lambda message: request.emit(Warned(f"{spec.label}: {message}")),
    )


def _step_cost(
    phase: Phase, entry: Entry, module: nn.Module, context: Context
) -> tuple[float, float]:
    """Compute (GFLOPs of a forward pass, such passes that the weighting adds to a step).

    All but the heads counts as shared by the tasks. Where a phase states what its passes cost, the
    heads are those of a multi-task network.
    """
    tasks = len(context.tasks)
    if phase.forward_gflops is None:
        cost = count_macs(module, context.input_shape, cross_check=False)
        return cost.gflops, entry.passes(tasks, cost.backbone_gflops / cost.gflops)
    gflops, shared = phase.forward_gflops(module), 0.0
    if entry.passes(tasks, 0.0) != entry.passes(tasks, 1.0):
        (plain,) = costs(context.study, (MULTI_TASK,)).values()
        shared = max(0.0, 1 - (plain.gflops - plain.backbone_gflops) / gflops)
    return gflops, entry.passes(tasks, shared)


def _judged(
    hooks: Hooks, stopper: Stopper, module: nn.Module, gflops: Callable[[], float]
) -> Hooks:
    """Extend a phase's hooks so that the trial is judged after each epoch, and may be stopped."""

    def observe(epoch: int) -> Mapping[str, float]:
        values = {} if hooks.observe is None else dict(hooks.observe(epoch))
        return values | stopper.judge(epoch, module, gflops())

    def halt() -> bool:
        return bool(stopper.verdict) or (hooks.halt is not None and hooks.halt())

    return replace(hooks, observe=observe, halt=halt)


def _weighting(spec: NetworkSpec, context: Context) -> Weighting:
    """Build the weighting of a network's losses or gradients; every phase begins with a new one.

    In a trial that tries weights of losses, task t has the weight ω_t f_t / mean(f), with f_t the
    trial's parameter `weight.<task>`.
    """
    build = partial(
        build_weighting, spec.weighting, context.weights, seed=spec.seed,
        device=context.runtime.device,
    )  # fmt: skip
    factors = {
        name.removeprefix(WEIGHT): float(value)
        for name, value in spec.params.items()
        if name.startswith(WEIGHT)
    }
    if not factors:
        return build(options=context.study.balance.get(spec.weighting, {}))
    mean = sum(factors.values()) / len(factors)
    return build(
        options={"weights": {task: f / mean * context.weights[task] for task, f in factors.items()}}
    )
