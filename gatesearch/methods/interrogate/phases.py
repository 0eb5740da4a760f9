"""How the phases of a network are trained: plain networks, gates, nested gates, fine-tuning."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, Cost, PatternCost, count_macs
from gatesearch.methods.context import Context, Emit
from gatesearch.methods.early_stopping import Stopper
from gatesearch.methods.interrogate.nested import Nested
from gatesearch.models import GatedSupernet
from gatesearch.search.space import taus
from gatesearch.study import Study
from gatesearch.training import History, train
from gatesearch.training.weightings import WEIGHTINGS, build_weighting


def spans(study: Study, *, one_shot: bool) -> tuple[int, int, int]:
    """Epochs at which InterroGate's warm-up, its gates and its fine-tuning end."""
    epochs = study.training_of("interrogate", one_shot=one_shot).epochs
    spec = study.interrogate
    if one_shot:
        own = {"warmup": study.one_shot.warmup, "finetune": study.one_shot.finetune}
        spec = spec.model_copy(update=own)
    return (*spec.phases(epochs), epochs)


def train_gates(
    supernet: GatedSupernet,
    params: Mapping[str, float | str],
    bench: Context,
    *,
    budgets: tuple[Budget, ...],
    judge: Stopper | None = None,
    **options: Any,
) -> tuple[History, float]:
    """The phase of the gates under λ_s and τ_t, or under budgets: (history, PFLOPs).

    Args:
        supernet: What is trained.
        params: `lambda_s`, `tau.<task>` and `regulariser`.
        bench: Data, tasks, runtime.
        budgets: Bounds of the regulariser `flops`.
        judge: May stop it early.
        options: `span`, `method`, `seed`, `label`, `phase`, `ranks`, `emit`, `one_shot`,
            `weighting` and `balance` of `fit`.
    """
    judging = judge is not None and bench.study.search.stop != "none"
    cost = pattern_cost(supernet, bench) if budgets or judging else None
    gates = bench.study.interrogate
    weight = float(params["lambda_s"])
    tau = torch.tensor(taus(params, supernet.tasks)).to(bench.runtime.device)
    cold, hot = gates.temperature[1], gates.temperature[0]
    regulariser = params.get("regulariser", bench.study.search.regulariser[0])
    risen = 1.0

    def anneal(share: float) -> None:
        nonlocal risen
        supernet.temperature = hot * (cold / hot) ** share
        risen = min(1.0, share / gates.ramp) if gates.ramp else 1.0

    def observe(epoch: int) -> dict[str, float]:
        hard = supernet.hard_gates().values()
        counts = torch.stack([on.float().mean(1) for on in hard]).mean(0).tolist()
        opened = {f"open.{task}": share for task, share in zip(supernet.tasks, counts, strict=True)}
        with torch.no_grad():
            seen = {"sparsity": float(supernet.sparsity(tau)), **opened}
        if judge is not None and cost is not None:
            gflops = 2e-9 * float(cost.macs(supernet.hard_gates()))
            seen |= judge.look(epoch, supernet, gflops)
        return seen

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        if regulariser == "hinge":
            return weight * risen * supernet.sparsity(tau)
        assert cost is not None
        return weight * risen * cost.budget_hinge(supernet.open_probability(), budgets)

    return fit(
        supernet, bench, penalty=penalty, before_step=anneal, observe=observe,
        halt=lambda: judge is not None and bool(judge.verdict), gate_rate=gates.lr, **options,
    )  # fmt: skip


def train_nested(supernet: GatedSupernet, bench: Context, **options: Any) -> tuple[History, float]:
    """One training for every budget: (history, PFLOPs); see `Nested`.

    Every step but the richest also learns from what the supernet predicts with all gates open.
    """
    spec, runtime = bench.study.one_shot, bench.runtime
    nested = Nested(supernet, ends=spec.ends, seed=options["seed"])

    def distill(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        if nested.richest or not spec.distillation:
            return torch.zeros((), device=image.device)
        with torch.no_grad(), runtime.autocast():
            teacher = supernet.plain(image, own=True)
        distances = [
            bench.weights[name] * task.distillation_loss(outputs[name], teacher[name].float())
            for name, task in bench.tasks.items()
        ]
        return spec.distillation * torch.stack(distances).sum()

    least, most, whole = (
        _cost(bench, module).gflops
        for module in (_End(supernet, False), _End(supernet, True), supernet)
    )
    teaching = (1 - spec.ends) * most / 3 if spec.distillation else 0.0
    forward = spec.ends * (least + most) + (1 - 2 * spec.ends) * whole + teaching
    return fit(
        nested, bench, penalty=distill, before_step=lambda share: nested.draw(),
        gate_rate=bench.study.interrogate.lr, forward=forward, **options,
    )  # fmt: skip


def fit(
    model: nn.Module,
    bench: Context,
    *,
    method: str,
    seed: int,
    label: str,
    emit: Emit,
    gate_rate: float = 1.0,
    forward: float | None = None,
    one_shot: bool = False,
    judge: Stopper | None = None,
    weighting: str = "uniform",
    balance: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[History, float]:
    """Train on the device: (history, PFLOPs).

    Args:
        model: The network.
        bench: Data, tasks, runtime.
        method: Whose training of the study it is.
        seed: Of data order and augmentation.
        label: What progress is called.
        emit: Receives it.
        gate_rate: Multiple of the learning rate for gates and mixes.
        forward: GFLOPs of a forward pass on average; counted when None.
        one_shot: Whether it is part of the one training for the whole front.
        judge: May stop it early, if nothing else is observed.
        weighting: Of losses or gradients, which begins anew with every phase.
        balance: Its options.
        options: Of `train`.
    """
    spec = bench.study.training_of(method, one_shot=one_shot)
    gflops, shared = forward, 0.0
    if gflops is None:
        cost = _cost(bench, model)
        gflops, shared = cost.gflops, cost.backbone_gflops / cost.gflops
    more = WEIGHTINGS[weighting].passes(len(bench.tasks), shared)

    def report(epoch: int, values: Mapping[str, float]) -> None:
        losses = " ".join(
            f"{name.removeprefix('loss.')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss.")
        )
        emit(
            {
                "event": "progress",
                "stage": label,
                "done": epoch,
                "total": spec.epochs,
                "unit": "epochs",
                "message": losses,
                **values,
            }
        )

    if judge is not None:
        options["observe"] = lambda epoch: judge.look(epoch, model, gflops)
        options["halt"] = lambda: bool(judge.verdict)

    def rate(name: str) -> float:
        return gate_rate if {"alpha", "beta"} & set(name.split(".")) else 1.0

    history = train(
        bench.runtime.place(model),
        bench.train,
        bench.tasks,
        weighting=build_weighting(
            weighting, bench.weights, seed=seed, device=bench.runtime.device, options=balance
        ),
        held_out=bench.validation,
        spec=spec,
        runtime=bench.runtime,
        seed=seed,
        rate=rate,
        on_epoch=report,
        tell=lambda message: emit({"event": "warning", "message": f"{label}: {message}"}),
        **options,
    )
    return history, (3 + more) * gflops * history.images / 1e6


def pattern_cost(supernet: GatedSupernet, bench: Context) -> PatternCost:
    """Cost of a supernet's gate patterns on the study's images, latency with the stopwatch's."""
    table = None if bench.stopwatch is None else bench.stopwatch.table
    return PatternCost.of(supernet, bench.input_shape, latency=table)


class _End(nn.Module):
    """A supernet with all gates open or closed."""

    def __init__(self, supernet: GatedSupernet, own: bool) -> None:
        super().__init__()
        self.supernet, self.own = supernet, own

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.supernet.plain(image, own=self.own)


def _cost(bench: Context, model: nn.Module) -> Cost:
    return count_macs(model, bench.input_shape, cross_check=False)
