"""GradSplit: a multi-task network whose filters are each one task's to update (Deng et al., 2023).

"Split to Learn: Gradient Split for Multi-Task Human Image Analysis", WACV 2023; the procedure is
also in patent application US20220121953. The output channels of every convolution and linear layer
of the encoder are split into T groups. A group is trained by the losses that do not conflict with
its own task's. The forward pass, and so the cost, is that of hard parameter sharing.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, training_of
from gatesearch.methods.mtl import MTL, MultiTaskNet
from gatesearch.models import Parts, parts_of
from gatesearch.models.encoder import module_key
from gatesearch.models.filters import filters_of
from gatesearch.strict import Strict
from gatesearch.training.weightings import Basis, Entry
from gatesearch.training.weightings.gradients import PerTask, add_gradient, pop_all, weighted_sum


class GradSplitOptions(Strict):
    """Options of GradSplit.

    Attributes:
        first_stage: First stage of the encoder whose filters are split; the stem is 0. The patent
            splits "deeper layers", the paper "a series of convolution modules", and neither
            abstract says which. Filters before it are trained by all losses.
    """

    first_stage: int = Field(default=0, ge=0)


def group_sizes(channels: int, tasks: int) -> list[int]:
    """Split channels into T groups in order, whose sizes differ by one at most.

    >>> group_sizes(64, 3), group_sizes(2, 3)
    ([21, 21, 22], [0, 1, 1])
    """
    ends = [channels * t // tasks for t in range(tasks + 1)]
    return [stop - start for start, stop in pairwise(ends)]


class GradSplit(PerTask):
    """Combines the tasks' gradients filter by filter.

    Let g_s be the gradient of ω_s L_s, and θ_t the filters of a convolution or linear layer that
    belong to task t, with their biases and the scale and shift of a batch norm right behind. Their
    gradient is

        Σ_s [⟨g_s, g_t⟩ ≥ 0 on θ_t] g_s

    so that task t always trains its own filters. The products are those of the same batch. Of an
    absent task there is no gradient to conflict with: its filters are then trained by all others.
    Shared parameters of no split filter get Σ_s g_s. The factors of the losses are the mean shares
    of the encoder's filters that each task has trained.

    The paper's abstract says "the task losses with which it does not have conflicts". How a
    conflict is measured, that it is per batch, and per group and not per layer, are ours.

    Args:
        basis: Tasks with ω_t, device.
        first_stage: First stage that is split.
    """

    def __init__(self, basis: Basis, *, first_stage: int = 0) -> None:
        super().__init__(basis)
        self.first_stage = first_stage

    def merge(self, rows: dict[nn.Parameter, dict[int, Tensor]], gramian: Tensor) -> Tensor:
        """See `PerTask.merge`."""
        count = len(self.tasks)
        trained, filters = torch.zeros(count, device=self.omega.device), 0
        for layer, split in self._layers():
            parameters = [p for p in layer.parameters() if p in rows]
            channels = layer_filters(layer)
            filters += channels
            if not split or not parameters:
                trained += channels
                continue
            kept = kept_filters([rows[p] for p in parameters], group_sizes(channels, count))
            for parameter in parameters:
                add_gradient(parameter, _masked_sum(rows.pop(parameter), kept))
            for task, mask in kept.items():
                trained[task] += mask.sum()
        for parameter, gradients in pop_all(rows):
            add_gradient(parameter, weighted_sum(gradients, [1.0] * count))
        return (trained / max(1, filters)).cpu().double()

    def _layers(self) -> list[tuple[nn.Module, bool]]:
        """List the encoder's convolutions and linear layers, and whether each is split."""
        encoder = network_of(self.training_view.model).encoder
        layers = []
        for node in encoder.graph.weighted_nodes:
            layer = encoder.layers[module_key(node.name)]
            if layer_filters(layer):
                layers.append((layer, node.stage >= self.first_stage))
        return layers


def layer_filters(layer: nn.Module) -> int:
    """Count the filters of a node's module: those of its convolution or linear layer, or none."""
    filters = filters_of(layer)
    return 0 if filters is None else len(filters.weight)


def kept_filters(rows: Sequence[dict[int, Tensor]], sizes: Sequence[int]) -> dict[int, Tensor]:
    """Tell which filters of a layer each task's gradient updates.

    Args:
        rows: For each parameter of the layer, index of a task -> gradient (C, ...).
        sizes: Number of filters of each task's group; they add up to C.

    Returns:
        Index of a task -> (C,) bool, for the tasks that have gradients.
    """
    tasks = sorted(set().union(*rows))
    starts = [0, *accumulate(sizes)]
    products = {task: torch.zeros(starts[-1], device=_device(rows)) for task in tasks}
    for gradients in rows:
        # The gradient of each filter by the loss of the task that it belongs to; 0 if absent.
        own = torch.zeros_like(next(iter(gradients.values())))
        for task, (start, stop) in enumerate(pairwise(starts)):
            if task in gradients:
                own[start:stop] = gradients[task][start:stop]
        for task, gradient in gradients.items():
            products[task] += (
                (gradient * own).flatten(1).sum(1) if own.dim() > 1 else gradient * own
            )
    kept = {}
    for task, product in products.items():
        groups = [part.sum().expand(len(part)) for part in torch.split(product, list(sizes))]
        kept[task] = torch.cat(groups) >= 0
    return kept


def _masked_sum(gradients: dict[int, Tensor], kept: dict[int, Tensor]) -> Tensor:
    """Sum the gradients (C, ...) of each filter over the tasks that update it."""
    total: Tensor | None = None
    for task, gradient in gradients.items():
        shape = (-1, *[1] * (gradient.dim() - 1))
        part = gradient * kept[task].view(shape)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _device(rows: Sequence[dict[int, Tensor]]) -> torch.device:
    return next(iter(rows[0].values())).device


def network_of(module: nn.Module) -> MultiTaskNet:
    """Assert that a module is a multi-task network."""
    assert isinstance(module, MultiTaskNet)
    return module


def build(parts: Parts, options: GradSplitOptions) -> MultiTaskNet:
    """Build the multi-task network.

    Raises:
        UsageError: No stage is split.
    """
    last = parts.graph.stages - 1
    if options.first_stage > last:
        raise UsageError(
            f"gradsplit.first_stage must be a stage of the encoder, 0 (its stem) to {last}, found "
            f"{options.first_stage}"
        )
    return MultiTaskNet(parts)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase: a multi-task network, its gradients combined by `GradSplit`."""
    study = request.study
    options = options_of(study, GRADSPLIT)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(build(parts, options))

    return [
        Phase(
            name="split",
            span=(0, training_of(study, GRADSPLIT).epochs),
            begin=begin,
            weighting=Entry(
                lambda basis: GradSplit(basis, first_stage=options.first_stage),
                GRADSPLIT.paper,
                GRADSPLIT.year,
                "each filter by the losses that do not conflict with its task's",
                "gradient",
                "T - 1 backward passes of θ, T |θ| memory",
                lambda tasks, shared: 2 * (tasks - 1) * shared,
            ),
        )
    ]


GRADSPLIT = Method(
    name="gradsplit",
    paper="Deng et al., WACV",
    year=2023,
    summary="one encoder, whose filters each learn from the losses that agree with their task's",
    build=build,
    options=GradSplitOptions,
    phases=phases,
    balances=True,
    as_compact=MTL.as_compact,
    outline=("all epochs, with one backward pass per task",),
    effort="(1 + 2T) / 3 in the encoder, 1 in the heads",
    ours="a conflict is a negative product of gradients, of one batch and on the group's filters",
)
