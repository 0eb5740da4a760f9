"""Which stage each node belongs to, and where blocks end."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from gatesearch.models.imported.builder import Draft
from gatesearch.models.nodes import INPUT, Add, MaxPool, Node, Rearrange, Size

# Stages of a network whose features are all of one size, as many as DPT reads of a ViT.
EVEN_STAGES = 4


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
    each node or block that makes the features smaller the next. A pooling belongs to the stage of
    its source; what leads from the last block of a stage to smaller features belongs to the next.
    Blocks of more than a quarter of the image's height and width belong to the stem, if there are
    others. Where all features are of one size, as in a ViT, the blocks make four stages of
    equal length.

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
    stages = _stages(draft.nodes, blocks, image_size)
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


def _stages(nodes: Sequence[Node], blocks: Sequence[Block], image_size: Size) -> list[int]:
    sizes: dict[str, Size] = {INPUT: image_size}
    for node in nodes:
        sizes[node.name] = node.output_size(sizes)
    areas = {name: math.prod(size) for name, size in sizes.items()}
    block_of = {i: block for block in blocks for i in range(block.start, block.stop)}
    deep = [block for block in blocks if 8 * areas[nodes[block.stop - 1].name] < areas[INPUT]]
    first = min((block.start for block in deep or blocks), default=0)
    stage, stages = 0, list[int]()
    area = 0  # of the features of this stage, once it has begun
    behind: int | None = None  # the last block of this stage, if it has any
    for i, node in enumerate(nodes):
        begins, before = stage, area
        if i in block_of:
            block = block_of[i]
            if i == block.start and i >= first:
                area = areas[nodes[block.stop - 1].name]
                begins += i == first or area < before
        elif stage == 0 and not blocks:
            area, begins = areas[node.name], int(i > 0)
        elif stage > 0 and node.has_weights and 1 < areas[node.name] < area:
            area, begins = areas[node.name], stage + 1
        if begins > stage:
            if behind is not None and stage > 0:  # with what leads from the last block to it
                stages[behind:] = [begins] * (i - behind)
            behind = None
        stage = begins
        behind = i + 1 if i in block_of else behind
        stages.append(stage)
    if stage == 1 and len(blocks) >= EVEN_STAGES:
        ends = [blocks[len(blocks) * i // EVEN_STAGES - 1].stop for i in range(1, EVEN_STAGES)]
        stages = [s + sum(i >= end for end in ends) for i, s in enumerate(stages)]
    return stages


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _pattern(path: str) -> str:
    return re.sub(r"\d+", "#", path)
