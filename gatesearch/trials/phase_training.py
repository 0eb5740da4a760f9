"""A method's phases one after the other, from the first or from the newest checkpoint."""

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
from gatesearch.training.weightings import WEIGHTINGS, Weighting, build_weighting
from gatesearch.trials.early_stopping import Stopper

WEIGHT = "weight."


@dataclass
class Training:
    """Where the training of one network stands between its phases.

    Attributes:
        network: As the last phase left it.
        history: Of its own phases.
        pflops: Likewise.
    """

    network: TrainedNetwork
    history: History = field(default_factory=History)
    pflops: float = 0.0


@dataclass(frozen=True)
class Surroundings:
    """What the training of a network has beside its request.

    Attributes:
        checkpoints: Where trainings are kept now and then; None keeps none.
        stopper: May stop a trial early.
        ranks: The processes that train it together.
    """

    checkpoints: Checkpoints | None = None
    stopper: Stopper | None = None
    ranks: Ranks = field(default_factory=Ranks)


def run_phases(request: TrainingRequest, around: Surroundings) -> Training:
    """Train a network through all phases of its method.

    Raises:
        TrainingError: The training cannot go on.
        Preempted: The checkpoints were asked to stop.
    """
    phases = phases_of(request)
    saved = None if around.checkpoints is None else around.checkpoints.newest()
    first = 0
    training: Training | None = None
    if saved is not None:
        first = [phase.name for phase in phases].index(saved.state["phase"])
        training = _resumed(phases, first, saved)
    for i, phase in enumerate(phases[first:], start=first):
        here = saved if i == first else None
        if here is None:
            network = phase.begin(None if training is None else training.network)
            training = Training(network) if training is None else replace(training, network=network)
        assert training is not None
        _place(training.network, request.context)
        if phase.span[0] < phase.span[1]:
            checkpoints = None
            if around.checkpoints is not None:
                known = _context(phase, training)
                checkpoints = PhaseCheckpoints(around.checkpoints, phase.name, known, resume=here)
            _train(request, phase, training, checkpoints, around)
        if around.stopper is not None and around.stopper.verdict:
            break
    assert training is not None
    _place(training.network, request.context)
    return training


def phases_of(request: TrainingRequest) -> Sequence[Phase]:
    """The phases of a network's method; one for all epochs where the method names none."""
    method = method_of(request.spec.method)
    if method.phases is not None:
        return method.phases(request)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        spec = request.spec
        state = request.start_state()
        return TrainedNetwork(build_model(request.study, spec.method, seed=spec.seed, stl=state))

    epochs = training_of(request.study, request.spec.method).epochs
    return [Phase(name="whole", span=(0, epochs), begin=begin)]


def _place(network: TrainedNetwork, context: Context) -> None:
    network.module = context.runtime.place(network.module)


def _context(phase: Phase, training: Training) -> dict[str, object]:
    """What a training goes on from beside weights, as plain JSON values."""
    network = training.network
    return {
        "module": None if phase.describe is None else phase.describe(network.module),
        "history": asdict(training.history),
        "pflops": training.pflops,
        "layers": list(network.layers),
        "sharing": {task: list(shares) for task, shares in network.sharing.items()},
    }


def _resumed(phases: Sequence[Phase], index: int, saved: Checkpoint) -> Training:
    """The training that `_context` described; its weights come with the checkpoint."""
    context = saved.state["context"]
    rebuild = phases[index].rebuild
    module = phases[0].begin(None).module if rebuild is None else rebuild(context["module"])
    network = TrainedNetwork(
        module,
        tuple(context["layers"]),
        {task: tuple(shares) for task, shares in context["sharing"].items()},
    )
    return Training(network, History(**context["history"]), context["pflops"])


def _train(
    request: TrainingRequest,
    phase: Phase,
    training: Training,
    checkpoints: PhaseCheckpoints | None,
    around: Surroundings,
) -> None:
    """Train the network through one phase, and add history and PFLOPs to those before."""
    spec, context, module = request.spec, request.context, training.network.module
    label = spec.label
    training_spec = training_of(context.study, spec.method)
    gflops, shared = _forward_cost(phase, module, context)
    passes = WEIGHTINGS[spec.weighting].passes(len(context.tasks), shared)

    def report(epoch: int, values: Mapping[str, float]) -> None:
        losses = " ".join(
            f"{name.removeprefix('loss.')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss.")
        )
        request.emit(Progress(label, epoch, training_spec.epochs, "epochs", losses, values))

    hooks = phase.hooks(module)
    if around.stopper is not None:
        now = None if phase.current_gflops is None else phase.current_gflops(module)
        hooks = _judged(hooks, around.stopper, module, now or (lambda: gflops))
    index, of = phase.data_part
    history = Trainer(
        module,
        TrainingData(
            context.train if of == 1 else context.train.part(index, of),
            context.validation,
            context.tasks,
        ),
        weighting=_weighting(spec, context),
        spec=training_spec,
        runtime=context.runtime,
        seed=spec.seed,
        span=phase.span,
        groups=None if phase.groups is None else phase.groups(module),
        hooks=hooks,
        checkpoints=checkpoints,
        ranks=around.ranks,
        on_epoch=report,
        tell=lambda message: request.emit(Warned(f"{label}: {message}")),
    ).run()
    training.history.follow(history)
    training.pflops += (3 + passes) * gflops * history.images / 1e6


def _forward_cost(phase: Phase, module: nn.Module, context: Context) -> tuple[float, float]:
    """(GFLOPs of a forward pass, the part of it that tasks can share)."""
    if phase.forward_gflops is not None:
        return phase.forward_gflops(module), 0.0
    cost = count_macs(module, context.input_shape, cross_check=False)
    return cost.gflops, cost.backbone_gflops / cost.gflops


def _judged(
    hooks: Hooks, stopper: Stopper, module: nn.Module, gflops: Callable[[], float]
) -> Hooks:
    """The hooks of a phase whose trial may be stopped early."""

    def observe(epoch: int) -> Mapping[str, float]:
        own = {} if hooks.observe is None else dict(hooks.observe(epoch))
        return own | stopper.judge(epoch, module, gflops())

    def halt() -> bool:
        return bool(stopper.verdict) or (hooks.halt is not None and hooks.halt())

    return replace(hooks, observe=observe, halt=halt)


def _weighting(spec: NetworkSpec, context: Context) -> Weighting:
    """How the losses or gradients of a network are balanced; begins anew with every phase."""
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
