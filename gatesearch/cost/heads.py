"""The multiply-adds of one head of a supernet."""

from collections.abc import Mapping

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
    head = _HeadOfZeros(supernet.heads[task], shapes)
    return count_macs(head, (1, 3, *sizes[INPUT]), cross_check=False).macs


class _HeadOfZeros(nn.Module):
    """A head as a network of its own: it reads features of zeros, whatever the image."""

    def __init__(self, head: nn.Module, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.heads = Heads({"head": head})
        self.shapes = shapes

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> what the head returns."""
        maps = [image.new_zeros(1, *shape) for shape in self.shapes]
        return self.heads.call_head("head", maps, image.shape[-2:])
