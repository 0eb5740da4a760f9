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

from gatesearch.cost import count_macs
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.models import InterroGate, build_model, needs_stl
from gatesearch.pruning import CompactNet, extract, load_compact, save_compact, sharing
from gatesearch.pruning.compact import write_atomic
from gatesearch.results import Result
from gatesearch.search.bench import Bench, Emit
from gatesearch.search.space import taus
from gatesearch.training import History, evaluate, recompute_statistics, train

MODEL = "model"


@dataclass(frozen=True)
class Candidate:
    """What to train: plain values, so that any worker could.

    Attributes:
        method: A name in `gatesearch.models.METHODS`.
        seed: Of initialisation, data order, augmentation.
        trial: Number in the store; None for a baseline.
        params: `lambda_s` and `tau.<task>` of a trial.
    """

    method: str
    seed: int
    trial: int | None = None
    params: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people: `trial 3`, `mtl`."""
        return self.method if self.trial is None else f"trial {self.trial}"

    def folder(self, out: Path) -> Path:
        """Where its network is kept."""
        if self.trial is not None:
            return out / "trials" / f"{self.trial:04d}"
        return out / "baselines" / f"{self.method}-seed{self.seed}"


def train_candidate(
    candidate: Candidate, bench: Bench, *, out: Path, stl: Result | None, emit: Emit
) -> Result:
    """Train one network, keep it in its folder, measure it on the validation part.

    Args:
        candidate: What to train.
        bench: Data, tasks, runtime.
        out: The store's folder.
        stl: Result of the single-task networks of the same seed, for methods that start there.
        emit: Receives progress.

    Raises:
        TrainingError: The training cannot go on.
    """
    study = bench.study
    state = None
    if needs_stl(study, candidate.method):
        if stl is None:
            raise UsageError(f"{candidate.method} starts from stl, which is not trained yet")
        state = _stl_state(candidate, out)
    model = build_model(study, candidate.method, seed=candidate.seed, stl=state)
    forward = count_macs(model, bench.input_shape, cross_check=False).gflops
    model = bench.runtime.place(model)
    if isinstance(model, InterroGate):
        network, history, extra = _train_supernet(model, candidate, bench, emit)
        layers, shares = sharing(model)
    else:
        network, extra, layers, shares = model, 0.0, (), {}
        history = _fit(model, candidate, bench, emit)
    emit({"event": "log", "message": f"{candidate.label}: measuring"})
    recompute_statistics(
        network, bench.train, runtime=bench.runtime, batch_size=study.training.batch_size
    )
    cost = count_macs(network, bench.input_shape)
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
    inherited = stl if stl is not None and state is not None else Result("stl", candidate.seed)
    return Result(
        method=candidate.method,
        seed=candidate.seed,
        trial=candidate.trial,
        params=dict(candidate.params),
        metrics={"validation": metrics},
        gflops=cost.gflops,
        backbone_gflops=cost.backbone_gflops,
        params_m=cost.params_m,
        uncounted=dict(cost.uncounted),
        epochs=history.epochs,
        train_seconds=history.seconds + inherited.train_seconds,
        train_images=history.images + inherited.train_images,
        train_pflops=3 * forward * history.images / 1e6 + extra + inherited.train_pflops,
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
    candidate = Candidate(result.method, result.seed, result.trial)
    stem = candidate.folder(out) / MODEL
    if result.method == "interrogate":
        return bench.runtime.place(load_compact(stem)).eval()
    model = build_model(bench.study, result.method, seed=result.seed, pretrained=False)
    model.load_state_dict(_state(stem.with_suffix(".safetensors")))
    return bench.runtime.place(model).eval()


def _train_supernet(
    supernet: InterroGate, candidate: Candidate, bench: Bench, emit: Emit
) -> tuple[nn.Module, History, float]:
    """(compact network, history, PFLOPs beside the supernet's training)."""
    gates = bench.study.interrogate
    weight = candidate.params["lambda_s"]
    tau = torch.tensor(taus(candidate.params, supernet.tasks)).to(bench.runtime.device)
    cold, hot = gates.temperature[1], gates.temperature[0]

    def anneal(share: float) -> None:
        supernet.temperature = hot * (cold / hot) ** share

    def observe() -> dict[str, float]:
        hard = supernet.hard_gates().values()
        counts = torch.stack([on.float().mean(1) for on in hard]).mean(0).tolist()
        opened = {f"open.{task}": share for task, share in zip(supernet.tasks, counts, strict=True)}
        with torch.no_grad():
            return {"sparsity": float(supernet.sparsity(tau)), **opened}

    history = _fit(
        supernet,
        candidate,
        bench,
        emit,
        penalty=lambda: weight * supernet.sparsity(tau),
        before_step=anneal,
        observe=observe,
        rate=lambda name: gates.lr if name.startswith(("alpha.", "beta.")) else 1.0,
    )
    compact = bench.runtime.place(extract(supernet))
    extra = 0.0
    forward = count_macs(compact, bench.input_shape, cross_check=False).gflops
    if gates.finetune_epochs:
        spec = bench.study.training
        tuned = _fit(
            compact,
            candidate,
            bench,
            emit,
            suffix=" fine-tuning",
            training=spec.model_copy(
                update={"epochs": gates.finetune_epochs, "lr": spec.lr * gates.finetune_lr}
            ),
        )
        extra = 3 * forward * tuned.images / 1e6
        # The supernet's own forward cost does not apply to these images: they are in `extra`.
        history.seconds += tuned.seconds
        history.epochs += tuned.epochs
        for name, values in tuned.curves.items():
            history.curves.setdefault(name, []).extend(values)
    return compact, history, extra


def _fit(
    model: nn.Module,
    candidate: Candidate,
    bench: Bench,
    emit: Emit,
    *,
    suffix: str = "",
    training: Any = None,
    **options: Any,
) -> History:
    spec = training or bench.study.training_of(candidate.method)

    def report(epoch: int, values: Mapping[str, float]) -> None:
        losses = " ".join(
            f"{name.removeprefix('loss.')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss.")
        )
        emit(
            {
                "event": "progress",
                "stage": candidate.label + suffix,
                "done": epoch,
                "total": spec.epochs,
                "unit": "epochs",
                "message": losses,
                **values,
            }
        )

    return train(
        model,
        bench.train,
        bench.tasks,
        weights=bench.weights,
        spec=spec,
        runtime=bench.runtime,
        seed=candidate.seed,
        on_epoch=report,
        **options,
    )


def _keep(network: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, CompactNet):
        save_compact(network, folder / MODEL)
        return
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomic((folder / MODEL).with_suffix(".safetensors"), save(state))


def _stl_state(candidate: Candidate, out: Path) -> dict[str, Tensor]:
    folder = Candidate("stl", candidate.seed).folder(out)
    return _state((folder / MODEL).with_suffix(".safetensors"))


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
