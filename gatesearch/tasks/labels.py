"""How labels are encoded and stored, and helpers that several kinds of task share."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Label of a pixel that loss and metric ignore, where labels are classes or 0 and 1.
IGNORE = 255


@dataclass(frozen=True)
class Storage:
    """How a pack stores one field of its frames.

    Attributes:
        dtype: Element type as NumPy spells it, with its byte order.
        channels: What follows (H, W) in the shape.
    """

    dtype: str
    channels: tuple[int, ...] = ()


def to_tensor(stored: NDArray[Any]) -> Tensor:
    """A pack's field (N, H, W) or (N, H, W, C) as (N, H, W) or (N, C, H, W); halves as float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    if tensor.dtype == torch.float16:
        tensor = tensor.float()
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def to_array(tensor: Tensor) -> NDArray[Any]:
    """(N, H, W) or (N, C, H, W) on the processor as an array with its channels last."""
    channels_last = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return np.asarray(channels_last.contiguous().numpy())


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; 0 with zero gradient where nothing is masked in."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def nearest_resize(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest-neighbour resize of (B, H, W), exact for integer labels below 2^24."""
    resized = F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")
    return resized[:, 0].to(target.dtype)
