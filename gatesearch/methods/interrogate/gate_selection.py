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
from gatesearch.events import Log
from gatesearch.methods.base import TrainingRequest
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.methods.space import task_values
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.training import TrainingError


def apply_open_shares(
    supernet: GatedSupernet, params: Mapping[str, float | str], *, multiple: int = 1
) -> dict[str, Tensor]:
    """Put a one-shot supernet into the pattern of `share.<task>`: node -> (T, C) bool.

    Args:
        supernet: Its gates are ordered by α.
        params: `share.<task>`.
        multiple: See `rounded`.
    """
    supernet.open_shares(torch.tensor(task_values(params, "share", supernet.tasks)))
    gates = supernet.hard_gates()
    if multiple > 1:
        gates = rounded(gates, supernet.logits(), multiple=multiple)
        supernet.set_gates(gates)
    return gates


def select_gates(
    supernet: GatedSupernet,
    request: TrainingRequest,
    options: InterroGateOptions,
    cost: PatternCost | None,
    *,
    tried: bool,
) -> None:
    """Put a supernet into the hard pattern that its network is cut from.

    Args:
        supernet: With learned gates.
        request: Of the trial, whose budgets all hold afterwards; the log is told what rounding
            costs and wins.
        options: Alignment, spread and rounding.
        cost: Of the supernet's patterns; needed where there are budgets.
        tried: Whether the pattern was chosen as it is, which is then kept inside the budgets;
            else it is aligned and spread as the options ask, and budgets are taken up.

    Raises:
        TrainingError: Not even all gates closed keep to a budget of latency.
    """
    context, budgets, multiple = request.context, request.spec.budgets, options.round_to
    alpha = supernet.logits()
    if options.align and not tried:
        alpha = align_tasks(alpha, supernet.graph)
    if options.spread == "even" and not tried:
        alpha = equalize_layer_shares(alpha, cost)
    learned = {name: (a > 0).detach().cpu() for name, a in alpha.items()}

    def seconds(gates: Mapping[str, Tensor]) -> float:
        assert context.stopwatch is not None
        supernet.set_gates(gates)
        return median_latency(extract(supernet), context.input_shape, context.stopwatch.runtime)

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
        _tell_rounding(supernet, {1: fitted(1), multiple: gates}, request)
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


def _tell_rounding(
    supernet: GatedSupernet, patterns: Mapping[int, Mapping[str, Tensor]], request: TrainingRequest
) -> None:
    """Log what rounding costs and wins: FLOPs and latency of both networks."""
    context = request.context
    runtime = context.runtime if context.stopwatch is None else context.stopwatch.runtime
    shown = []
    for multiple, gates in patterns.items():
        supernet.set_gates(gates)
        network = extract(supernet)
        gflops = count_macs(network, context.input_shape, cross_check=False).gflops
        ms = 1e3 * median_latency(network, context.input_shape, runtime)
        shown.append(f"to {multiple} {gflops:.4g} GFLOPs, {ms:.3g} ms")
    request.emit(Log(f"{request.spec.label}: channels rounded {'; '.join(shown)}"))
