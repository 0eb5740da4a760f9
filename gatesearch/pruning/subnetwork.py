"""The part of a compact network that computes the outputs of some of its tasks.

Aliveness is propagated backwards from these tasks' heads: a live output of a step needs the
channels that the step names (`Step.computed`, `Step.needed_inputs`). All else is left out.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import nn

from gatesearch.errors import UsageError, unknown
from gatesearch.models.channel_source import ChannelSource, channel_count
from gatesearch.models.layer import Layer, LayerSlice
from gatesearch.models.nodes import IMAGE_CHANNELS, Ids, Mask, RepeatedStep, Step
from gatesearch.pruning.compact import CompactNet
from gatesearch.pruning.description import AnyStep, Description, HeadDescription
from gatesearch.pruning.extract import CopyOfComputed, source_of


@dataclass(frozen=True)
class StepCut:
    """What is left of a step.

    Attributes:
        step: Name of the step whose weights it takes.
        outputs: (n,) outputs of that step that are kept.
        inputs: (m,) inputs of its filters, all of them: those of a group in a grouped layer.
    """

    step: str
    outputs: Ids
    inputs: Ids


@dataclass(frozen=True)
class Cut:
    """The description of a subnetwork, and where its weights come from.

    Attributes:
        description: The subnetwork.
        steps: Name of a step -> what it is of the whole network, for steps that have names.
    """

    description: Description
    steps: dict[str, StepCut]


def subnetwork(network: CompactNet, tasks: Iterable[str]) -> CompactNet:
    """Cut out of a compact network what computes the outputs of some tasks.

    Its outputs are those of the whole network, up to the rounding of layers with fewer channels.
    It is a network of its own, in evaluation mode and on the processor, with copies of weights and
    heads, in the dtype of the whole network.

    Args:
        network: The whole network, which is not changed.
        tasks: Some of its tasks; they keep the order that they have in it.

    Returns:
        A plain module: image (B, 3, H, W) -> task -> what the task's head returns, for these tasks.

    Raises:
        UsageError: No compact network, no task, or one that the network does not have.

    >>> import torch
    >>> import gatesearch as gs
    >>> small = gs.encoder("resnet18", width=0.1, output_stride=32)
    >>> head = lambda: torch.nn.Conv2d(small.channels, 1, kernel_size=1)
    >>> net = gs.extract(gs.InterroGate(small, {"mask": head(), "depth": head()}))
    >>> list(gs.subnetwork(net, ["depth"])(torch.randn(1, 3, 64, 64)))
    ['depth']
    """
    if not isinstance(network, CompactNet):
        raise UsageError(
            "subnetwork takes a compact network, as gs.extract and gs.load return it, found "
            f"{type(network).__name__}"
        )
    chosen = known_tasks(tasks, network.description.heads)
    cut = cut_description(network.description, chosen)
    with CopyOfComputed(), torch.no_grad():
        heads = copy.deepcopy(nn.ModuleDict({task: network.heads[task] for task in chosen}))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        own = CompactNet(cut.description, {task: heads[task] for task in chosen}).cpu()
        if (parameter := next(network.convs.parameters(), None)) is not None:
            own.convs.to(parameter.dtype)
            own.mixes.to(parameter.dtype)
        for step in cut.description.steps:
            name = getattr(step, "name", None)
            if name is None:
                continue
            part = cut.steps[name]
            if part.step in network.convs:
                layer = cast(Layer, network.convs[part.step])
                step.copy_weights(own.convs[name], LayerSlice(layer, part.outputs, part.inputs))
            elif part.step in network.mixes:
                own.mixes[name].copy_(network.mixes[part.step][:, part.outputs])
    return own.eval()


def known_tasks(tasks: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return some tasks in the order of all tasks, each once.

    Raises:
        UsageError: There is none, or an unknown one.
    """
    chosen, names = list(tasks), list(known)
    for task in chosen:
        if task not in names:
            raise unknown("task", task, names)
    if not chosen:
        raise UsageError(f"a subnetwork needs a task or more of {', '.join(names)}, found none")
    return tuple(task for task in names if task in chosen)


def cut_description(description: Description, tasks: Sequence[str]) -> Cut:
    """Describe the subnetwork of some tasks; it needs no weights.

    Args:
        description: The whole network.
        tasks: Some of its tasks.
    """
    steps = _without_repeats(description.steps)
    heads = {task: description.heads[task] for task in tasks}
    live = _live_channels(steps, heads.values())
    places = [np.full((len(alive), 2), -1) for alive in live]
    places[0][:, 0], places[0][:, 1] = 0, np.arange(IMAGE_CHANNELS)
    kept: list[Step] = []
    cuts: dict[str, StepCut] = {}
    repeatable: dict[tuple[str, bytes], str] = {}
    for index, step in enumerate(steps):
        outputs = np.flatnonzero(live[index + 1])
        if not len(outputs):
            continue
        needed = step.needed_inputs(live[index + 1])
        sources = [
            _moved(_positions(source)[channels], places)
            for source, channels in zip(step.sources, needed, strict=True)
        ]
        part = step.narrowed(sources=sources, outputs=outputs)
        name = getattr(step, "name", None)
        if name is not None:
            found = repeatable.get((name, outputs.tobytes()))
            if found is not None:
                part = RepeatedStep(of=found, source=sources[0], outputs=len(outputs))
            else:
                own = _unused(name, cuts)
                part = part.model_copy(update={"name": own})
                repeatable[name, outputs.tobytes()] = own
                inputs = channel_count(step.sources[0]) // step.channel_groups
                cuts[own] = StepCut(name, outputs, np.arange(inputs))
        kept.append(part)
        places[index + 1][outputs] = np.stack(
            [np.full(len(outputs), len(kept)), np.arange(len(outputs))], 1
        )
    described = {task: _head(head, places) for task, head in heads.items()}
    return Cut(Description(steps=cast(tuple[AnyStep, ...], tuple(kept)), heads=described), cuts)


def live_outputs(description: Description, tasks: Sequence[str]) -> list[int]:
    """Count for every step of the whole network the outputs that some tasks need."""
    heads = [description.heads[task] for task in tasks]
    live = _live_channels(_without_repeats(description.steps), heads)
    return [int(outputs.sum()) for outputs in live[1:]]


def _without_repeats(steps: Sequence[Step]) -> list[Step]:
    """Replace steps that use the weights of another one by that one, on their own channels."""
    layers: dict[str, Step] = {}
    plain = []
    for step in steps:
        if isinstance(step, RepeatedStep):
            step = step.as_layer(layers)
        elif (name := getattr(step, "name", None)) is not None:
            layers[name] = step
        plain.append(step)
    return plain


def _live_channels(steps: Sequence[Step], heads: Iterable[HeadDescription]) -> list[Mask]:
    """Return for every tensor (C,) which of its channels are needed for some heads.

    Where the channels of a group are computed all or none, that is the whole group.
    """
    widths = [IMAGE_CHANNELS, *(step.width for step in steps)]
    live = [np.zeros(width, dtype=bool) for width in widths]
    for head in heads:
        for source in head.sources:
            _mark(_positions(source), live)
    for index, step in reversed(list(enumerate(steps))):
        live[index + 1] = step.computed(live[index + 1])
        if live[index + 1].any():
            needed = step.needed_inputs(live[index + 1])
            for source, channels in zip(step.sources, needed, strict=True):
                _mark(_positions(source)[channels], live)
    return live


def _mark(positions: Ids, live: Sequence[Mask]) -> None:
    """Note that channels, (n, 2) tensors and numbers in them, are live."""
    for tensor in np.unique(positions[:, 0]):
        live[tensor][positions[positions[:, 0] == tensor, 1]] = True


def _positions(source: ChannelSource) -> Ids:
    """(n, 2) tensor and channel of everything that a source reads, in order."""
    pieces = [
        np.arange(piece.start, piece.stop) if piece.channels is None else np.array(piece.channels)
        for piece in source
    ]
    tensors = np.repeat([piece.tensor for piece in source], [len(piece) for piece in pieces])
    return np.stack([tensors, np.concatenate(pieces)], 1)


def _moved(positions: Ids, places: Sequence[Ids]) -> ChannelSource:
    """Describe where channels of the whole network are in the subnetwork; nothing for none.

    Args:
        positions: (n, 2) of the channels in the whole network.
        places: For every tensor of it (C, 2) the place of each channel in the subnetwork.
    """
    if not len(positions):
        return ()
    moved = np.empty_like(positions)
    for tensor in np.unique(positions[:, 0]):
        rows = positions[:, 0] == tensor
        moved[rows] = places[tensor][positions[rows, 1]]
    return source_of(moved)


def _head(head: HeadDescription, places: Sequence[Ids]) -> HeadDescription:
    """Describe a head that reads its features where they are in the subnetwork."""
    *earlier, last = [_moved(_positions(source), places) for source in head.sources]
    features = zip(head.earlier, earlier, strict=True)
    return head.model_copy(
        update={
            "source": last,
            "earlier": tuple(f.model_copy(update={"source": source}) for f, source in features),
        }
    )


def _unused(name: str, taken: Iterable[str]) -> str:
    """Return a name that no step has: another cut of a repeated layer has weights of its own."""
    names, own, count = set(taken), name, 1
    while own in names:
        count += 1
        own = f"{name}_{count}"
    return own
