"""Fresh batch norm statistics for a network whose channels have changed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Batch, Frames, normalised


@torch.no_grad()
def recompute_statistics(
    model: nn.Module,
    frames: Frames,
    *,
    runtime: Runtime,
    batch_size: int,
    most: int | None = None,
    seen: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Set every batch norm's running statistics to the mean over one pass of frames.

    Args:
        model: The network.
        frames: What to pass through it.
        runtime: Device and precision.
        batch_size: Frames at once.
        most: Frames of the pass at most, the first ones; all when None.
        seen: Batch -> images (B, 3, H, W) in 0..255 as training saw them. Statistics of frames that
            were not zoomed into cost networks that had been trained on zoomed ones 8 % of depth's
            RMSE. The frames as they are when None.
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
            image = batch["image"] if seen is None else seen(batch)
            with runtime.autocast():
                model(runtime.image(normalised(image)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
