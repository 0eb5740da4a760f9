"""Fresh batch norm statistics for a network whose channels have changed."""

import torch
from torch import nn

from gatesearch.training.frames import Frames, normalised
from gatesearch.training.runtime import Runtime


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, frames: Frames, *, runtime: Runtime, batch_size: int, most: int | None = None
) -> None:
    """Set every batch norm's running statistics to the mean over one pass of plain frames.

    Args:
        model: The network.
        frames: What to pass through it.
        runtime: Device and precision.
        batch_size: Frames at once.
        most: Frames of the pass at most, the first ones; all when None.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for batch in frames.in_order(batch_size, most):
        if len(batch["image"]) > 1:
            with runtime.autocast():
                model(runtime.image(normalised(batch["image"])))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
