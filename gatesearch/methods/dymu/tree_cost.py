"""The exact cost of a tree's network, from sums over its blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gatesearch.cost import Budget, count_macs
from gatesearch.methods.dymu.supernet import DymuNet, block_macs, block_params
from gatesearch.methods.dymu.tree import Limit, Tree


@dataclass(frozen=True)
class TreeCost:
    """Cost of the trees of one supernet, as fvcore counts their networks.

    Attributes:
        block_macs: Multiply-adds of each block in one stream.
        block_params: Parameters of each block in one stream.
        head_macs: Multiply-adds of all heads.
        head_params: Parameters of all heads.
    """

    block_macs: tuple[int, ...]
    block_params: tuple[int, ...]
    head_macs: int
    head_params: int

    @classmethod
    def of(cls, supernet: DymuNet, input_shape: tuple[int, int, int, int]) -> "TreeCost":
        """Make it for a supernet on images (1, 3, H, W)."""
        whole = count_macs(_OneStream(supernet), input_shape, cross_check=False)
        return cls(
            block_macs(supernet.graph, (input_shape[2], input_shape[3])),
            block_params(supernet.graph),
            head_macs=whole.macs - whole.backbone_macs,
            head_params=sum(p.numel() for p in supernet.heads.parameters()),
        )

    def macs(self, tree: Tree) -> int:
        """Count the multiply-adds of a tree's network, heads included."""
        return Limit(self.block_macs, self.head_macs, most=1).cost(tree)

    def params(self, tree: Tree) -> int:
        """Count the parameters of a tree's network, heads included."""
        return Limit(self.block_params, self.head_params, most=1).cost(tree)

    def separate_macs(self, tasks: int) -> int:
        """Count the multiply-adds of all streams, of which none reads another."""
        return self.head_macs + tasks * sum(self.block_macs)

    def share(self, tree: Tree, budgets: Sequence[Budget]) -> float:
        """Return the largest share of any budget that a tree's network takes; 0 without any."""
        return max((limit.share(tree) for limit in self.limits(budgets)), default=0.0)

    def limits(self, budgets: Sequence[Budget]) -> list[Limit]:
        """Express budgets of multiply-adds and parameters as bounds on sums over blocks."""
        return [
            Limit(self.block_macs, self.head_macs, budget.limit)
            if budget.measure == "macs"
            else Limit(self.block_params, self.head_params, budget.limit)
            for budget in budgets
        ]


class _OneStream(nn.Module):
    """A supernet's first stream with all heads behind it."""

    def __init__(self, supernet: DymuNet) -> None:
        super().__init__()
        self.encoder = supernet.streams[supernet.tasks[0]]
        self.heads = supernet.heads

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {task: self.heads.call_head(task, features, image.shape[-2:]) for task in self.heads}
