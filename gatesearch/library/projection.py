"""Open and close the gates of a trained supernet until its compact network uses up a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from gatesearch.cost import (
    Budget,
    Cost,
    PatternCost,
    count_macs,
    fit_latency,
    measure_layers,
    measure_of,
    median_latency,
    parse_budget,
)
from gatesearch.cost.budget import task_of
from gatesearch.errors import UsageError
from gatesearch.methods.interrogate.gate_selection import ordered_logits
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.models import GatedSupernet
from gatesearch.pruning import extract
from gatesearch.pruning.extract import not_a_supernet
from gatesearch.pruning.subnetwork import known_tasks
from gatesearch.results import MULTI_TASK, SINGLE_TASK
from gatesearch.study.validation import validated
from gatesearch.training import Runtime, resolve_runtime

Shape = tuple[int, int, int, int]


def project(
    net: GatedSupernet,
    budgets: str | Sequence[str],
    *,
    size: tuple[int, int] | None = None,
    round_to: int = 1,
    align: bool = False,
    spread: Literal["learned", "even"] = "learned",
) -> float:
    """Open and close gates until the compact network takes 98 to 100 % of a budget.

    Gates are closed, lowest logit per multiply-add first, or opened, highest first. Afterwards
    `gs.extract(net)` gives that network. The learned logits α of `net` are replaced by +1 (open)
    and -1 (closed): to cut networks of several budgets from one training, project a
    `copy.deepcopy(net)` for each.

    Args:
        net: A network of `gs.InterroGate`, trained or not.
        budgets: One budget, or several that hold together, each a number with a unit as on the
            command line: `892G` (FLOPs, 2 per multiply-add), `446GMAC`, `20M` (parameters), `12ms`
            (for one image on the device of `net`), `1.3xMTL`, `0.8xSTL` (multiples of the cost with
            all gates closed, or open). Heads are included.
        size: (H, W) of the image for which cost is counted, pixels; that of the last image which
            `net` was called with when None.
        round_to: Numbers of channels are rounded to multiples of this. The share can then be below
            98 %, as it can with gates for whole attention heads, which are not rounded.
        align: True to make all tasks open the same channels, as many each as it learned.
        spread: `even` opens the same share of each task's gates in every layer.

    Returns:
        The largest share of any budget that the compact network takes, at most 1. A latency is
        measured anew for it, and noise can then take it beyond 1.

    Raises:
        UsageError: A text that is no budget, a budget that no pattern of gates can keep to, or that
            all gates open do not use up; or a head whose cost cannot be counted. `net` is not
            changed.

    >>> import torch
    >>> from gatesearch import InterroGate, encoder
    >>> small = encoder("resnet18", width=0.1, output_stride=32)
    >>> net = InterroGate(small, {"mask": torch.nn.Conv2d(small.channels, 1, 1),
    ...                           "age": lambda features: features.mean((1, 2, 3))})
    >>> 0.98 <= project(net, "1.5xMTL", size=(64, 64)) <= 1
    True
    """
    if not isinstance(net, GatedSupernet):
        raise not_a_supernet("project", net)
    given = {"round_to": round_to, "align": align, "spread": spread}
    options: InterroGateOptions = validated(InterroGateOptions, given, where="project")
    texts = budget_texts(budgets)
    if not texts:
        raise UsageError("project needs a budget, found none; give one, such as 1.3xMTL")
    shape = image_shape(net, size)
    timed = "latency" in [measure_of(text) for text in texts]
    runtime = replace(resolve_runtime("fp32", "auto"), device=_device(net).type)
    table = measure_layers(net, shape, runtime) if timed else None
    tasks = [task for text in texts if (task := task_of(text))]
    known = known_tasks(tasks, net.tasks) if tasks else ()
    cost = PatternCost.of(net, shape, latency=table, tasks=known)
    closed = {name: torch.zeros_like(gates) for name, gates in net.hard_gates().items()}
    ends = costs_of_ends(net, cost)
    parsed = [
        parse_budget(
            text,
            mtl=ends[MULTI_TASK],
            stl=ends[SINGLE_TASK],
            latency=None if table is None else table.ends,
            alone={task: float(own.macs(closed)) for task, own in cost.alone.items()},
        )
        for text in texts
    ]
    return apply_budgets(net, parsed, cost, options, shape=shape, runtime=runtime)


def budget_texts(budgets: object) -> tuple[str, ...]:
    """List the texts of one or several budgets.

    Raises:
        UsageError: They are no texts.
    """
    texts = (budgets,) if isinstance(budgets, str) else budgets
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            f"budgets must be a text or a list of texts, such as '1.3xMTL', found {budgets!r:.100}"
        )
    return tuple(texts)


def apply_budgets(
    net: GatedSupernet,
    budgets: Sequence[Budget],
    cost: PatternCost,
    options: InterroGateOptions,
    *,
    shape: Shape,
    runtime: Runtime,
) -> float:
    """Set a supernet's gates to a pattern that uses up budgets; see `project`.

    Args:
        net: The supernet.
        budgets: The budgets, at least one.
        cost: Cost of its patterns, with measured layers where a budget bounds latency.
        options: Alignment, spread and rounding of gates.
        shape: (1, 3, H, W) of the image.
        runtime: Device and memory format on which latency is measured.

    Returns:
        The largest share of any budget.
    """
    alpha = ordered_logits(net, options, cost)
    learned = {name: parameter.detach().clone() for name, parameter in net.alpha.items()}
    threshold = net.get_buffer("threshold").clone()

    def seconds(gates: Mapping[str, Tensor]) -> float:
        net.set_gates(gates)
        return median_latency(extract(net), shape, runtime)

    try:
        gates = fit_latency(alpha, cost, budgets, measure=seconds, multiple=options.round_to)
    except BaseException:
        with torch.no_grad():
            for name, parameter in learned.items():
                net.alpha[name].copy_(parameter)
            net.get_buffer("threshold").copy_(threshold)
        raise
    counted = [budget for budget in budgets if budget.measure != "latency"]
    shares = [seconds(gates) / b.limit for b in budgets if b.measure == "latency"]
    if counted:
        shares.append(float(cost.share(gates, counted)))
    net.set_gates(gates)
    return max(shares)


def costs_of_ends(net: GatedSupernet, cost: PatternCost) -> dict[str, Cost]:
    """Compute the cost with all gates closed, `mtl`, and open, `stl`: the range of budgets."""
    return {
        name: _cost(cost, {n: torch.full(g.shape, is_open) for n, g in net.hard_gates().items()})
        for name, is_open in ((MULTI_TASK, False), (SINGLE_TASK, True))
    }


def image_shape(net: GatedSupernet, size: tuple[int, int] | None) -> Shape:
    """Return the shape of the image for which cost is counted, (1, 3, H, W).

    Args:
        net: The supernet; `gs.InterroGate` remembers the size of the last image.
        size: (H, W); None for that of the last image.

    Raises:
        UsageError: There was no image yet, or the size is not two whole numbers above 0.
    """
    height_and_width = getattr(net, "size", None) if size is None else size
    if height_and_width is None:
        raise UsageError(
            "cost depends on the size of the image, and this network has seen none yet; give it, "
            "as size=(480, 640)"
        )
    numbers = list(height_and_width) if isinstance(height_and_width, tuple | list) else []
    if len(numbers) != 2 or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise UsageError(
            f"size must be the height and width of the image in pixels, found {size!r:.100}; give "
            "it as size=(480, 640)"
        )
    return (1, 3, numbers[0], numbers[1])


def counted_costs(net: GatedSupernet, size: tuple[int, int] | None) -> dict[str, Cost]:
    """Compute `costs_of_ends` for an image of `size`, with the operators that no counter knows."""
    shape = image_shape(net, size)
    uncounted = count_macs(net, shape, cross_check=False).uncounted
    ends = costs_of_ends(net, PatternCost.of(net, shape))
    return {name: replace(cost, uncounted=uncounted) for name, cost in ends.items()}


def _cost(cost: PatternCost, gates: Mapping[str, Tensor]) -> Cost:
    macs = int(cost.macs(gates))
    return Cost(macs=macs, backbone_macs=macs - cost.head_macs, params=int(cost.params(gates)))


def _device(net: GatedSupernet) -> torch.device:
    return net.get_buffer("threshold").device
