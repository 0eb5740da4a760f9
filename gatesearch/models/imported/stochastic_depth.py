"""Modules that drop whole images of a residual branch in training."""

from torch import nn


def drop_probability(module: nn.Module) -> float:
    """Return the probability with which a module drops an image; 0 for any other module.

    Known are timm's `DropPath` with the copies of it in other code, and torchvision's
    `StochasticDepth` by rows. Both divide what they keep by 1 - p.
    """
    kind, found = type(module).__name__, None
    if kind == "DropPath" and getattr(module, "scale_by_keep", True):
        found = getattr(module, "drop_prob", None)
    elif kind == "StochasticDepth" and getattr(module, "mode", None) == "row":
        found = getattr(module, "p", None)
    return float(found) if isinstance(found, int | float) else 0.0
