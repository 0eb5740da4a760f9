"""One network from specification to result: build, train, prune, count, evaluate."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gatesearch.cost import Budget, PatternCost, count_macs, name_of, project
from gatesearch.errors import StudyRefusedError
from gatesearch.models import MTL, STL, InterroGate, build_model, needs_stl
from gatesearch.pruning import CompactNet, extract, load_compact, save_compact, sharing
from gatesearch.pruning.compact import write_atomic
from gatesearch.results import Result
from gatesearch.search.bench import Bench, Emit
from gatesearch.search.space import taus
from gatesearch.study import Study
from gatesearch.training import History, evaluate, recompute_statistics, train

MODEL = "model"
TENSORS = ".safetensors"


@dataclass(frozen=True)
class Candidate:
    """What to train: plain values, so that any worker could.

    Attributes:
        method: A name in `gatesearch.models.METHODS`.
        seed: Of initialisation, data order, augmentation.
        trial: Number in the store; None for a baseline.
        params: `lambda_s`, `tau.<task>` and `regulariser` of a trial.
        budgets: Upper bounds on the cost of a trial's network.

    A candidate of InterroGate without a trial is the multi-task warm-up of its trials.
    """

    method: str
    seed: int
    trial: int | None = None
    params: Mapping[str, float | str] = field(default_factory=dict)
    budgets: tuple[Budget, ...] = ()

    @property
    def label(self) -> str:
        """For people: `trial 3`, `mtl`."""
        if self.trial is not None:
            return f"trial {self.trial}"
        return "warm-up" if self.method == "interrogate" else self.method

    def folder(self, out: Path) -> Path:
        """Where its network is kept."""
        if self.trial is not None:
            return out / "trials" / f"{self.trial:04d}"
        if self.method == "interrogate":
            return out / "warmups" / f"seed{self.seed}"
        return out / "baselines" / f"{self.method}-seed{self.seed}"


def starts_from(candidate: Candidate, study: Study) -> Candidate | None:
    """Whose trained network a candidate's begins with; None where its weights are drawn."""
    if candidate.trial is not None and _phases(study)[0]:
        return Candidate(candidate.method, candidate.seed)
    if needs_stl(study, candidate.method):
        return Candidate("stl", candidate.seed)
    return None


def train_candidate(
    candidate: Candidate, bench: Bench, *, out: Path, start: Result | None, emit: Emit
) -> Result:
    """Train one network, keep it in its folder, measure it on the validation part.

    Args:
        candidate: What to train.
        bench: Data, tasks, runtime.
        out: The store's folder.
        start: Result of what it starts from (`starts_from`).
        emit: Receives progress.

    Raises:
        TrainingError: The training cannot go on.
    """
    study = bench.study
    model = _build(candidate, study, out)
    history = History()
    if start is not None and start.method == candidate.method:  # its own warm-up
        history = History({name: list(c) for name, c in start.curves.items()}, epochs=start.epochs)
    layers: tuple[str, ...] = ()
    shares: Mapping[str, tuple[float, ...]] = {}
    if isinstance(model, InterroGate):
        network, own, pflops = _train_supernet(model, candidate, bench, emit)
        layers, shares = sharing(model)
    else:
        warmup = (0, _phases(study)[0]) if candidate.method == "interrogate" else None
        network = model
        own, pflops = _fit(model, candidate, bench, emit, span=warmup)
    history.follow(own)
    emit({"event": "log", "message": f"{candidate.label}: measuring"})
    recompute_statistics(
        network, bench.train, runtime=bench.runtime, batch_size=study.training.batch_size
    )
    cost = count_macs(network, bench.input_shape)
    assert all(budget.share(cost) <= 1 for budget in candidate.budgets)
    for line in cost.disagreements:
        emit({"event": "warning", "message": f"{candidate.label}: {line}"})
    metrics = evaluate(
        network,
        bench.validation,
        bench.tasks,
        runtime=bench.runtime,
        batch_size=study.training.batch_size,
    )
    _keep(network, candidate.folder(out))
    reused = start or Result(candidate.method, candidate.seed)
    return Result(
        method=candidate.method,
        seed=candidate.seed,
        trial=candidate.trial,
        budget=name_of(candidate.budgets),
        params=dict(candidate.params),
        metrics={"validation": metrics},
        gflops=cost.gflops,
        backbone_gflops=cost.backbone_gflops,
        params_m=cost.params_m,
        uncounted=dict(cost.uncounted),
        epochs=history.epochs,
        train_seconds=history.seconds + reused.train_seconds,
        train_images=history.images + reused.train_images,
        train_pflops=pflops + reused.train_pflops,
        reused_seconds=reused.train_seconds,
        reused_images=reused.train_images,
        reused_pflops=reused.train_pflops,
        curves=history.curves,
        layers=layers,
        sharing=shares,
        environment=_environment(bench),
    )


def measure_on_test(result: Result, bench: Bench, *, out: Path) -> dict[str, float]:
    """Metrics of a kept network on the official test part: once, after every choice was made."""
    return evaluate(
        load_network(result, bench, out=out),
        bench.test,
        bench.tasks,
        runtime=bench.runtime,
        batch_size=bench.study.training.batch_size,
    )


def load_network(result: Result, bench: Bench, *, out: Path) -> nn.Module:
    """The kept network of a result, on the device, in evaluation mode."""
    return bench.runtime.place(kept_network(result, bench.study, out=out)).eval()


def kept_network(result: Result, study: Study, *, out: Path) -> nn.Module:
    """The kept network of a result, on the processor, in evaluation mode."""
    candidate = Candidate(result.method, result.seed, result.trial)
    stem = candidate.folder(out) / MODEL
    if result.method == "interrogate":
        return load_compact(stem)
    model = build_model(study, result.method, seed=result.seed, pretrained=False)
    model.load_state_dict(_state(stem.with_suffix(TENSORS)))
    return model.eval()


def as_compact(network: nn.Module, study: Study) -> nn.Module:
    """Multi-task and single-task networks as the compact networks they are the ends of.

    Any other network is given back as it is.
    """
    if not isinstance(network, (MTL, STL)):
        return network
    supernet = build_model(study, "interrogate", pretrained=False)
    assert isinstance(supernet, InterroGate)
    own = isinstance(network, STL)
    (supernet.take_streams if own else supernet.clone_streams)(network.state_dict())
    supernet.set_gates({n: torch.full_like(a, own).bool() for n, a in supernet.logits().items()})
    return extract(supernet)


def _phases(study: Study) -> tuple[int, int]:
    """(last epoch of the warm-up, last of the gates) of an InterroGate network."""
    return study.interrogate.phases(study.training_of("interrogate").epochs)


def _build(candidate: Candidate, study: Study, out: Path) -> nn.Module:
    """The network of a candidate with its first weights; for a warm-up a multi-task network."""
    start = starts_from(candidate, study)
    state = None if start is None else _state((start.folder(out) / MODEL).with_suffix(TENSORS))
    if candidate.trial is not None and state is not None and _phases(study)[0]:
        supernet = build_model(study, "interrogate", seed=candidate.seed, pretrained=False)
        assert isinstance(supernet, InterroGate)
        supernet.clone_streams(state)
        return supernet
    warmup = candidate.method == "interrogate" and candidate.trial is None
    return build_model(study, "mtl" if warmup else candidate.method, seed=candidate.seed, stl=state)


def _train_supernet(
    supernet: InterroGate, candidate: Candidate, bench: Bench, emit: Emit
) -> tuple[nn.Module, History, float]:
    """The phase of the gates, extraction, fine-tuning: (compact network, history, PFLOPs)."""
    gates = bench.study.interrogate
    weight = float(candidate.params["lambda_s"])
    pattern_cost = PatternCost.of(supernet, bench.input_shape) if candidate.budgets else None
    tau = torch.tensor(taus(candidate.params, supernet.tasks)).to(bench.runtime.device)
    cold, hot = gates.temperature[1], gates.temperature[0]

    risen = 1.0

    def anneal(share: float) -> None:
        nonlocal risen
        supernet.temperature = hot * (cold / hot) ** share
        risen = min(1.0, share / gates.ramp) if gates.ramp else 1.0

    def observe() -> dict[str, float]:
        hard = supernet.hard_gates().values()
        counts = torch.stack([on.float().mean(1) for on in hard]).mean(0).tolist()
        opened = {f"open.{task}": share for task, share in zip(supernet.tasks, counts, strict=True)}
        with torch.no_grad():
            return {"sparsity": float(supernet.sparsity(tau)), **opened}

    regulariser = candidate.params.get("regulariser", bench.study.search.regulariser[0])

    def penalty() -> Tensor:
        if regulariser == "hinge":
            return weight * risen * supernet.sparsity(tau)
        assert pattern_cost is not None
        return weight * risen * pattern_cost.overrun(supernet.open_probability(), candidate.budgets)

    _, last = phases = _phases(bench.study)
    history, pflops = _fit(
        supernet,
        candidate,
        bench,
        emit,
        span=phases,
        penalty=penalty,
        before_step=anneal,
        observe=observe,
        rate=lambda name: gates.lr if name.startswith(("alpha.", "beta.")) else 1.0,
    )
    if pattern_cost is not None:
        supernet.set_gates(project(dict(supernet.logits()), pattern_cost, candidate.budgets))
    compact = extract(supernet)
    epochs = bench.study.training_of(candidate.method).epochs
    if last < epochs:
        tuned, more = _fit(compact, candidate, bench, emit, span=(last, epochs))
        history.follow(tuned)
        pflops += more
    return bench.runtime.place(compact), history, pflops


def _fit(
    model: nn.Module, candidate: Candidate, bench: Bench, emit: Emit, **options: Any
) -> tuple[History, float]:
    """Train on the device: (history, PFLOPs)."""
    spec = bench.study.training_of(candidate.method)
    forward = count_macs(model, bench.input_shape, cross_check=False).gflops

    def report(epoch: int, values: Mapping[str, float]) -> None:
        losses = " ".join(
            f"{name.removeprefix('loss.')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss.")
        )
        emit(
            {
                "event": "progress",
                "stage": candidate.label,
                "done": epoch,
                "total": spec.epochs,
                "unit": "epochs",
                "message": losses,
                **values,
            }
        )

    history = train(
        bench.runtime.place(model),
        bench.train,
        bench.tasks,
        weights=bench.weights,
        spec=spec,
        runtime=bench.runtime,
        seed=candidate.seed,
        on_epoch=report,
        **options,
    )
    return history, 3 * forward * history.images / 1e6


def _keep(network: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, CompactNet):
        save_compact(network, folder / MODEL)
        return
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomic((folder / MODEL).with_suffix(TENSORS), save(state))


def _state(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StudyRefusedError(
            f"{path} is missing or damaged ({error}), and the store counts on it; put it back from "
            "a backup, or begin anew in another --out folder"
        ) from error


def _environment(bench: Bench) -> dict[str, str]:
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
