"""ReLU, also cut off at a ceiling, and its gradient for layers that write theirs out."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rectified(x: Tensor, ceiling: float | None) -> Tensor:
    """min(max(x, 0), ceiling), in place; no ceiling where it is None."""
    return torch.relu_(x) if ceiling is None else F.hardtanh_(x, 0.0, ceiling)


def through_rectified(grad: Tensor, y: Tensor, ceiling: float | None) -> Tensor:
    """Gradient of x from that of y = `rectified(x, ceiling)`."""
    if ceiling is None:
        return torch.ops.aten.threshold_backward(grad, y, 0)
    return torch.ops.aten.hardtanh_backward(grad, y, 0.0, ceiling)
