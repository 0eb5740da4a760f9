"""Trees of sharing: which streams' blocks are computed, what they cost, and smaller trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

# [block][reader][stream] -> score of the edge: the logit that the reader reads that stream.
Scores = Sequence[Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Tree:
    """For every block, the stream whose output each stream reads behind it.

    Attributes:
        parents: [block l][stream i] -> the stream whose block l is read by block l + 1 of stream i;
            behind the last block, by the head of task i. Every first block reads the image.
    """

    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def best(cls, scores: Scores) -> "Tree":
        """Follow the edge of the highest score from every reader; the first of equal ones."""
        return cls(
            tuple(
                tuple(max(range(len(row)), key=lambda j: (row[j], -j)) for row in rows)
                for rows in scores
            )
        )

    @property
    def tasks(self) -> int:
        """Number of tasks, and of streams."""
        return len(self.parents[0])

    @cached_property
    def nodes(self) -> tuple[tuple[int, ...], ...]:
        """[block] -> the streams in which it is computed, because a head depends on it.

        >>> Tree(((0, 0, 2), (0, 1, 1))).nodes  # two blocks; heads read streams 0, 1, 1
        ((0,), (0, 1))
        """
        readers: Sequence[int] = range(self.tasks)
        nodes = []
        for row in reversed(self.parents):
            readers = sorted({row[reader] for reader in readers})
            nodes.append(tuple(readers))
        return tuple(reversed(nodes))

    def path(self, task: int) -> tuple[int, ...]:
        """Return the stream that computes each block for a task's head, first block first."""
        stream, path = task, []
        for row in reversed(self.parents):
            stream = row[stream]
            path.append(stream)
        return tuple(reversed(path))

    def alone(self, task: int) -> tuple[bool, ...]:
        """Tell for each block whether the one that the task's head depends on serves no other."""
        paths = [self.path(t) for t in range(self.tasks)]
        return tuple(
            sum(path[block] == stream for path in paths) == 1
            for block, stream in enumerate(paths[task])
        )

    def redirected(self, block: int, stream: int, other: int) -> "Tree":
        """Return the tree in which all readers of a stream's block read another stream's."""
        row = tuple(other if parent == stream else parent for parent in self.parents[block])
        return Tree((*self.parents[:block], row, *self.parents[block + 1 :]))


@dataclass(frozen=True)
class Limit:
    """An upper bound on a sum of costs over the computed blocks.

    Attributes:
        blocks: Cost of each block in one stream.
        heads: Cost of all heads together.
        most: The bound.
    """

    blocks: tuple[int, ...]
    heads: int
    most: float

    def cost(self, tree: Tree) -> int:
        """Compute the cost of a tree: every computed block of every stream, and the heads."""
        counts = zip(self.blocks, tree.nodes, strict=True)
        return self.heads + sum(cost * len(nodes) for cost, nodes in counts)

    def share(self, tree: Tree) -> float:
        """Return the share of the bound that a tree takes; at most 1 within it."""
        return self.cost(tree) / self.most


def merged(tree: Tree, scores: Scores, limits: Sequence[Limit]) -> Tree:
    """Share the least important edges until a tree is within all limits.

    Two streams whose blocks have the same input are merged: all readers of the one read the other.
    Of all such merges, the next is the one that loses the least score of edges for each share of
    the exceeded limits that it saves. It saves exactly one block, so the tree ends as near below
    the limits as its blocks are fine. In the end everything is computed once, in one stream.

    Args:
        tree: The tree.
        scores: Scores of its edges.
        limits: Bounds, none below the cost of one stream.

    Raises:
        ValueError: A limit is below the cost of one stream.
    """
    while exceeded := [limit for limit in limits if limit.share(tree) > 1]:
        best: tuple[float, int, int, int] | None = None
        for block, nodes in enumerate(tree.nodes):
            saved = sum(limit.blocks[block] / limit.most for limit in exceeded)
            last = block + 1 == len(tree.nodes)
            readers = range(tree.tasks) if last else tree.nodes[block + 1]
            for stream, other in permutations(nodes, 2):
                if block and tree.parents[block - 1][stream] != tree.parents[block - 1][other]:
                    continue
                loss = sum(
                    scores[block][reader][stream] - scores[block][reader][other]
                    for reader in readers
                    if tree.parents[block][reader] == stream
                )
                item = (loss / max(saved, 1e-12), block, stream, other)
                best = item if best is None else min(best, item)
        if best is None:
            raise ValueError(
                f"a limit must allow one stream, found {[limit.most for limit in exceeded]} "
                f"exceeded by {[limit.cost(tree) for limit in exceeded]}"
            )
        tree = tree.redirected(*best[1:])
    return tree
