"""ReLU with an optional upper limit, and its gradient for hand-written backward passes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rectified(x: Tensor, ceiling: float | None) -> Tensor:
    """Compute min(max(x, 0), ceiling) in place; without an upper limit if `ceiling` is None."""
    return torch.relu_(x) if ceiling is None else F.hardtanh_(x, 0.0, ceiling)


def through_rectified(grad: Tensor, y: Tensor, ceiling: float | None) -> Tensor:
    """Return the gradient of x from the gradient of y = `rectified(x, ceiling)`."""
    if ceiling is None:
        return torch.ops.aten.threshold_backward(grad, y, 0)
    return torch.ops.aten.hardtanh_backward(grad, y, 0.0, ceiling)
