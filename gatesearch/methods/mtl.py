"""Hard parameter sharing: one encoder for all tasks (Caruana, 1997)."""

from torch import Tensor, nn

from gatesearch.models.model_factory import Parts


class MTL(nn.Module):
    """One encoder, one head a task."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.encoder = parts.encoder()
        self.heads = parts.all_heads()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        features = self.encoder(image)
        return {task: head(features, image.shape[-2:]) for task, head in self.heads.items()}
