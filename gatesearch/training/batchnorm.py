"""New batch norm statistics for a network whose channels have changed."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gatesearch.training.runtime import Runtime
from gatesearch.training.split_data import Batch, FrameData, normalize


@torch.no_grad()
def recompute_statistics(
    model: nn.Module,
    frames: FrameData,
    *,
    runtime: Runtime,
    batch_size: int,
    max_frames: int | None = None,
    augmented: Callable[[Batch], Tensor] | None = None,
) -> None:
    """Set every batch norm's running statistics to the mean over one pass through frames.

    Args:
        model: The network.
        frames: What to pass through it.
        runtime: Device and precision.
        batch_size: Frames per batch.
        max_frames: Pass only the first so many frames; all when None.
        augmented: Batch -> images (B, 3, H, W) in 0..255, augmented as in training; None takes the
            frames as they are. Statistics of frames that were not zoomed into cost networks that
            had been trained on zoomed ones 8 % of depth's RMSE.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for batch in frames.in_order(batch_size, max_frames):
        if len(batch["image"]) > 1:
            image = batch["image"] if augmented is None else augmented(batch)
            with runtime.autocast():
                model(runtime.image(normalize(image)))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
