"""The two phases of the supernet: first the edge hypernetwork is trained, then the weights'."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.methods.base import Context, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.dymu.affinity import affinity, pooled
from gatesearch.methods.dymu.draws import Draws
from gatesearch.methods.dymu.options import DymuOptions
from gatesearch.methods.dymu.preferred import DRAWN_PREFERENCE
from gatesearch.methods.dymu.regularisers import active_loss, active_tasks, inactive_loss
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.tree import Tree
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.models import parts_of
from gatesearch.study import TrainingSpec
from gatesearch.training import Hooks, ParameterGroup
from gatesearch.training.split_data import normalize

# Number of drawn (r, c) over which the cost of a step of the weight hypernetwork is averaged.
_POINTS = 64


def supernet_phases(
    request: TrainingRequest, options: DymuOptions, training: TrainingSpec
) -> Sequence[Phase]:
    """Plan the training of the hypernetworks; the streams and heads stay as they are."""
    context = request.context
    edges, end = options.phases(training.epochs)

    def untrained() -> DymuNet:
        state = request.start_state()
        assert state is not None
        return DymuNet(parts_of(request.study, seed=request.spec.seed, stl=state), options)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        supernet = untrained()
        if edges:
            measure_affinity(supernet, context, frames=options.frames)
        return TrainedNetwork(supernet)

    def go_on(before: TrainedNetwork | None) -> TrainedNetwork:
        assert before is not None
        supernet = _supernet(before.module)
        supernet.mean_gflops = mean_gflops(supernet, context)
        return before

    def rebuild(described: Mapping[str, object]) -> DymuNet:
        supernet, gflops = untrained(), described["mean_gflops"]
        assert isinstance(gflops, float)
        supernet.mean_gflops = gflops
        return supernet

    def group(hypernetwork: nn.Module) -> list[ParameterGroup]:
        parameters, rate = tuple(hypernetwork.parameters()), options.lr / training.lr
        return [ParameterGroup(parameters, rate=rate, optimizer="adam", weight_decay=0.0)]

    return [
        Phase(
            name="edges",
            span=(0, edges),
            begin=begin,
            hooks=lambda module: _edge_hooks(_supernet(module), context, options),
            groups=lambda module: group(_supernet(module).edges),
            weighting=DRAWN_PREFERENCE,
            forward_gflops=lambda module: _edge_gflops(
                _supernet(module), context, options, training, epochs=edges
            ),
            describe=lambda module: {},
            rebuild=lambda described: untrained(),
        ),
        Phase(
            name="weights",
            span=(edges, end),
            begin=go_on,
            hooks=lambda module: _weight_hooks(_supernet(module)),
            groups=lambda module: group(_supernet(module).weights),
            weighting=DRAWN_PREFERENCE,
            forward_gflops=lambda module: _supernet(module).mean_gflops,
            describe=lambda module: {"mean_gflops": _supernet(module).mean_gflops},
            rebuild=rebuild,
        ),
    ]


@torch.no_grad()
def measure_affinity(supernet: DymuNet, context: Context, *, frames: int) -> None:
    """Estimate the affinity of tasks at every block from the first frames of the training part.

    Args:
        supernet: Its `affinity` is set; it is placed on the device of training.
        context: Data and device.
        frames: Number of frames.
    """
    context.runtime.place(supernet).eval()
    batches: list[list[list[Tensor]]] = []
    for batch in context.train.in_order(context.study.training.batch_size, frames):
        with context.runtime.autocast():
            features = supernet.anchor_features(context.runtime.image(normalize(batch["image"])))
        batches.append([[pooled(x) for x in stream] for stream in features])
    for block, values in enumerate(supernet.affinity):
        rows = [
            torch.cat([batch[task][block] for batch in batches])
            for task in range(len(supernet.tasks))
        ]
        values.copy_(affinity(rows))


def mean_gflops(supernet: DymuNet, context: Context) -> float:
    """Compute the mean GFLOPs of a supernet's trees over drawn (r, c)."""
    draws = Draws(
        tasks=len(supernet.tasks),
        blocks=len(supernet.blocks),
        concentration=supernet.draws.concentration,
        seed=supernet.draws.seed + 1,
    ).to(supernet.draws.preference.device)
    cost, total = TreeCost.of(supernet, context.input_shape), 0
    for _ in range(_POINTS):
        draws.draw()
        size = context.study.protocol.size
        total += cost.macs(supernet.tree(draws.preference, draws.cost, size))
    return 2e-9 * total / _POINTS


def _supernet(module: nn.Module) -> DymuNet:
    assert isinstance(module, DymuNet)
    return module


def _edge_gflops(
    supernet: DymuNet,
    context: Context,
    options: DymuOptions,
    training: TrainingSpec,
    *,
    epochs: int,
) -> float:
    """Compute the GFLOPs of a step's pass through all streams, with a share of the affinity's.

    The affinity takes one forward pass of its frames; a training step counts three per frame.
    """
    cost = TreeCost.of(supernet, context.input_shape)
    streams = 2e-9 * cost.separate_macs(len(supernet.tasks))
    train, size = len(context.train), training.batch_size
    learned = epochs * (train // size * size)
    return streams * (1 + min(options.frames, train) / max(1, 3 * learned))


def _edge_hooks(supernet: DymuNet, context: Context, options: DymuOptions) -> Hooks:
    """Make the hooks of the first phase.

    They draw (r, c) and noise before each step, lower the temperature, add the branching
    regularisers, and record the GFLOPs of the learned trees for equal preferences and c = 0 and 1,
    before the bound that c sets.
    """
    start, end = options.temperature
    cost = TreeCost.of(supernet, context.input_shape)

    def before_step(share: float) -> None:
        supernet.draws.draw()
        supernet.temperature = start * (end / start) ** share

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        draws = supernet.draws
        probabilities = supernet.logits(draws.preference, draws.cost).softmax(2)
        active = active_tasks(draws.preference, options.threshold)
        related = active_loss(probabilities, supernet.affinity, active)
        following = inactive_loss(probabilities, active)
        return draws.cost * options.active * related + options.inactive * following

    def observe(epoch: int) -> dict[str, float]:
        equal = torch.full_like(supernet.draws.preference, 1 / len(supernet.tasks))
        trees = {c: Tree.best(supernet.scores(equal, equal.new_tensor(float(c)))) for c in (0, 1)}
        return {f"tree_gflops.c{c}": 2e-9 * cost.macs(tree) for c, tree in trees.items()}

    return Hooks(penalty=penalty, before_step=before_step, observe=observe)


def _weight_hooks(supernet: DymuNet) -> Hooks:
    """Draw (r, c) before each step, and train on the tree that the edge hypernetwork predicts."""

    def before_step(share: float) -> None:
        supernet.draws.draw()
        supernet.temperature = 0.0

    return Hooks(before_step=before_step)
