"""What the outputs of each task, and of each pair, cost in a compact network."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gatesearch.cost.macs import count_macs, without_data
from gatesearch.models.channel_ops import Read
from gatesearch.models.nodes import StepWeights
from gatesearch.pruning import CompactNet, subnetwork
from gatesearch.pruning.subnetwork import live_outputs

# Pairs of more tasks than this are too many to be read.
MOST_PAIRED = 4


def macs_of_tasks(
    network: nn.Module, input_shape: tuple[int, int, int, int], *, whole: int
) -> dict[str, int]:
    """Count the multiply-adds that the outputs of each task alone and of each pair need.

    A step costs as much for each of its live outputs, whichever these are. So the steps of the
    whole network are counted once, by torch, and liveness gives what any tasks need of them. Where
    torch and fvcore disagree about the whole network, subnetworks are counted one by one.

    Args:
        network: The network; only a `CompactNet` says what each of its outputs needs.
        input_shape: (1, 3, H, W) of the image.
        whole: Multiply-adds of the whole network, as `count_macs` counts them.

    Returns:
        Task, or two tasks joined by `+` in the order of the network, -> multiply-adds, heads
        included. No pairs of more than `MOST_PAIRED` tasks; nothing for another network.
    """
    if not isinstance(network, CompactNet):
        return {}
    sets = task_sets(list(network.description.heads))
    steps, heads = _counted(network, input_shape)
    if sum(steps) + sum(heads.values()) != whole:
        return {
            name: count_macs(subnetwork(network, tasks), input_shape, cross_check=False).macs
            for name, tasks in sets.items()
        }
    widths = [step.width for step in network.description.steps]
    counted = {}
    for name, tasks in sets.items():
        live = live_outputs(network.description, tasks)
        encoder = sum(macs * n // w for macs, n, w in zip(steps, live, widths, strict=True))
        counted[name] = encoder + sum(heads[task] for task in tasks)
    return counted


def task_sets(tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name each task alone, and each pair of few tasks.

    >>> list(task_sets(["semseg", "depth"]))
    ['semseg', 'depth', 'semseg+depth']
    """
    sizes = (1, 2) if len(tasks) <= MOST_PAIRED else (1,)
    return {"+".join(chosen): chosen for n in sizes for chosen in combinations(tasks, n)}


def _counted(
    network: CompactNet, input_shape: tuple[int, int, int, int]
) -> tuple[list[int], Mapping[str, int]]:
    """Count the multiply-adds of every step, and of every head, on shapes alone."""
    network = cast(CompactNet, without_data(network)).eval()
    widths = network.description.widths
    weights = StepWeights(network.convs, network.mixes)
    steps, heads = [], {}
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        done = 0

        def since() -> int:
            nonlocal done
            before, done = done, counter.get_total_flops() // 2
            return done - before

        tensors: list[Tensor] = [torch.empty(input_shape)]
        for step in network.description.steps:
            readers = cast(list[Read], step.readers(widths))
            tensors.append(step.run(tensors, readers, weights))
            steps.append(since())
        for task, head in network.description.heads.items():
            maps = [Read(source, widths)(tensors) for source in head.sources]
            network.heads.call_head(task, maps, input_shape[2:])
            heads[task] = since()
    return steps, heads
