"""Train one network, count its cost, measure it, and keep it."""

import copy
import platform
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gatesearch.cost import count_macs, macs_of_tasks, median_latency
from gatesearch.events import Emit, Log, Warned
from gatesearch.methods import (
    Context,
    NetworkSpec,
    TrainingRequest,
    at_width,
    method_of,
    training_of,
)
from gatesearch.plugins import used_by
from gatesearch.results import Result
from gatesearch.training import Figures, FrameData, History, measure, recompute_statistics
from gatesearch.trials.kept_networks import keep_network, load_network, network_state
from gatesearch.trials.phase_training import TrainingControls, run_phases
from gatesearch.version import __version__, version_of

_ALONE = TrainingControls()


def train_network(
    spec: NetworkSpec,
    context: Context,
    *,
    out: Path,
    start: Result | None,
    emit: Emit,
    controls: TrainingControls = _ALONE,
) -> Result:
    """Train one network, measure it on the validation part, and keep it in its folder.

    Args:
        spec: The network to train.
        context: Study, data, tasks and device.
        out: The store's folder.
        start: Result of the network that it starts from (`start_of`); None without one.
        emit: Receives events.
        controls: Checkpoints, early stopping, and the processes that train the network together.
            Each of these processes calls this function; the first keeps the network.

    Returns:
        The result. A trial that was stopped early has the state `stopped` and keeps no network.

    Raises:
        TrainingError: The training cannot go on.
        Preempted: The training was asked to stop, and has kept a checkpoint.
    """
    if spec.width != 1:
        context = replace(context, study=at_width(context.study, spec.width))
    request = TrainingRequest(
        spec, context, None if start is None else lambda: network_state(start, out=out), emit
    )
    history = History()
    # A start of the same method, such as a warm-up, is a part of this training.
    if start is not None and start.method == spec.method:
        history = History({name: list(c) for name, c in start.curves.items()}, epochs=start.epochs)
    training = run_phases(request, controls)
    history.follow(training.history)
    network = training.network
    verdict = "" if controls.stopper is None else controls.stopper.verdict
    reused = start or Result(spec.method, spec.seed)
    result = Result(
        method=spec.method,
        seed=spec.seed,
        trial=spec.trial,
        weighting=spec.weighting,
        state="stopped" if verdict else "complete",
        reason=verdict,
        part=spec.part,
        budget=spec.budget,
        params=dict(spec.params),
        epochs=history.epochs,
        train_seconds=history.seconds + reused.train_seconds,
        train_images=history.images + reused.train_images,
        train_pflops=training.pflops + reused.train_pflops,
        reused_seconds=reused.train_seconds,
        reused_images=reused.train_images,
        reused_pflops=reused.train_pflops,
        curves=history.curves,
        layers=network.layers,
        sharing=network.sharing,
        gates=network.gates,
        width=spec.width,
        control="" if spec.control is None else spec.control.kind,
        of=None if spec.control is None else spec.control.of,
        environment=_environment(context),
    )
    if verdict:
        return result
    if spec.part not in method_of(spec.method).unmeasured_parts:
        emit(Log(f"{spec.label}: measuring"))
        result = _measured(result, network.module, spec, context, emit)
    if controls.ranks.rank == 0:
        result = replace(result, files=keep_network(network.module, spec.folder(out)))
    return result


def measure_on_test(result: Result, context: Context, *, out: Path) -> Figures:
    """Measure a trained network on the official test part: once, after every choice was made."""
    network = load_network(result, context, out=out)
    return _figures(network, context.test, result.method, context)


def _figures(network: nn.Module, frames: FrameData, method: str, context: Context) -> Figures:
    """Measure a network on a part of the data, with the figures that its method adds."""
    figures = measure(
        network,
        frames,
        context.tasks,
        runtime=context.runtime,
        batch_size=context.study.training.batch_size,
    )
    details = method_of(method).details
    if details is None:
        return figures
    added = details(network, frames, context)
    further = {
        task: {**figures.details.get(task, {}), **added.get(task, {})} for task in context.tasks
    }
    return replace(figures, details={task: own for task, own in further.items() if own})


def _measured(
    result: Result, network: nn.Module, spec: NetworkSpec, context: Context, emit: Emit
) -> Result:
    size = context.study.training.batch_size
    recompute_statistics(
        network, context.train, runtime=context.runtime, batch_size=size,
        augmented=context.augmented(training_of(context.study, spec.trained_as)),
    )  # fmt: skip
    expected_cost = method_of(spec.method).expected_cost
    if expected_cost is None:
        cost = count_macs(network, context.input_shape)
    else:
        cost = expected_cost(network, context)
        emit(Log(f"{spec.label}: its cost is the mean over the images of the validation part"))
    of_tasks = macs_of_tasks(network, context.input_shape, whole=cost.macs)
    cost = replace(cost, task_macs=of_tasks)
    counted = [budget for budget in spec.budgets if budget.measure != "latency"]
    assert all(budget.share(cost) <= 1 for budget in counted)
    for line in cost.disagreements:
        emit(Warned(f"{spec.label}: {line}"))
    figures = _figures(network, context.validation, spec.method, context)
    return replace(
        result,
        metrics={"validation": figures.metrics},
        details={"validation": figures.details},
        gflops=cost.gflops,
        backbone_gflops=cost.backbone_gflops,
        params_m=cost.params_m,
        task_gflops={tasks: 2e-9 * macs for tasks, macs in of_tasks.items()},
        latency_ms=_latency_ms(network, spec, context, emit),
        uncounted=dict(cost.uncounted),
    )


def _latency_ms(
    network: nn.Module, spec: NetworkSpec, context: Context, emit: Emit
) -> float | None:
    """Measure the milliseconds for one image; None where no budget bounds latency."""
    limits = [1e3 * b.limit for b in spec.budgets if b.measure == "latency"]
    if not limits or context.stopwatch is None:
        return None
    twin = copy.deepcopy(network).float()
    ms = 1e3 * median_latency(twin, context.input_shape, context.stopwatch.runtime)
    if ms > min(limits):
        emit(
            Warned(
                f"{spec.label}: took {ms:.3g} ms now, and was inside {min(limits):.3g} ms when it "
                "was cut: the device has become slower"
            )
        )
    return ms


def _environment(context: Context) -> dict[str, str]:
    versions = {
        name: version_of(name) for name in ("torch", "torchvision", "optuna", "fvcore", "numpy")
    }
    runtime = context.runtime
    plugins = ", ".join(map(str, used_by(context.study)))
    return {
        "device": torch.cuda.get_device_name() if runtime.device == "cuda" else _processor(),
        "precision": runtime.precision,
        "memory_format": runtime.memory_format,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions,
        "gatesearch": __version__,
        **({"plugins": plugins} if plugins else {}),
    }


def _processor() -> str:
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
