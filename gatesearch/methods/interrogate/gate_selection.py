"""From learned gates to the pattern that is cut: inside the budgets, rounded for hardware."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gatesearch.cost import (
    Budget,
    PatternCost,
    align_tasks,
    count_macs,
    equalize_layer_shares,
    fit_latency,
    median_latency,
    rounded,
)
from gatesearch.errors import UsageError
from gatesearch.methods.context import Context, Emit
from gatesearch.methods.interrogate.phases import pattern_cost
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.search.space import shares
from gatesearch.training import TrainingError


def opened(
    supernet: GatedSupernet, params: Mapping[str, float | str], *, multiple: int = 1
) -> dict[str, Tensor]:
    """Put a one-shot supernet into the pattern of `share.<task>`: node -> (T, C) bool.

    Args:
        supernet: Its gates are ordered by α.
        params: `share.<task>`.
        multiple: See `rounded`.
    """
    supernet.open_shares(torch.tensor(shares(params, supernet.tasks)))
    gates = supernet.hard_gates()
    if multiple > 1:
        gates = rounded(gates, supernet.logits(), multiple=multiple)
        supernet.set_gates(gates)
    return gates


def harden(
    supernet: GatedSupernet,
    bench: Context,
    *,
    budgets: Sequence[Budget],
    tried: bool,
    label: str,
    emit: Emit,
) -> None:
    """Put a supernet into the hard pattern that its network is cut from.

    Args:
        supernet: With learned gates.
        bench: Of the study; its stopwatch measures latency.
        budgets: All of them hold afterwards.
        tried: Whether the pattern was chosen as it is, which is then kept inside the budgets;
            else it is aligned and spread as the study asks, and budgets are taken up.
        label: Of the network, for the log.
        emit: Is told what rounding costs and wins.

    Raises:
        TrainingError: Not even all gates closed keep to a budget of latency.
    """
    multiple = bench.study.interrogate.round_to
    cost = pattern_cost(supernet, bench) if budgets else None
    alpha = supernet.logits()
    if bench.study.interrogate.align and not tried:
        alpha = align_tasks(alpha, supernet.graph)
    if bench.study.interrogate.spread == "even" and not tried:
        alpha = equalize_layer_shares(alpha, cost)
    learned = {name: (a > 0).detach().cpu() for name, a in alpha.items()}

    def seconds(gates: Mapping[str, Tensor]) -> float:
        assert bench.stopwatch is not None
        supernet.set_gates(gates)
        return median_latency(extract(supernet), bench.input_shape, bench.stopwatch.runtime)

    def fitted(multiple: int) -> dict[str, Tensor]:
        gates = rounded(learned, alpha, multiple=multiple)
        if cost is None or (tried and _inside(gates, cost, budgets, seconds)):
            return gates
        try:
            return fit_latency(alpha, cost, budgets, measure=seconds, multiple=multiple)
        except UsageError as error:  # a device slower than when the budget was accepted
            raise TrainingError(str(error)) from error

    gates = fitted(multiple)
    if multiple > 1:
        _tell(supernet, {1: fitted(1), multiple: gates}, bench, label, emit)
    supernet.set_gates(gates)


def _inside(
    gates: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    seconds: Callable[[Mapping[str, Tensor]], float],
) -> bool:
    counted = [budget for budget in budgets if budget.measure != "latency"]
    limits = [budget.limit for budget in budgets if budget.measure == "latency"]
    if counted and float(cost.share(gates, counted)) > 1:
        return False
    return not limits or seconds(gates) <= min(limits)


def _tell(
    supernet: GatedSupernet,
    patterns: Mapping[int, Mapping[str, Tensor]],
    bench: Context,
    label: str,
    emit: Emit,
) -> None:
    """What rounding costs and wins: FLOPs and latency of both networks."""
    runtime = bench.runtime if bench.stopwatch is None else bench.stopwatch.runtime
    shown = []
    for multiple, gates in patterns.items():
        supernet.set_gates(gates)
        network = extract(supernet)
        gflops = count_macs(network, bench.input_shape, cross_check=False).gflops
        ms = 1e3 * median_latency(network, bench.input_shape, runtime)
        shown.append(f"to {multiple} {gflops:.4g} GFLOPs, {ms:.3g} ms")
    emit({"event": "log", "message": f"{label}: channels rounded {'; '.join(shown)}"})
