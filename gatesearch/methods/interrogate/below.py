"""Budgets below the cost of the multi-task network: the encoder is narrowed before gates learn.

A channel then has one of three states: a task's own, shared, or nobody's. Channels of the third are
zero in every stream, so they leave the graph (`gatesearch.models.narrowing`), and all that follows,
gates, liveness, cost, extraction, is that of the narrower network. Which channels these are is
ranked while a multi-task network trains (`ranking`), once, in the first epochs of a trial.

The narrowed network with all gates closed takes the share `interrogate.shared` of what a budget
leaves beside the heads. The rest is for tasks' own channels, and gates decide where these are.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from gatesearch.cost import Budget, Cost, name_of
from gatesearch.cost.narrowing import NarrowCost, Worth, relative_order, rounded_down, widest
from gatesearch.errors import UsageError
from gatesearch.events import Log
from gatesearch.methods.base import Json, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.methods.interrogate.ranking import RankedNet, importance_of, ranking_hooks
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.models.coupling import IMAGE, Kept
from gatesearch.models.narrowing import narrowed_multi_task_state, narrowed_parts
from gatesearch.study import Study
from gatesearch.training import TrainingError


def narrowing_of(request: TrainingRequest) -> NarrowCost | None:
    """Return the costs of narrower networks if a trial's budgets are below the multi-task network.

    Returns:
        None where that network keeps to all budgets of FLOPs and parameters, or there are none.
    """
    budgets = counted(request.spec.budgets)
    if not budgets:
        return None
    with torch.random.fork_rng(devices=[]):
        parts = parts_of(request.study, seed=request.spec.seed, pretrained=False)
        cost = NarrowCost(parts, request.study.protocol.size)
        whole = cost.of(np.ones(cost.groups.count, dtype=bool))
    return cost if max(budget.share(whole) for budget in budgets) > 1 else None


def counted(budgets: Sequence[Budget]) -> list[Budget]:
    """Leave out budgets of latency, and of what one task costs."""
    return [budget for budget in budgets if budget.measure != "latency" and not budget.task]


def least_cost(study: Study) -> Cost:
    """Count the cost of the narrowest multi-task network: every layer keeps least."""
    cost = NarrowCost(parts_of(study, pretrained=False), study.protocol.size)
    order = relative_order(cost.groups, np.zeros(cost.groups.count))
    return cost.of(order.narrowest)


def kept_within(
    cost: NarrowCost,
    worth: Worth,
    budgets: Sequence[Budget],
    *,
    shared: float,
    multiple: int = 1,
) -> Kept:
    """Choose the groups that a network keeps, those of the highest worth in their layers.

    Args:
        cost: Of narrower networks.
        worth: (G,) importance of each group.
        budgets: Of FLOPs and parameters.
        shared: Share of what a budget leaves beside the heads that the encoder takes.
        multiple: Layers keep multiples of it, where that leaves them enough.

    Returns:
        (G,) bool. Where even the narrowest encoder takes more than that share, it may take all.

    Raises:
        UsageError: Even the narrowest network exceeds a budget.
    """
    order = relative_order(cost.groups, worth)
    kept, taken = widest(order, lambda kept: cost.share(kept, budgets, encoder=shared))
    if taken > 1:
        kept, taken = widest(order, lambda kept: cost.share(kept, budgets))
    if taken <= 1:
        return rounded_down(cost.groups, kept, order, multiple=multiple)
    raise UsageError(
        f"budgets must be at least what the narrowest network costs, found {taken:.4g} of "
        f"{', '.join(budget.text for budget in budgets)} taken; raise the budget"
    )


class Narrowing:
    """The phases of a trial whose budgets are below the cost of the multi-task network.

    Args:
        request: Request of the trial.
        options: Of InterroGate.
        cost: Costs of narrower networks.
        supernet: Builds a supernet of some parts.
    """

    def __init__(
        self,
        request: TrainingRequest,
        options: InterroGateOptions,
        cost: NarrowCost,
        supernet: Callable[[Parts], GatedSupernet],
    ) -> None:
        self._request, self._options, self._cost, self._supernet = request, options, cost, supernet
        self._kept = np.ones(cost.groups.count, dtype=bool)

    def ranking_phase(self, span: tuple[int, int], *, warmed: bool) -> Phase:
        """Plan the epochs as a multi-task network, in which channels are ranked.

        Args:
            span: (epochs done before, last epoch).
            warmed: Whether training starts from the warm-up, which is a multi-task network too.
        """
        study, spec = self._request.study, self._request.spec

        def begin(before: TrainedNetwork | None) -> TrainedNetwork:
            state = self._request.start_state()
            stl = None if warmed else state
            parts = parts_of(study, seed=spec.seed, stl=stl, pretrained=not warmed)
            network = RankedNet(parts, self._cost.groups.count)
            if warmed and state is not None:
                network.load_state_dict({**state, "importance": network.importance})
            return TrainedNetwork(network)

        return Phase(
            name="ranking",
            span=span,
            begin=begin,
            hooks=lambda module: ranking_hooks(
                _ranked(module), self._cost.parts, self._cost.groups
            ),
        )

    def narrowed(self, before: TrainedNetwork | None) -> TrainedNetwork:
        """Narrow the ranked network, and make a supernet whose streams all start from it.

        Raises:
            TrainingError: Even the narrowest network exceeds a budget.
        """
        assert before is not None
        ranked, cost, budgets = _ranked(before.module), self._cost, self._budgets
        try:
            shared = self._options.shared if len(cost.parts.tasks) > 1 else 1.0
            self._kept = kept_within(
                cost,
                importance_of(ranked),
                budgets,
                shared=shared,
                multiple=self._options.round_to,
            )
        except UsageError as error:
            raise TrainingError(str(error)) from error
        state = narrowed_multi_task_state(
            cost.parts, ranked.multi_task_state(), cost.groups, self._kept
        )
        supernet = self._empty_supernet()
        supernet.clone_streams(state)
        self._log()
        return TrainedNetwork(supernet)

    def describe(self, module: nn.Module) -> Json:
        """Describe the narrowed supernet, for `rebuild`: the groups that it keeps."""
        return {"kept": np.flatnonzero(self._kept).tolist()}

    def rebuild(self, described: Json) -> nn.Module:
        """Build the supernet that `describe` described, with other weights."""
        kept = cast(list[int], described["kept"])
        self._kept = np.isin(np.arange(self._cost.groups.count), kept)
        return self._empty_supernet()

    @property
    def _budgets(self) -> list[Budget]:
        return counted(self._request.spec.budgets)

    def _empty_supernet(self) -> GatedSupernet:
        return self._supernet(narrowed_parts(self._cost.parts, self._cost.groups, self._kept))

    def _log(self) -> None:
        """Say how narrow the encoder became, and which channels could not be removed."""
        cost, kept, budgets = self._cost, self._kept, self._budgets
        stays = "; ".join(
            f"{len(groups)} stay: {reason}"
            for reason, groups in cost.groups.fixed.items()
            if reason != IMAGE
        )
        text = (
            f"{self._request.spec.label}: {int(kept.sum())} of {cost.groups.count} coupled channel "
            f"groups are kept, which as a multi-task network take {cost.share(kept, budgets):.1%} "
            f"of {name_of(budgets)}"
        )
        self._request.emit(Log(f"{text}; {stays}" if stays else text))


def _ranked(module: nn.Module) -> RankedNet:
    """Assert that a module is the network of the first phase."""
    assert isinstance(module, RankedNet)
    return module
