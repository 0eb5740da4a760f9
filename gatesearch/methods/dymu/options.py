"""Options, search space and bounds of DYMU."""

import math
from typing import Annotated

from pydantic import Field

from gatesearch.errors import UsageError
from gatesearch.methods.dymu.blocks import blocks_of
from gatesearch.methods.space import Range, Space
from gatesearch.models.graph import Graph
from gatesearch.strict import Strict

Positive = Annotated[float, Field(gt=0, le=1e6)]
Weight = Annotated[float, Field(ge=0, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-6, le=1e6)]

# The inputs of the hypernetworks. `prefer` is a weight per task, of which only the ratios count.
# `cost_weight` is c of the paper: the importance of a low cost, 1 for the cheapest tree.
SPACE: Space = {
    "prefer": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
    "cost_weight": Range(0.0, 1.0, legal=(0.0, 1.0)),
}

# Most edges that a tree is chosen from: T² behind each block. A step of training mixes T features
# over each of them, and merging streams looks at all of them.
MOST_EDGES = 2048


class DymuOptions(Strict):
    """Options of DYMU. Defaults are the paper's where it states them; those marked + are ours.

    Attributes:
        edges: Share of the supernet's epochs in which the edge hypernetwork is trained, rounded up
            to whole epochs; the weight hypernetwork is trained in the others. +
        lr: Learning rate of both hypernetworks, which Adam trains; the study's schedule lowers it.
        embedding: Length of the embeddings of (preference, cost), of blocks and of nodes.
        concentration: Parameter of the Dirichlet distribution from which preferences are drawn.
        active: λ_A, the weight of the active loss.
        inactive: λ_I, the weight of the inactive loss.
        threshold: A task is active if its preference is at least this multiple of 1 / T. At most 1,
            so that some task always is. +
        temperature: Temperature of the Gumbel softmax at the start and at the end of the training
            of the edge hypernetwork, lowered geometrically. +
        frames: Number of training frames from which the affinity of tasks is estimated. +
        patterns: Number of configurations that are tried on the validation part without training;
            by default as many as take about a quarter of the supernet's training. +
        statistics: Number of training frames for the batch norm statistics of a tried network. +
        finetune: Share of `training.epochs`, the last, in which a network that was cut out of the
            supernet is trained. 0 in the paper.
    """

    edges: float = Field(default=0.5, ge=0, le=1)
    lr: Positive = 1e-3
    embedding: int = Field(default=32, ge=1, le=4096)
    concentration: Positive = 0.2
    active: Weight = 1.0
    inactive: Weight = 0.1
    threshold: float = Field(default=1.0, gt=0, le=1)
    temperature: tuple[Temperature, Temperature] = (5.0, 0.1)
    frames: int = Field(default=64, ge=3, le=10**6)
    patterns: int | None = Field(default=None, ge=1, le=10**6)
    statistics: int = Field(default=256, ge=2, le=10**9)
    finetune: float = Field(default=0.0, ge=0, lt=1)

    def phases(self, epochs: int) -> tuple[int, int]:
        """Return (last epoch of the edge hypernetwork, last of the weight hypernetwork).

        >>> DymuOptions(finetune=0.25).phases(10)
        (4, 8)
        >>> DymuOptions().phases(1)
        (1, 1)
        """
        end = epochs - int(self.finetune * epochs)
        return math.ceil(self.edges * end), end


def check_size(*, tasks: int, graph: Graph) -> None:
    """Refuse a network with more edges than a tree can be chosen from.

    Args:
        tasks: Number of tasks T, each with a stream.
        graph: The encoder.

    Raises:
        UsageError: There are too many.
    """
    blocks = len(blocks_of(graph))
    edges = tasks**2 * blocks
    if edges > MOST_EDGES:
        digits = round(blocks * tasks * math.log10(tasks))
        raise UsageError(
            f"dymu chooses its trees from at most {MOST_EDGES:,} edges, T² for T tasks behind each "
            f"block; found {tasks} tasks and {blocks} blocks, {edges:,} edges or about 10^{digits} "
            "trees; take fewer tasks, or a model.backbone of fewer blocks"
        )
