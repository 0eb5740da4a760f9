"""Turn learned gates into the hard pattern of the pruned network, within budgets and rounded.

A pattern states for each gated node, task and channel whether the gate is open: the task then
computes the channel in its own stream, and else reads the shared one.
"""

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
    name_of,
    rounded,
)
from gatesearch.cost.projection import LEAST
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
    """Open the share `share.<task>` of each task's gates in a one-shot supernet.

    Args:
        supernet: The supernet; of a task's gates in all layers, those of the highest α are opened.
        params: `share.<task>` -> share of open gates in [0, 1].
        multiple: Numbers of channels are rounded to multiples of this; see `rounded`.

    Returns:
        Gated node -> (T, C) bool, True where a gate is open.
    """
    supernet.open_shares(torch.tensor(task_values(params, "share", supernet.tasks)))
    gates = supernet.hard_gates()
    if multiple > 1:
        gates = rounded(gates, supernet.logits(), multiple=multiple, units=supernet.units)
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
    """Set a supernet's gates to the hard pattern of the network that is cut from it.

    With rounding, FLOPs and latency without and with it are logged; with gates for whole heads, the
    share of the budgets if it is below `LEAST`.

    Args:
        supernet: A supernet with learned gates.
        request: Request of the trial; the pattern keeps to all of its budgets.
        options: Alignment, spread and rounding of gates.
        cost: Cost of the supernet's patterns; needed where there are budgets.
        tried: True if the pattern of the gates was already measured and chosen: it is changed only
            by rounding, and where it exceeds a budget. Otherwise it is aligned and spread as
            `options` say, and then made as large as the budgets allow.

    Raises:
        TrainingError: Even with all gates closed, the latency exceeds its budget.
    """
    context, budgets, multiple = request.context, request.spec.budgets, options.round_to
    alpha = supernet.logits() if tried else ordered_logits(supernet, options, cost)
    learned = {name: (a > 0).detach().cpu() for name, a in alpha.items()}

    def seconds(gates: Mapping[str, Tensor]) -> float:
        assert context.stopwatch is not None
        supernet.set_gates(gates)
        return median_latency(extract(supernet), context.input_shape, context.stopwatch.runtime)

    def fitted(multiple: int) -> dict[str, Tensor]:
        gates = rounded(learned, alpha, multiple=multiple, units=supernet.units)
        if cost is None or (tried and _keeps_to(gates, cost, budgets, seconds)):
            return gates
        try:
            return fit_latency(alpha, cost, budgets, measure=seconds, multiple=multiple)
        except UsageError as error:  # The device is slower than when the budget was accepted.
            raise TrainingError(str(error)) from error

    gates = fitted(multiple)
    if multiple > 1:
        _log_rounding(supernet, {1: fitted(1), multiple: gates}, request)
    if cost is not None and options.granularity == "head" and not tried:
        _log_share(gates, cost, request)
    supernet.set_gates(gates)


def ordered_logits(
    supernet: GatedSupernet, options: InterroGateOptions, cost: PatternCost | None
) -> dict[str, Tensor]:
    """Return gated node -> (T, C) α, aligned and spread as the options say.

    Args:
        supernet: A supernet with learned gates.
        options: Alignment and spread of gates.
        cost: Cost of the supernet's patterns; None where there is no budget.
    """
    alpha = supernet.logits()
    if options.align:
        alpha = align_tasks(alpha, supernet.graph, supernet.units)
    if options.spread == "even":
        alpha = equalize_layer_shares(alpha, cost, supernet.units)
    return alpha


def _keeps_to(
    gates: Mapping[str, Tensor],
    cost: PatternCost,
    budgets: Sequence[Budget],
    seconds: Callable[[Mapping[str, Tensor]], float],
) -> bool:
    """Tell whether a pattern keeps to all budgets; its latency is measured only where needed."""
    counted = [budget for budget in budgets if budget.measure != "latency"]
    limits = [budget.limit for budget in budgets if budget.measure == "latency"]
    if counted and float(cost.share(gates, counted)) > 1:
        return False
    return not limits or seconds(gates) <= min(limits)


def _log_share(gates: Mapping[str, Tensor], cost: PatternCost, request: TrainingRequest) -> None:
    """Log the share of the budgets that a pattern takes, if it is below `LEAST`."""
    counted = [budget for budget in request.spec.budgets if budget.measure != "latency"]
    share = float(cost.share(gates, counted)) if counted else 1.0
    if share < LEAST:
        request.emit(
            Log(
                f"{request.spec.label}: {share:.1%} of {name_of(counted)} taken up, as near as "
                "gates of whole heads allow"
            )
        )


def _log_rounding(
    supernet: GatedSupernet, patterns: Mapping[int, Mapping[str, Tensor]], request: TrainingRequest
) -> None:
    """Log FLOPs and latency of patterns, given by the multiple that they are rounded to."""
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
