"""Which stage each node belongs to, and where blocks end."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from gatesearch.models.imported.builder import Draft
from gatesearch.models.nodes import INPUT, Add, MaxPool, Node, Rearrange, Size


@dataclass(frozen=True)
class Block:
    """Nodes of one instance of a class of blocks, `start` to `stop` in order of execution."""

    start: int
    stop: int


def staged(
    draft: Draft, classes: Mapping[str, type[nn.Module]], image_size: Size
) -> tuple[list[Node], tuple[Block, ...]]:
    """Return the nodes with their stages and ends of blocks, and the blocks.

    A stage is the nodes of one feature size: the stem is 0, the first block begins stage 1, and
    each block or module outside of blocks that makes the features smaller the next. A pooling
    belongs to the stage of its source.

    Args:
        draft: The nodes.
        classes: Path of each module of the network -> its class.
        image_size: (H, W).
    """
    ends = residual_sums(draft.nodes)
    blocks = _blocks(draft, classes, ends)
    if not ends:
        blocks = _repeated(draft, classes)
        ends = {block.stop - 1 for block in blocks}
    else:
        ends |= {
            block.stop - 1
            for block in blocks
            if not any(block.start <= end < block.stop for end in ends)
        }
    stages = _stages(draft, blocks, image_size)
    if not ends:
        ends = {i for i, stage in enumerate(stages) if stage and stage not in stages[i + 1 :]}
    ends.add(_last_computed(draft.nodes))  # what enters the heads is gated in any case
    nodes = [
        _placed(node, stage=stage, ends_block=i in ends)
        for i, (node, stage) in enumerate(zip(draft.nodes, stages, strict=True))
    ]
    return nodes, blocks


def residual_sums(nodes: Sequence[Node]) -> set[int]:
    """Return the sums past which nothing from before is read on the way to the last node."""
    needed = {nodes[-1].name}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.sources)
    last = {
        source: i for i, node in enumerate(nodes) if node.name in needed for source in node.sources
    }
    sums, open_until = set(), -1
    for i, node in enumerate(nodes):
        if node.name not in needed:
            continue
        if isinstance(node, Add) and open_until <= i:
            sums.add(i)
        open_until = max(open_until, last.get(node.name, -1))
    return sums


def _last_computed(nodes: Sequence[Node]) -> int:
    """Return the last node behind which only positions are rearranged."""
    places = {node.name: i for i, node in enumerate(nodes)}
    last = len(nodes) - 1
    while isinstance(nodes[last], Rearrange) and nodes[last].sources[0] in places:
        last = places[nodes[last].sources[0]]
    return last


def _placed(node: Node, *, stage: int, ends_block: bool) -> Node:
    changes: dict[str, Any] = {"stage": stage}
    if not isinstance(node, MaxPool):
        changes["ends_block"] = ends_block
    return cast(Node, replace(cast(Any, node), **changes))


def _blocks(
    draft: Draft, classes: Mapping[str, type[nn.Module]], ends: set[int]
) -> tuple[Block, ...]:
    """Return the instances of the classes that own residual sums, and their like.

    Their like have several layers and lie in containers of the same place: where `blocks.3.1` owns
    a sum, `blocks.0.0` is a block too.
    """
    owners = {draft.sites[draft.nodes[i].name].module for i in ends} - {""}
    kinds = {classes[path] for path in owners}
    containers = {_pattern(_parent(path)) for path in owners if re.search(r"\d", _parent(path))}
    own = _instances(draft, [path for path, kind in classes.items() if path and kind in kinds])
    like = _instances(
        draft, [path for path in classes if path and _pattern(_parent(path)) in containers]
    )
    return _disjoint([*own, *_of_several_layers(draft, like)])


def _repeated(draft: Draft, classes: Mapping[str, type[nn.Module]]) -> tuple[Block, ...]:
    """Return the instances of classes of several layers that occur repeatedly.

    Behind each of them only its own result is read.
    """
    by_kind: dict[type[nn.Module], list[str]] = {}
    for path, kind in classes.items():
        if path and not issubclass(kind, nn.Sequential | nn.ModuleList):
            by_kind.setdefault(kind, []).append(path)
    last = {source: i for i, node in enumerate(draft.nodes) for source in node.sources}
    found: list[Block] = []
    for paths in by_kind.values():
        blocks = _instances(draft, paths)
        many = _of_several_layers(draft, blocks)
        closed = all(
            last.get(node.name, -1) < block.stop
            for block in many
            for node in draft.nodes[: block.stop - 1]
        )
        if len(many) > 1 and closed:
            found += many
    return _disjoint(found)


def _instances(draft: Draft, paths: Sequence[str]) -> tuple[Block, ...]:
    """Return the blocks that modules are; of nested ones the outer."""
    modules = [draft.sites[node.name].module for node in draft.nodes]
    blocks = []
    for path in paths:
        inside = [
            i for i, module in enumerate(modules) if module == path or module.startswith(f"{path}.")
        ]
        if inside:
            blocks.append(Block(inside[0], inside[-1] + 1))
    return _disjoint(blocks)


def _of_several_layers(draft: Draft, blocks: Sequence[Block]) -> list[Block]:
    return [
        block
        for block in blocks
        if sum(node.has_weights for node in draft.nodes[block.start : block.stop]) > 1
    ]


def _disjoint(blocks: Sequence[Block]) -> tuple[Block, ...]:
    kept: list[Block] = []
    for block in sorted(set(blocks), key=lambda b: (b.start, -b.stop)):
        if not kept or block.start >= kept[-1].stop:
            kept.append(block)
    return tuple(kept)


def _stages(draft: Draft, blocks: Sequence[Block], image_size: Size) -> list[int]:
    nodes = draft.nodes
    sizes: dict[str, Size] = {INPUT: image_size}
    for node in nodes:
        sizes[node.name] = node.output_size(sizes)
    areas = {name: math.prod(size) for name, size in sizes.items()}
    block_of = {i: block for block in blocks for i in range(block.start, block.stop)}
    stage = 0
    stages: list[int] = []
    area = 0  # of the features of this stage, once it has begun
    first = min((block.start for block in blocks), default=0)
    for i, node in enumerate(nodes):
        if i in block_of:
            if i == block_of[i].start:
                block = block_of[i]
                end = areas[nodes[block.stop - 1].name]
                if i == first or end < area:
                    stage, area = stage + 1, end
        elif stage == 0 and not blocks:
            area, stage = areas[node.name], int(i > 0)
        elif stage > 0 and node.has_weights and 1 < areas[node.name] < area:
            stage, area = stage + 1, areas[node.name]
            for before in _leading(draft, i, block_of):
                stages[before] = stage
        stages.append(stage)
    return stages


def _leading(draft: Draft, i: int, block_of: Mapping[int, Block]) -> list[int]:
    """Return the nodes right before node i in the same module, as a norm is."""
    module = _parent(draft.sites[draft.nodes[i].name].module)
    leading: list[int] = []
    for before in range(i - 1, -1, -1):
        path = draft.sites[draft.nodes[before].name].module
        if not module or before in block_of or not path.startswith(f"{module}."):
            break
        leading.append(before)
    while leading and isinstance(draft.nodes[leading[-1]], Rearrange):  # a map of the old stage
        leading.pop()
    return leading


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "#", path)
