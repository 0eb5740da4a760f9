"""Points of the controlled supernet: the tree and network of one (preferences, cost weight)."""

from collections.abc import Mapping, Sequence

import torch

from gatesearch.cost import Budget
from gatesearch.methods.base import TrainingRequest
from gatesearch.methods.dymu.cut import cut
from gatesearch.methods.dymu.options import DymuOptions
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.tree import Tree, merged
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.methods.interrogate.options import MOST_PATTERNS, default_patterns
from gatesearch.methods.space import task_values
from gatesearch.models import parts_of
from gatesearch.pruning import CompactNet
from gatesearch.study import TrainingSpec
from gatesearch.training import evaluate, recompute_statistics


def preference_of(params: Mapping[str, float | str], tasks: Sequence[str]) -> list[float]:
    """Return the preferences r of a configuration, which sum to 1; equal if all weights are 0.

    >>> preference_of({"prefer.a": 0.5, "prefer.b": 0.5, "prefer.c": 1.0}, ["a", "b", "c"])
    [0.25, 0.25, 0.5]
    """
    weights = task_values(params, "prefer", tasks)
    total = sum(weights)
    return [weight / total if total > 0 else 1 / len(weights) for weight in weights]


def trained_supernet(request: TrainingRequest, options: DymuOptions) -> DymuNet:
    """Load the trained supernet that a trial starts from."""
    parts = parts_of(request.study, seed=request.spec.seed, pretrained=False)
    supernet, state = DymuNet(parts, options), request.start_state()
    assert state is not None
    supernet.load_state_dict(state)
    return supernet.eval()


class Point:
    """A configuration of a trained supernet.

    Args:
        supernet: The supernet, on the processor.
        params: `prefer.<task>` and `cost_weight`.
        size: (height, width) of images, by which the bound that c sets is counted.

    Attributes:
        tree: The tree, under no budget.
    """

    def __init__(
        self, supernet: DymuNet, params: Mapping[str, float | str], size: tuple[int, int]
    ) -> None:
        self._supernet = supernet
        self._preference = torch.tensor(preference_of(params, supernet.tasks))
        self._cost = torch.tensor(float(params["cost_weight"]))
        self.tree = supernet.tree(self._preference, self._cost, size)

    def tree_within(self, cost: TreeCost, budgets: Sequence[Budget]) -> Tree:
        """Return the tree, with streams merged until it keeps to the budgets."""
        scores = self._supernet.scores(self._preference, self._cost)
        limits, preference = cost.limits(budgets), self._preference.tolist()
        return merged(self.tree, scores, limits, preference=preference)

    def network(self, tree: Tree) -> CompactNet:
        """Cut out the plain network of a tree, with the norms of this configuration."""
        return cut(self._supernet, tree, self._preference, self._cost)


class SteeredSupernet:
    """A trained supernet whose points are measured; see `gatesearch.methods.base.Supernet`.

    Args:
        request: Request for any trial of the search.
        budgets: Budgets of the search.
        options: The study's.
        training: Training settings of the supernet.
    """

    def __init__(
        self,
        request: TrainingRequest,
        budgets: Sequence[Budget],
        *,
        options: DymuOptions,
        training: TrainingSpec,
    ) -> None:
        self._context, self._budgets = request.context, budgets
        self._supernet = trained_supernet(request, options)
        self._cost = TreeCost.of(self._supernet, request.context.input_shape)
        self._statistics, self._training = options.statistics, training
        self.patterns = options.patterns or default_patterns(
            epochs=options.phases(training.epochs)[1],
            train=len(request.context.train),
            validation=len(request.context.validation),
            statistics=options.statistics,
        )
        self.most_patterns = options.patterns or MOST_PATTERNS

    def network(self, params: Mapping[str, float | str]) -> tuple[float, ...]:
        """Identify a configuration's network by preferences and cost weight, which determine it."""
        preference = preference_of(params, self._supernet.tasks)
        return (*(round(r, 9) for r in preference), float(params["cost_weight"]))

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """Compute (multiply-adds, largest share of any budget) of a configuration's tree."""
        tree = self._point(params).tree
        return float(self._cost.macs(tree)), self._cost.share(tree, self._budgets)

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """Measure (task -> metric on the validation part, multiply-adds) of a configuration.

        Batch norm statistics are computed anew on `dymu.statistics` training frames.
        """
        context, point = self._context, self._point(params)
        network = context.runtime.place(point.network(point.tree))
        size = context.study.training.batch_size
        recompute_statistics(
            network, context.train, runtime=context.runtime, batch_size=size,
            max_frames=self._statistics, augmented=context.augmented(self._training),
        )  # fmt: skip
        metrics = evaluate(
            network, context.validation, context.tasks, runtime=context.runtime, batch_size=size
        )
        return metrics, float(self._cost.macs(point.tree))

    def _point(self, params: Mapping[str, float | str]) -> Point:
        return Point(self._supernet, params, self._context.study.protocol.size)
