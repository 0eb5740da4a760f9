r"""Torch-Pruning on the multi-task network, as baselines: `gatesearch run --plugin` this file.

It adds the methods `torch_pruning_l2` and `torch_pruning_taylor`. Each trains the study's
multi-task network, prunes its encoder by Torch-Pruning (Fang et al., "DepGraph: Towards Any
Structural Pruning", CVPR 2023, https://arxiv.org/abs/2301.12900) to a share of its FLOPs, and
trains the pruned network to the end of the schedule. Torch-Pruning alone decides which channels go,
on the network itself:

- by its `GroupMagnitudeImportance(p=2)`, or its `GroupTaylorImportance` with the gradients of
  Σ ω_t L_t summed over training batches, without augmentation, of the network as it then is;
- by its `BasePruner`, in steps of a channel a layer until the network costs at most the share; each
  step ranks anew. By default all layers are narrowed by one factor, as is its own default, and the
  ranking chooses the channels within them. With `global_pruning = true` all layers are ranked
  together, which leaves single channels of narrow ones, as one of four on `scenes-rich` at 0.75;
- what heads read of the encoder becomes narrower; their own layers stay (`ignored_layers`), as they
  do in `mtl@B` and in InterroGate's networks.

Against the best trial at 3/4 of MTL's cost, at equal training cost:

    gatesearch run --study scenes-rich --budget 0.75xMTL --n-trials 1 --controls

trains the trial and `mtl@B`. The trial's `train_pflops` in reports/scenes-rich.csv, here P, is what
these networks are then given, from which their epochs follow:

    gatesearch run --study scenes-rich --n-trials 0 --out runs/torch-pruning \
        --reuse runs/scenes-rich --plugin benchmarks/torch_pruning.py \
        --methods stl,mtl,torch_pruning_l2,torch_pruning_taylor \
        --set options.torch_pruning_l2.share=0.75 --set options.torch_pruning_taylor.share=0.75 \
        --set options.torch_pruning_l2.pflops=P --set options.torch_pruning_taylor.pflops=P

`--reuse` takes over the baselines of the first store; `--seeds 0,1,2` in both repeats all of it.
The log and the report say which share was taken. Half of MTL's cost is out of reach on
`scenes-rich`, whose heads take 0.554 of it; `scenes` and `nyud-small` reach it.
"""

import copy
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.cost import Cost, count_macs
from gatesearch.cost.narrowing import NarrowCost
from gatesearch.errors import UsageError
from gatesearch.events import Log
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, training_of
from gatesearch.methods.ends import compact_of_parts
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import parts_of
from gatesearch.models.coupling import Kept
from gatesearch.models.filters import filters_of
from gatesearch.models.narrowing import narrowed_multi_task_state, narrowed_parts
from gatesearch.models.nodes.step import Ids
from gatesearch.plugins import Registry
from gatesearch.pruning import describe_compact, load_compact, rebuild_compact
from gatesearch.strict import Strict
from gatesearch.study import Study, TrainingSpec
from gatesearch.training import TrainingError
from gatesearch.training.forward import Forward
from gatesearch.training.label_counts import count_labels
from gatesearch.training.weightings import WEIGHTINGS

Gradients = Mapping[str, Tensor]


class PruningOptions(Strict):
    """Options of both methods.

    Attributes:
        share: Most that the pruned network may take of the multi-task network's FLOPs.
        pruned_after: Share of the epochs, the first, before it is pruned, rounded down.
        global_pruning: Whether all layers are ranked together, rather than each by itself.
        pflops: Cost of the whole training, FLOPs / 1e15, from which the epochs follow in place of
            `training.epochs`; up to the rounding to whole epochs, and as if the pruned network took
            all of its share.
    """

    share: float = Field(default=0.5, gt=0, lt=1)
    pruned_after: float = Field(default=0.5, gt=0, lt=1)
    global_pruning: bool = False
    pflops: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class TaylorOptions(PruningOptions):
    """Options of pruning by the Taylor criterion.

    Attributes:
        batches: Training batches over which gradients are gathered, at most all of an epoch. What
            they cost is in the training cost.
    """

    batches: int = Field(default=10, ge=1, le=10**6)


@dataclass(frozen=True)
class Pruner:
    """Torch-Pruning's view of a multi-task network.

    Attributes:
        pruner: Its `BasePruner`.
        layers: Convolution or linear layer of the encoder -> (C,) number of the coupled channel
            group of each of its output channels.
        least: (G,) the groups that are left where every layer of Torch-Pruning's keeps one channel.
    """

    pruner: Any
    layers: Mapping[nn.Module, Ids]
    least: Kept


def torch_pruning() -> types.ModuleType:
    """Import Torch-Pruning.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise UsageError(
            "pruning with Torch-Pruning needs the package torch-pruning, which is not installed; "
            "pip install 'torch-pruning>=1.6'"
        ) from error
    found: types.ModuleType = torch_pruning
    return found


def open_pruner(
    network: MultiTaskNet, cost: NarrowCost, gradients: Gradients | None, *, global_pruning: bool
) -> Pruner:
    """Let Torch-Pruning trace a network, and compare its groups of channels with gatesearch's.

    Args:
        network: On the processor, in evaluation mode; it is what will be pruned.
        cost: Of its narrower forms.
        gradients: Parameter -> gradient, for the Taylor criterion; None for magnitudes.
        global_pruning: Whether all layers are ranked together.

    Raises:
        UsageError: Torch-Pruning is not installed, or couples other channels.
    """
    library = torch_pruning()
    importance = library.importance
    if gradients is None:
        criterion = importance.GroupMagnitudeImportance(p=2)
    else:
        criterion = importance.GroupTaylorImportance()
        for name, parameter in network.named_parameters():
            parameter.grad = gradients.get(name, torch.zeros_like(parameter))
    widest = max(node.outputs for node in cost.parts.graph.weighted_nodes)
    with torch.enable_grad():
        pruner = library.pruner.BasePruner(
            network,
            torch.zeros(1, 3, *cost.size),
            criterion,
            global_pruning=global_pruning,
            pruning_ratio=1.0,
            # So many that a step takes a channel of a layer, or of all layers, and no more.
            iterative_steps=1 + (cost.groups.count if global_pruning else widest),
            ignored_layers=[network.heads],
        )
    return _compared(pruner, network, cost)


def _compared(pruner: Any, network: MultiTaskNet, cost: NarrowCost) -> Pruner:
    """Check that Torch-Pruning's groups are gatesearch's coupled channel groups, one by one.

    Raises:
        UsageError: They are not.
    """
    groups, graph, encoder = cost.groups, cost.parts.graph, network.encoder
    outputs: dict[nn.Module, Ids] = {}
    sides: dict[tuple[nn.Module, bool], tuple[str, Ids]] = {}
    for node in graph.weighted_nodes:
        filters = filters_of(encoder.layer(node.name))
        if filters is not None:
            outputs[filters] = groups.numbers[node.name]
            sides[filters, True] = node.name, outputs[filters]
            if node.coupling == "free":
                sides[filters, False] = node.name, groups.numbers[node.sources[0]]
    # (filters, outputs rather than inputs) -> (C,) number of Torch-Pruning's group; -1 for none.
    theirs = {side: np.full(len(ours), -1) for side, (_, ours) in sides.items()}
    count, least = 0, np.ones(groups.count, dtype=bool)
    for group in pruner.DG.get_all_groups(pruner.ignored_layers, pruner.root_module_types):
        for item in group:
            side = item.dep.target.module, pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
            if side in theirs:
                if max(item.idxs) >= len(theirs[side]):
                    raise _other_groups(sides[side][0])
                theirs[side][item.idxs] = [-1 if i is None else count + i for i in item.root_idxs]
        count += len(group[0].idxs)
        if (root := group[0].dep.target.module) not in outputs:
            raise _other_groups(pruner.DG.module2node[root].name)
        least[outputs[root][1:]] = False
    ours_of: dict[int, int] = {}
    theirs_of: dict[int, int] = {}
    for side, (name, ours) in sides.items():
        for one, other in zip(ours.tolist(), theirs[side].tolist(), strict=True):
            same = theirs_of.setdefault(one, other) == other
            same &= other < 0 or (ours_of.setdefault(other, one) == one and groups.removable[one])
            if not same:
                raise _other_groups(name)
    return Pruner(pruner, outputs, least)


def _other_groups(layer: str) -> UsageError:
    return UsageError(
        "Torch-Pruning must remove those channels together that gatesearch does, found others at "
        f"{layer} of this backbone; take one without attention or dilated depthwise convolutions, "
        "such as resnet18 or cnn8, or leave these methods out"
    )


def prune(opened: Pruner, cost: NarrowCost, *, share: float) -> tuple[Kept, float]:
    """Prune a network by small steps until it takes at most a share of its multiply-adds.

    Args:
        opened: The network, as `open_pruner` returns it; it becomes narrower in place.
        cost: Of its narrower forms.
        share: The share.

    Returns:
        (G,) the coupled channel groups that are kept, and the share that is taken.

    Raises:
        UsageError: The narrowest network takes more.
    """
    pruner, kept, taken = opened.pruner, np.ones(cost.groups.count, dtype=bool), 1.0
    whole = cost.of(kept).macs
    while taken > share and pruner.current_step < pruner.iterative_steps:
        for group in pruner.step(interactive=True):
            numbers = opened.layers[group[0].dep.target.module]
            kept[numbers[kept[numbers]][group[0].idxs]] = False
            group.prune()
            taken = cost.of(kept).macs / whole
            if taken <= share:
                break
    _refuse_less(taken, share)
    return kept, taken


def _refuse_less(narrowest: float, share: float) -> None:
    if narrowest > share:
        raise UsageError(
            f"share must be at least {narrowest:.4g}, which Torch-Pruning leaves of the multi-task "
            f"network's FLOPs at the narrowest, found {share:g}; raise it"
        )


def settle(study: Study, options: PruningOptions) -> PruningOptions:
    """Check that the study's multi-task network can be pruned, and to the share.

    Raises:
        UsageError: It cannot be.
    """
    cost = _narrow_cost(study)
    with torch.device("cpu"):
        network = MultiTaskNet(cost.parts).eval()
        opened = open_pruner(network, cost, None, global_pruning=options.global_pruning)
    whole = cost.of(np.ones(cost.groups.count, dtype=bool)).macs
    _refuse_less(cost.of(opened.least).macs / whole, options.share)
    return options


def _narrow_cost(study: Study) -> NarrowCost:
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        return NarrowCost(parts_of(study, pretrained=False), study.protocol.size)


def gather_gradients(request: TrainingRequest, network: nn.Module, frames: Tensor) -> Gradients:
    """Gather the gradients of Σ ω_t L_t over training batches, in evaluation mode and float32.

    Args:
        request: The request.
        network: On the device; its gradients are replaced.
        frames: (batches, batch size) positions in the training part.

    Returns:
        Parameter -> gradient, on the processor.
    """
    context = request.context
    forward = Forward(network.eval(), context.tasks, context.runtime)
    network.zero_grad(set_to_none=True)
    for positions in frames:
        batch = context.runtime.tensors(context.train.batch(positions))
        counts = count_labels(batch)
        present = None if counts is None else counts.present
        losses = forward.losses(forward.predict(batch, exact=True)[1], batch, present=present)
        named = zip(context.tasks, losses, strict=True)
        weighted = [context.weights[task] * loss for task, loss in named]
        torch.autograd.backward(torch.stack(weighted).sum())
    return {
        name: parameter.grad.cpu()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }


def _frames(request: TrainingRequest, options: PruningOptions, batch_size: int) -> Tensor:
    """Draw the frames of the batches over which gradients are gathered; none for magnitudes.

    Returns:
        (batches, batch size) positions in the training part.
    """
    train, batches = len(request.context.train), 0
    if isinstance(options, TaylorOptions):
        batches = min(options.batches, train // batch_size)
    draw = torch.Generator().manual_seed(request.spec.seed % 2**63)
    order = torch.randperm(train, generator=draw)
    return order[: batches * batch_size].view(batches, batch_size)


def _training(
    request: TrainingRequest, method: Method[Any], whole: Cost, gathered: int
) -> TrainingSpec:
    """Return the training settings, with the epochs that the option `pflops` buys.

    Args:
        request: The request.
        method: Its method.
        whole: Cost of the multi-task network.
        gathered: Frames over which gradients are gathered.
    """
    settings = training_of(request.study, method)
    options: PruningOptions = options_of(request.study, method)
    if options.pflops is None:
        return settings
    entry, tasks = WEIGHTINGS[request.spec.weighting], len(request.context.tasks)
    passes = 3 + entry.passes(tasks, whole.backbone_gflops / whole.gflops)
    epoch = _images(request, settings) * (
        options.pruned_after + (1 - options.pruned_after) * options.share
    )
    epochs = (options.pflops * 1e6 / (passes * whole.gflops) - gathered) / epoch
    return settings.model_copy(update={"epochs": max(1, round(epochs))})


def _images(request: TrainingRequest, settings: TrainingSpec) -> int:
    """Count the frames of an epoch; a training part without a full batch is refused later on."""
    return max(1, len(request.context.train) // settings.batch_size) * settings.batch_size


def plan(request: TrainingRequest, method: Method[Any]) -> Sequence[Phase]:
    """Plan both phases: the multi-task network, then what Torch-Pruning leaves of it."""
    study, shape = request.study, request.context.input_shape
    options: PruningOptions = options_of(study, method)
    cost = _narrow_cost(study)
    whole = cost.of(np.ones(cost.groups.count, dtype=bool))
    frames = _frames(request, options, training_of(study, method).batch_size)
    training = _training(request, method, whole, frames.numel())
    last = int(options.pruned_after * training.epochs)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(MultiTaskNet(parts))

    def pruned(before: TrainedNetwork | None) -> TrainedNetwork:
        assert before is not None
        network = before.module
        gradients = gather_gradients(request, network, frames) if len(frames) else None
        state = network.state_dict()
        copied = copy.deepcopy(network).cpu().eval()
        assert isinstance(copied, MultiTaskNet)
        opened = open_pruner(copied, cost, gradients, global_pruning=options.global_pruning)
        try:
            kept, taken = prune(opened, cost, share=options.share)
        except UsageError as error:  # `settle` cannot tell for layers that are ranked together
            raise TrainingError(str(error)) from error
        said = (
            f"{request.spec.label}: Torch-Pruning keeps {int(kept.sum())} of {cost.groups.count} "
            f"coupled channel groups, which take {taken:.2%} of the multi-task network's FLOPs"
        )
        request.emit(Log(said))
        narrow = narrowed_parts(cost.parts, cost.groups, kept)
        state = narrowed_multi_task_state(cost.parts, state, cost.groups, kept)
        with torch.random.fork_rng(devices=[]):
            return TrainedNetwork(compact_of_parts(narrow, state, open_=False))

    def forward_gflops(module: nn.Module) -> float:
        """Count a pass, with the share that each has of those that gathered gradients."""
        images = (training.epochs - last) * _images(request, training)
        alone = count_macs(module, shape, cross_check=False).gflops
        return alone + whole.gflops * frames.numel() / images

    return [
        Phase(name="whole", span=(0, last), begin=begin, training=training),
        Phase(
            name="pruned",
            span=(last, training.epochs),
            begin=pruned,
            training=training,
            forward_gflops=forward_gflops,
            describe=describe_compact,
            rebuild=rebuild_compact,
        ),
    ]


def _method(name: str, options: type[PruningOptions], criterion: str) -> Method[Any]:
    method: Method[Any] = Method(
        name=name,
        paper="Fang et al., CVPR",
        year=2023,
        summary=f"the multi-task network, pruned by Torch-Pruning's {criterion} to a share of it",
        build=lambda parts, options: MultiTaskNet(parts),
        options=options,
        settle=settle,
        phases=lambda request: plan(request, method),
        unpriced=f"it is pruned to a share of mtl's (options.{name}.share); ask for mtl",
        read=load_compact,
        outline=("the multi-task network", "what pruning leaves of it"),
        effort="less than 1",
        ours="heads stay as wide as they are inside; two phases of one schedule",
    )
    return method


L2 = _method("torch_pruning_l2", PruningOptions, "magnitude criterion")
TAYLOR = _method("torch_pruning_taylor", TaylorOptions, "Taylor criterion")


def register(registry: Registry) -> None:
    """Add both methods."""
    registry.add_method(L2)
    registry.add_method(TAYLOR)
