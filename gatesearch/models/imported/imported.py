"""An imported network: its graph, and where its weights come from."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.graph import Graph
from gatesearch.models.imported.calls import Recording
from gatesearch.models.imported.constants import Constant
from gatesearch.models.imported.convert import WHOLE, convert
from gatesearch.models.imported.dilating import dilated, strides_of
from gatesearch.models.imported.fusing import renamed, simplified, with_names
from gatesearch.models.imported.recording import record
from gatesearch.models.imported.stages import staged
from gatesearch.models.imported.unfilled import Unfilled
from gatesearch.models.nodes import INPUT, Node, Rearrange, Size
from gatesearch.models.nodes.position_operations import Reshape, Take

# Most tokens in front of those of patches: a class token, one for distillation, registers.
MOST_IN_FRONT = 16


@dataclass(frozen=True, eq=False)
class Imported:
    """A module as a graph.

    Attributes:
        name: As the user wrote it.
        graph: The encoder; its features are the outputs, or the ends of stages of one output.
        weights: Entry of the state dict of `Encoder(graph)` -> what it is in the module.
        build: Builds the module with fresh weights.
    """

    name: str
    graph: Graph
    weights: Mapping[str, Constant]
    build: Callable[[], nn.Module]

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Return the state of `Encoder(graph)` with the module's own initial weights."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(seed)
            module = self.build()
        return self.encoder_state(module.state_dict())

    def encoder_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state of `Encoder(graph)` from a state dict of the module.

        Args:
            state: Names may have `.` where the module has `_`, as timm's `features_only` names
                them; entries that the graph does not need are left out.

        Raises:
            UsageError: An entry is missing.
        """
        given = dict(state)
        by_key = {module_key(name): name for name in state}
        for name in self.parameters - set(state):
            if module_key(name) not in by_key:
                raise UsageError(
                    f"weights for {self.name} must have an entry {name}, found none of that name "
                    f"among {len(state)}; give the state dict of this very network"
                )
            given[name] = state[by_key[module_key(name)]]
        with torch.no_grad():
            return {
                name: constant.compute(given).detach().clone()
                for name, constant in self.weights.items()
            }

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of each entry of the state of `Encoder(graph)`."""
        with torch.device("meta"):
            return {name: x.shape for name, x in Encoder(self.graph).state_dict().items()}

    @cached_property
    def parameters(self) -> frozenset[str]:
        """Entries of the module's state dict that the graph needs."""
        return frozenset[str]().union(*(constant.names for constant in self.weights.values()))


def _with_features(
    nodes: Sequence[Node], outputs: Sequence[str], image_size: Size, *, as_returned: bool
) -> Graph:
    """Return the graph, whose features are the ends of stages where these are maps.

    Elsewhere, as inside a transformer, they are the module's outputs, or of one output the last
    maps of each size; always its outputs if `as_returned`.
    """
    sizes: dict[str, Size] = {INPUT: image_size}
    for node in nodes:
        sizes[node.name] = node.output_size(sizes)
    graph = Graph(tuple(nodes), strides_of(nodes)[nodes[-1].name])
    stages = [graph.stage(i) for i in range(1, graph.stages - 1)]
    ends = [stage[-1].name for stage in stages if stage]
    strides = strides_of(nodes)
    order = {node.name: i for i, node in enumerate(nodes)}
    if not as_returned and all(len(sizes[end]) == 2 for end in ends):
        outputs = [*ends, nodes[-1].name]
    elif not as_returned and len(outputs) == 1:  # the last map of each size, as before a patch
        maps = {strides[node.name]: node.name for node in nodes if len(sizes[node.name]) == 2}
        found = [maps[strides[end]] for end in ends if strides[end] in maps]
        last = nodes[-1].name
        outputs = [name for name in found if strides[name] < strides[last]] + [last]
    features = tuple(sorted(dict.fromkeys(outputs), key=order.__getitem__))
    return Graph(
        tuple(node for node in nodes if node.name in graph.needed(features)),
        graph.stride,
        features,
        tuple(strides[name] for name in features),
    )


def with_maps(imported: Imported, image_size: Size) -> Imported:
    """Return a backbone that ends in tokens with maps of those of patches, which heads read.

    Its features are then the maps of the ends of stages.

    Raises:
        UsageError: The tokens are those of no map.
    """
    graph, sizes = imported.graph, {INPUT: image_size}
    for node in graph:
        sizes[node.name] = node.output_size(sizes)
    if len(sizes[graph.nodes[-1].name]) == 2:
        return imported
    ends = [graph.stage(i)[-1] for i in range(1, graph.stages) if graph.stage(i)]
    maps = [_as_map(end, graph.nodes, sizes) for end in ends]
    nodes = (*graph.nodes, *maps)
    strides = strides_of(nodes)
    names = tuple(node.name for node in maps)
    read = Graph(nodes, graph.stride, names, tuple(strides[name] for name in names))
    return replace(imported, graph=read)


def _as_map(source: Node, nodes: Sequence[Node], sizes: Mapping[str, Size]) -> Node:
    """Return a node that makes the map of a transformer's tokens, without those in front."""
    tokens = math.prod(sizes[source.name])
    for node in reversed(nodes):
        size = sizes[node.name]
        if len(size) == 2 and 0 <= tokens - math.prod(size) <= MOST_IN_FRONT:
            take = Take(axis=0, start=tokens - math.prod(size))
            return Rearrange(
                f"{source.name}.map", source.name, source.outputs, (take, Reshape(sizes=size)),
                stage=source.stage,
            )  # fmt: skip
    raise UsageError(
        f"a backbone must give maps (B, C, h, w), found {tokens} tokens behind {source.name} that "
        "are those of no map; return a map"
    )


def import_module(
    name: str,
    build: Callable[[], nn.Module],
    image_size: tuple[int, int],
    *,
    output_stride: int | None = None,
    as_returned: bool = False,
    cut: Callable[[Recording], Recording] = lambda recording: recording,
) -> Imported:
    """Import a module.

    Args:
        name: As the user wrote it.
        build: Builds the module: image (B, 3, H, W) -> a feature map, or a list or dict of them.
        image_size: (H, W) for which it is imported. Networks of convolutions alone run on others.
        output_stride: Input resolution divided by that of the last features; None leaves it as it
            is.
        as_returned: Whether the features are the maps that the module returns, if several, rather
            than the ends of stages.
        cut: Chooses other outputs of the recording.

    Raises:
        UsageError: It has an operator that no kind of node computes, or cannot have that stride.
    """
    # Costs are counted under the default device meta, on which no values can be looked at.
    with torch.device("cpu"):
        return _import(name, build, image_size, output_stride, as_returned, cut)


def _import(
    name: str,
    build: Callable[[], nn.Module],
    image_size: tuple[int, int],
    output_stride: int | None,
    as_returned: bool,
    cut: Callable[[Recording], Recording],
) -> Imported:
    with torch.random.fork_rng(devices=[]), Unfilled():
        module = build()
    recording = cut(record(module, image_size, whole=lambda m: type(m).__name__ in WHOLE))
    converted = convert(recording, module.state_dict(), name)
    draft, taken = simplified(converted.draft, set(converted.outputs.values()))
    names = renamed(draft, recording.classes)
    draft = with_names(draft, names)
    outputs = [taken.get(output, output) for output in converted.outputs.values()]
    outputs = [names.get(output, output) for output in outputs]
    nodes, blocks = staged(draft, recording.classes, image_size)
    stride = strides_of(nodes)[nodes[-1].name]
    if output_stride not in (None, stride):
        changed = dilated(nodes, blocks, output_stride) if output_stride < stride else None
        if changed is None:
            possible = [
                str(s)
                for s in (2**i for i in range(8))
                if s == stride or (s < stride and dilated(nodes, blocks, s))
            ]
            raise UsageError(
                f"model.output_stride must be {' or '.join(possible)} for {name}, found "
                f"{output_stride}"
            )
        nodes = changed
    graph = _with_features(nodes, outputs, image_size, as_returned=as_returned and len(outputs) > 1)
    return Imported(
        name=name,
        graph=graph,
        weights={
            f"layers.{module_key(node.name)}.{entry}": constant
            for node in graph
            for entry, constant in draft.weights.get(node.name, {}).items()
        },
        build=build,
    )
