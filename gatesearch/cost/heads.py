"""The multiply-adds of heads without their encoder."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gatesearch.cost.macs import count_macs
from gatesearch.models import GatedSupernet
from gatesearch.models.heads import Heads
from gatesearch.models.model_factory import nodes_read
from gatesearch.models.nodes import INPUT, Size


def macs_of_head(supernet: GatedSupernet, task: str, sizes: Mapping[str, Size]) -> int:
    """Count the multiply-adds of a task's head.

    Args:
        supernet: The supernet.
        task: One of its tasks.
        sizes: Positions of every node of its encoder, and of the image.
    """
    graph = supernet.graph
    read = dict(zip(supernet.tasks, nodes_read(graph, supernet.head_specs), strict=True))[task]
    shapes = [(graph.channels(name), *sizes[name]) for name in read]
    return macs_of_heads(Heads({task: supernet.heads[task]}), shapes, sizes[INPUT])


def macs_of_heads(heads: Heads, shapes: Sequence[tuple[int, ...]], size: Size) -> int:
    """Count the multiply-adds of heads.

    Args:
        heads: Task -> head.
        shapes: (C, *positions) of each feature that some head reads.
        size: (H, W) of the image.
    """
    return count_macs(_HeadsAlone(heads, shapes), (1, 3, *size), cross_check=False).macs


class _HeadsAlone(nn.Module):
    """Heads on features of zeros, whatever the image shows."""

    def __init__(self, heads: Heads, shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.heads, self.shapes = heads, shapes

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        maps = [image.new_zeros(image.shape[0], *shape) for shape in self.shapes]
        return {task: self.heads.call_head(task, maps, image.shape[-2:]) for task in self.heads}
