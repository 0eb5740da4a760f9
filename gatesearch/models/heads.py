"""Heads: features -> a dense prediction at the size of the image, or one vector per image.

A user's head may give anything else.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.models.conv_norm import ConvNorm

ASPP_RATES = (12, 24, 36)
ASPP_DROPOUT = 0.5


class Head(nn.Module):
    """Layers on the features, then bilinear enlargement to `size`.

    Attributes:
        layers: (B, inputs, h, w) -> (B, outputs, h, w).
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, *size), float32."""
        scores = self.layers(features)
        # Losses need fp32; enlarging channels-last tensors is several times faster on a processor.
        scores = scores.float().contiguous(memory_format=torch.channels_last)
        return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


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


class FunctionHead(nn.Module):
    """A head that is a function without weights, called as `takes_size` says."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: object) -> object:
        """Call the function."""
        return self.function(*inputs)


def takes_size(head: nn.Module) -> bool:
    """Tell whether a head is called with features and image size, or with features alone.

    It is called with both if its `forward` has a second positional parameter that is named `size`
    or has no default. A `forward` without a signature, as of a scripted module, gets features.
    """
    forward = head.function if isinstance(head, FunctionHead) else head.forward
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [parameter for parameter in parameters if parameter.kind in kinds][1:2]
    return any(p.name == "size" or p.default is inspect.Parameter.empty for p in second)


class Heads(nn.ModuleDict):
    """Task -> head, each of which is called as its `forward` asks (see `takes_size`)."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        self._takes_size: dict[str, bool] = {}
        super().__init__(dict(heads))

    def __setitem__(self, task: str, head: nn.Module) -> None:
        """Set the head of a task."""
        super().__setitem__(task, head)
        self._takes_size[task] = takes_size(head)

    def call_head(self, task: str, features: Tensor, size: Sequence[int]) -> Tensor:
        """Compute a task's prediction from features (B, C, h, w) of an image of `size` (H, W)."""
        head = self[task]
        prediction: Tensor = head(features, size) if self._takes_size[task] else head(features)
        return prediction


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image pooling (Chen et al., DeepLabV3, 2017)."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNorm(inputs, channels, 1),
                *(ConvNorm(inputs, channels, 3, dilation=rate) for rate in ASPP_RATES),
            ]
        )
        self.pooled = ConvNorm(inputs, channels, 1)
        self.project = ConvNorm(channels * (len(ASPP_RATES) + 2), channels, 1)
        self.dropout = nn.Dropout(ASPP_DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, channels, h, w)."""
        pooled = self.pooled(x.mean((2, 3), keepdim=True)).expand(-1, -1, *x.shape[2:])
        features = torch.cat([*(branch(x) for branch in self.branches), pooled], 1)
        out: Tensor = self.dropout(self.project(features))
        return out


def deeplabv3(inputs: int, channels: int, outputs: int) -> Head:
    """Build DeepLabV3: ASPP at rates 12, 24, 36, a 3x3 convolution, a 1x1 classifier."""
    return Head(
        nn.Sequential(
            ASPP(inputs, channels), ConvNorm(channels, channels, 3), nn.Conv2d(channels, outputs, 1)
        )
    )


def light(inputs: int, channels: int, outputs: int) -> Head:
    """Build one 3x3 convolution and a 1x1 classifier."""
    return Head(nn.Sequential(ConvNorm(inputs, channels, 3), nn.Conv2d(channels, outputs, 1)))


def pooled(inputs: int, channels: int, outputs: int) -> PooledHead:
    """Build global average pooling and a linear layer, which has no channels inside."""
    return PooledHead(inputs, outputs)


# Name -> (channels of the features, channels inside the head, outputs) -> head.
HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "deeplabv3": deeplabv3,
    "light": light,
    "pooled": pooled,
}
# Heads that predict one vector per image; all others predict values per pixel.
PER_IMAGE = {"pooled"}
