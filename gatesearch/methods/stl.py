"""Single-task learning: one network per task, nothing shared; the reference of Δ_MTL."""

from typing import cast

from torch import Tensor, nn

from gatesearch.methods.base import Method, NoOptions
from gatesearch.methods.ends import compact_of_all_gates
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder


class SingleTaskNets(nn.Module):
    """T separate networks in one module, so that one loop trains them all.

    They share no parameter, and the optimizers update each parameter by itself. So this is the same
    as T separate trainings on the same batches.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({task: parts.encoder(task) for task in parts.tasks})
        self.heads = parts.all_heads()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        size = image.shape[-2:]
        return {
            task: self.heads.call_head(task, self._features(task, image), size)
            for task in self.encoders
        }

    def _features(self, task: str, image: Tensor) -> list[Tensor]:
        encoder = cast(Encoder, self.encoders[task])
        return encoder.features(image, self.heads.nodes(encoder.graph, task))


STL = Method(
    name="stl",
    paper="(reference)",
    year=1997,
    summary="one network per task, nothing shared",
    build=lambda parts, options: SingleTaskNets(parts),
    options=NoOptions,
    as_compact=lambda network, study: compact_of_all_gates(network, study, open_=True),
    effort="T encoders",
)
