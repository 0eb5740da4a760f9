"""Hard parameter sharing: one encoder for all tasks (Caruana, Machine Learning 28, 1997)."""

from torch import Tensor, nn

from gatesearch.methods.base import Method, NoOptions
from gatesearch.methods.ends import compact_of_all_gates
from gatesearch.models import Parts


class MultiTaskNet(nn.Module):
    """One encoder, one head per task."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder()
        self.heads = parts.all_heads()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        features = self.encoder.features(image, self.heads.nodes(self.encoder.graph))
        size = image.shape[-2:]
        return {task: self.heads.call_head(task, features, size) for task in self.heads}


MTL = Method(
    name="mtl",
    paper="Caruana, Machine Learning 28",
    year=1997,
    summary="one encoder, one head per task",
    build=lambda parts, options: MultiTaskNet(parts),
    options=NoOptions,
    as_compact=lambda network, study: compact_of_all_gates(network, study, open_=False),
)
