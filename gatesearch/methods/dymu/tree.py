"""Trees of sharing: which streams' blocks are computed, what they cost, and smaller trees."""

from collections.abc import Iterator, Sequence
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


def merged(
    tree: Tree, scores: Scores, limits: Sequence[Limit], *, preference: Sequence[float]
) -> Tree:
    """Share the least important edges until a tree is within all limits.

    Two streams whose blocks have the same input are merged: all readers of the one read the other.
    It loses the score of the edge that each of them gives up less that of the one it takes, times
    the preferences of the tasks that depend on the reader. The next merge is always that of the
    least loss for each share of the exceeded limits that it saves; of equal ones, the one of the
    least loss for equal preferences, then the earliest. It saves exactly one block, so the tree
    ends less than a block below the limits. In the end everything is computed once, in one stream.

    Args:
        tree: The tree.
        scores: Scores of its edges.
        limits: Bounds, none below the cost of one stream.
        preference: Of every task.

    Raises:
        ValueError: A limit is below the cost of one stream.
    """
    while exceeded := [limit for limit in limits if limit.share(tree) > 1]:
        saved = [
            max(sum(limit.blocks[block] / limit.most for limit in exceeded), 1e-12)
            for block in range(len(tree.parents))
        ]
        merges = [
            (tuple(loss / saved[block] for loss in losses), block, stream, other)
            for block, stream, other, losses in _merges(tree, scores, preference)
        ]
        if not merges:
            raise ValueError(
                f"a limit must allow one stream, found {[limit.most for limit in exceeded]} "
                f"exceeded by {[limit.cost(tree) for limit in exceeded]}"
            )
        _, *merge = min(merges)
        tree = tree.redirected(*merge)
    return tree


def _merges(
    tree: Tree, scores: Scores, preference: Sequence[float]
) -> Iterator[tuple[int, int, int, tuple[float, float]]]:
    """List (block, stream, other, (loss by preferences, loss for equal ones)) of all merges."""
    paths = [tree.path(task) for task in range(tree.tasks)]
    for block, nodes in enumerate(tree.nodes):
        # Reader of this block -> the tasks that depend on it.
        dependent: dict[int, list[int]] = {}
        for task, path in enumerate(paths):
            reader = task if block + 1 == len(path) else path[block + 1]
            dependent.setdefault(reader, []).append(task)
        for stream, other in permutations(nodes, 2):
            if block and tree.parents[block - 1][stream] != tree.parents[block - 1][other]:
                continue
            gaps = {
                reader: scores[block][reader][stream] - scores[block][reader][other]
                for reader in dependent
                if tree.parents[block][reader] == stream
            }
            weighted = sum(
                gap * sum(preference[task] for task in dependent[reader])
                for reader, gap in gaps.items()
            )
            equal = sum(gap * len(dependent[reader]) for reader, gap in gaps.items())
            yield block, stream, other, (weighted, equal)
