"""One network from specification to result: build, train, prune, count, evaluate."""

import copy
import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gatesearch.cost import count_macs, median_latency
from gatesearch.methods import build_model
from gatesearch.methods.context import Context, Emit
from gatesearch.methods.early_stopping import Stopper
from gatesearch.methods.interrogate.gate_selection import harden, opened
from gatesearch.methods.interrogate.phases import fit, spans, train_gates, train_nested
from gatesearch.methods.specification import NetworkSpec, start_of
from gatesearch.models import GatedSupernet
from gatesearch.pruning import CompactNet, extract, sharing
from gatesearch.pruning.description import Description
from gatesearch.results import Result
from gatesearch.search.space import weight_factors
from gatesearch.study import Study
from gatesearch.training import (
    Checkpoint,
    Checkpoints,
    History,
    Phase,
    Ranks,
    evaluate,
    recompute_statistics,
)
from gatesearch.trials.kept_networks import keep_network, load_network, network_state

_TUNE = "tune"
ALONE = Ranks()


@dataclass
class TrainedNetwork:
    """What training leaves: a network, and what is known of it without measuring.

    Attributes:
        network: On the device; as it was when a trial was stopped early.
        history: Of its own phases.
        pflops: Likewise.
        layers: Names of the gated layers, where a supernet was pruned.
        sharing: task -> for each of them the share of live channels that are the task's own.
    """

    network: nn.Module
    history: History = field(default_factory=History)
    pflops: float = 0.0
    layers: tuple[str, ...] = ()
    sharing: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def train_network(
    candidate: NetworkSpec,
    bench: Context,
    *,
    out: Path,
    start: Result | None,
    emit: Emit,
    checkpoints: Checkpoints | None = None,
    judge: Stopper | None = None,
    ranks: Ranks = ALONE,
) -> Result:
    """Train one network, keep it in its folder, measure it on the validation part.

    Args:
        candidate: What to train.
        bench: Data, tasks, runtime.
        out: The store's folder.
        start: Result of what it starts from (`starts_from`).
        emit: Receives progress.
        checkpoints: Where training stands, kept now and then; it goes on from the newest.
        judge: May stop a trial early, whose result is then `stopped` and has no network.
        ranks: The processes that train it together, each calling this alike; the first one keeps.

    Raises:
        TrainingError: The training cannot go on.
        Preempted: `checkpoints` was asked to stop.
    """
    history = History()
    if start is not None and start.method == candidate.method:  # its own warm-up
        history = History({name: list(c) for name, c in start.curves.items()}, epochs=start.epochs)
    trained = _trained(candidate, bench, out, emit, checkpoints, judge, ranks)
    history.follow(trained.history)
    measured: dict[str, Any] = {}
    if judge is not None and judge.verdict:
        measured = {"state": "stopped", "reason": judge.verdict}
    else:
        if candidate.role != "supernet":  # which is no network to compare
            emit({"event": "log", "message": f"{candidate.label}: measuring"})
            measured = _measured(trained.network, candidate, bench, emit)
        if ranks.rank == 0:
            keep_network(trained.network, candidate.folder(out))
    reused = start or Result(candidate.method, candidate.seed)
    return Result(
        method=candidate.method,
        seed=candidate.seed,
        trial=candidate.trial,
        weighting=candidate.weighting,
        part=candidate.part,
        budget=candidate.budget,
        params=dict(candidate.params),
        **measured,
        epochs=history.epochs,
        train_seconds=history.seconds + reused.train_seconds,
        train_images=history.images + reused.train_images,
        train_pflops=trained.pflops + reused.train_pflops,
        reused_seconds=reused.train_seconds,
        reused_images=reused.train_images,
        reused_pflops=reused.train_pflops,
        curves=history.curves,
        layers=trained.layers,
        sharing=trained.sharing,
        environment=_environment(bench),
    )


def _measured(
    network: nn.Module, candidate: NetworkSpec, bench: Context, emit: Emit
) -> dict[str, Any]:
    """Cost and validation metrics, as fields of `Result`."""
    size = bench.study.training.batch_size
    options: dict[str, Any] = {"runtime": bench.runtime, "batch_size": size}
    recompute_statistics(network, bench.train, seen=bench.seen(candidate.method), **options)
    cost = count_macs(network, bench.input_shape)
    bounds = [budget for budget in candidate.budgets if budget.measure != "latency"]
    assert all(budget.share(cost) <= 1 for budget in bounds)
    for line in cost.disagreements:
        emit({"event": "warning", "message": f"{candidate.label}: {line}"})
    return {
        "metrics": {"validation": evaluate(network, bench.validation, bench.tasks, **options)},
        "gflops": cost.gflops,
        "backbone_gflops": cost.backbone_gflops,
        "params_m": cost.params_m,
        "uncounted": dict(cost.uncounted),
        "latency_ms": _latency_ms(network, candidate, bench, emit),
    }


def _latency_ms(
    network: nn.Module, candidate: NetworkSpec, bench: Context, emit: Emit
) -> float | None:
    """As it is measured now, where a budget asks for it."""
    limits = [1e3 * b.limit for b in candidate.budgets if b.measure == "latency"]
    if not limits or bench.stopwatch is None:
        return None
    twin = copy.deepcopy(network).float()
    found = 1e3 * median_latency(twin, bench.input_shape, bench.stopwatch.runtime)
    if found > min(limits):
        emit(
            {
                "event": "warning",
                "message": f"{candidate.label}: took {found:.3g} ms now, and was inside "
                f"{min(limits):.3g} ms when it was cut: the device has become slower",
            }
        )
    return found


def measure_on_test(result: Result, bench: Context, *, out: Path) -> dict[str, float]:
    """Metrics of a kept network on the official test part: once, after every choice was made."""
    return evaluate(
        load_network(result, bench, out=out),
        bench.test,
        bench.tasks,
        runtime=bench.runtime,
        batch_size=bench.study.training.batch_size,
    )


def _build(candidate: NetworkSpec, study: Study, out: Path) -> nn.Module:
    """The network of a candidate with its first weights; for a warm-up a multi-task network."""
    start = start_of(candidate, study)
    state = None if start is None else network_state(start, out=out)
    if start is None or start.method == "stl":
        method = "mtl" if candidate.warms_up else candidate.method
        return build_model(study, method, seed=candidate.seed, stl=state)
    supernet = build_model(study, "interrogate", seed=candidate.seed, pretrained=False)
    assert isinstance(supernet, GatedSupernet)
    assert state is not None
    if start.warms_up:
        supernet.clone_streams(state)
    else:
        supernet.load_state_dict(state)
        opened(supernet, candidate.params)
    return supernet


def _trained(
    candidate: NetworkSpec,
    bench: Context,
    out: Path,
    emit: Emit,
    checkpoints: Checkpoints | None,
    judge: Stopper | None,
    ranks: Ranks,
) -> TrainedNetwork:
    """All phases of a candidate, from its first weights or its newest checkpoint."""
    saved = None if checkpoints is None else checkpoints.newest()

    def phase(name: str, context: Mapping[str, Any]) -> Phase | None:
        if checkpoints is None:
            return None
        here = saved is not None and saved.state["phase"] == name
        return Phase(checkpoints, name, context, resume=saved if here else None)

    one_shot = candidate.one_shot or candidate.role.startswith("supernet")
    warmup, gates, end = spans(bench.study, one_shot=one_shot)
    told: dict[str, Any] = {
        "method": candidate.method, "seed": candidate.seed, "label": candidate.label, "emit": emit,
        "ranks": ranks, "weighting": candidate.weighting, "balance": _balance(candidate, bench),
        "one_shot": one_shot,
    }  # fmt: skip
    if saved is not None and saved.state["phase"] == _TUNE:
        trained = _untuned(saved)
    else:
        model = _build(candidate, bench.study, out)
        whole = phase("whole", {})
        if not isinstance(model, GatedSupernet):
            span = (0, warmup) if candidate.warms_up else None
            return TrainedNetwork(model, *fit(model, bench, span=span, phase=whole, **told))
        if candidate.role == "supernet":
            span = (warmup, gates)
            return TrainedNetwork(
                model, *train_nested(model, bench, span=span, phase=whole, **told)
            )
        trained = TrainedNetwork(model)
        if not candidate.one_shot:
            trained.history, trained.pflops = train_gates(
                model, candidate.params, bench, budgets=candidate.budgets, span=(warmup, gates),
                phase=whole, judge=judge, **told,
            )  # fmt: skip
        if judge is not None and judge.verdict:
            return trained
        harden(
            model, bench, budgets=candidate.budgets, tried=candidate.one_shot,
            label=candidate.label, emit=emit,
        )  # fmt: skip
        trained.layers, trained.sharing = sharing(model)
        trained.network = extract(model)
    if gates < end:
        tuned, more = fit(
            trained.network, bench, span=(gates, end), judge=judge,
            phase=phase(_TUNE, _context(trained)), **told,
        )  # fmt: skip
        trained.history.follow(tuned)
        trained.pflops += more
    bench.runtime.place(trained.network)
    return trained


def _balance(candidate: NetworkSpec, bench: Context) -> Mapping[str, Any]:
    """Options of a candidate's weighting."""
    options = bench.study.balance.get(candidate.weighting, {})
    factors = weight_factors(candidate.params)
    if not factors:
        return options
    mean = sum(factors.values()) / len(factors)
    return {"weights": {task: f / mean * bench.weights[task] for task, f in factors.items()}}


def _context(trained: TrainedNetwork) -> dict[str, Any]:
    """What fine-tuning goes on from beside weights, as plain JSON values."""
    assert isinstance(trained.network, CompactNet)
    return {
        "network": trained.network.description.model_dump(mode="json"),
        "history": asdict(trained.history),
        "pflops": trained.pflops,
        "layers": trained.layers,
        "sharing": trained.sharing,
    }


def _untuned(saved: Checkpoint) -> TrainedNetwork:
    """What `_context` described; its weights come with the checkpoint."""
    context = saved.state["context"]
    return TrainedNetwork(
        CompactNet(Description.model_validate(context["network"])),
        History(**context["history"]),
        context["pflops"],
        tuple(context["layers"]),
        {task: tuple(shares) for task, shares in context["sharing"].items()},
    )


def _environment(bench: Context) -> dict[str, str]:
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "torchvision", "optuna", "fvcore", "numpy", "gatesearch")
    }
    return {
        "device": torch.cuda.get_device_name() if bench.runtime.device == "cuda" else _processor(),
        "precision": bench.runtime.precision,
        "memory_format": bench.runtime.memory_format,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    return f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
