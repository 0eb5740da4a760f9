"""Random changes of the colours of whole batches."""

from collections.abc import Callable

import torch
from torch import Tensor

# Weights of red, green and blue in the brightness of a pixel (ITU-R BT.601), as torchvision has
# them.
GREY = (0.2989, 0.587, 0.114)


def jitter(
    image: Tensor,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
    generator: torch.Generator,
) -> Tensor:
    """Change brightness, contrast, saturation and hue of each sample by random amounts.

    As torchvision's `ColorJitter` (https://docs.pytorch.org/vision/stable/transforms.html): factors
    are drawn uniformly for each sample, and the four changes follow each other in random order.
    Ours differs in that all samples of a batch have one order, and in that colours are not rounded
    between the changes.

    Args:
        image: (B, 3, H, W) in 0..255, uint8 or floating-point; it is not changed.
        brightness: b; pixels are multiplied by a factor in [max(0, 1 - b), 1 + b].
        contrast: c; differences to the mean brightness of the image, factor likewise.
        saturation: s; differences to the brightness of the same pixel, factor likewise.
        hue: h, at most 1/2; the hue is turned by a share of the circle in [-h, h].
        generator: Source of the draws, on the processor. A change by 0 draws nothing.

    Returns:
        (B, 3, H, W) float32 in 0..255.
    """
    changes: list[tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = [
        (adjust_brightness, max(0.0, 1 - brightness), 1 + brightness),
        (adjust_contrast, max(0.0, 1 - contrast), 1 + contrast),
        (adjust_saturation, max(0.0, 1 - saturation), 1 + saturation),
        (adjust_hue, -hue, hue),
    ]
    image = image.float()
    for i in torch.randperm(len(changes), generator=generator).tolist():
        change, low, high = changes[i]
        if low < high:
            amount = low + (high - low) * torch.rand(len(image), generator=generator)
            image = change(image, amount.to(image.device))
    return image


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply the pixels of float images (B, 3, H, W) in 0..255 by factors (B,)."""
    return (image * factor[:, None, None, None]).clamp_(0, 255)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply differences to the mean brightness of each image by factors (B,)."""
    return _away_from(_grey(image.mean((2, 3), keepdim=True)), image, factor)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Multiply differences to the brightness of each pixel by factors (B,)."""
    return _away_from(_grey(image), image, factor)


def adjust_hue(image: Tensor, turn: Tensor) -> Tensor:
    """Turn hues of float images (B, 3, H, W) in 0..255 by shares (B,) of the circle.

    Of a pixel with the highest channel v and the lowest channel v - c, hue h in sixths of the
    circle from red, the channels are

        v - c max(0, min(k, 4 - k, 1)),  k = (n + h) mod 6,  n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = image.unbind(1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    chroma = highest - torch.minimum(torch.minimum(red, green), blue)
    divisor = chroma.clamp(min=1e-6)
    hue = torch.where(
        highest == red,
        (green - blue).div_(divisor),
        torch.where(
            highest == green,
            (blue - red).div_(divisor).add_(2),
            (red - green).div_(divisor).add_(4),
        ),
    ).add_(6 * turn[:, None, None])
    turned = torch.empty_like(image)
    for channel, n in enumerate((5, 3, 1)):
        k = (hue + n).remainder_(6)
        share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)  # max(0, min(k, 4 - k, 1))
        torch.addcmul(highest, chroma, share, value=-1, out=turned[:, channel])
    return turned


def _grey(image: Tensor) -> Tensor:
    """Brightness of the pixels of images (B, 3, H, W), (B, 1, H, W)."""
    red, green, blue = image.unbind(1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])[:, None]


def _away_from(grey: Tensor, image: Tensor, factor: Tensor) -> Tensor:
    """Multiply differences of images to grey values (B, 1, H or 1, W or 1) by factors (B,)."""
    factor = factor[:, None, None, None]
    return (image * factor).add_(grey * (1 - factor)).clamp_(0, 255)
