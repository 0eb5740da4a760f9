"""The head for one prediction per image."""

from torch import Tensor, nn


class PooledHead(nn.Module):
    """Global average pooling, then a linear layer: a prediction per image.

    Args:
        inputs: Channels of the features.
        outputs: Numbers to predict.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs), float32."""
        prediction: Tensor = self.linear(features.mean((2, 3)))
        return prediction.float()


def pooled(inputs: int, channels: int, outputs: int) -> PooledHead:
    """Build global average pooling and a linear layer, which has no channels inside."""
    return PooledHead(inputs, outputs)
