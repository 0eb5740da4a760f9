"""What the tests of the library share: heads of a user's own, and small networks with them."""

import torch
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.library.encoder import EncoderSpec
from gatesearch.library.network import InterroGate


def small() -> EncoderSpec:
    """An encoder with few channels."""
    return gs.encoder("resnet18", width=0.08, output_stride=32)


class Pooled(nn.Module):
    """A vector per image, with a buffer and a norm of its own; reads features alone."""

    def __init__(self, channels: int, outputs: int = 3) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, outputs)
        self.register_buffer("shift", torch.arange(outputs, dtype=torch.float64))

    def forward(self, features: Tensor, scale: float = 1.0) -> Tensor:
        return scale * self.linear(self.norm(features.mean((2, 3)))) + self.shift.float()


class Sized(nn.Module):
    """A picture in the size of the image, and another tensor beside it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1)

    def forward(self, features: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        scores = nn.functional.interpolate(self.conv(features), size=size)
        return {"scores": scores, "mean": scores.mean()}


def heads(channels: int) -> dict[str, nn.Module]:
    return {"vector": Pooled(channels), "picture": Sized(channels)}


def network(**options: object) -> InterroGate:
    torch.manual_seed(3)
    encoder = small()
    return InterroGate(encoder, heads(encoder.channels), **options)


def scatter(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, statistics and gates that tell every stream and channel from every other."""
    torch.manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)
    if isinstance(net, InterroGate):
        for values in (*net.alpha.values(), *net.beta.values()):
            nn.init.normal_(values)
    return net.eval()


def assert_same(ours: object, theirs: object) -> None:
    """Outputs of any nesting are equal up to rounding, 2e-5 of the largest value."""
    a, b = (torch.utils._pytree.tree_leaves(outputs) for outputs in (ours, theirs))
    assert len(a) == len(b) > 0
    for left, right in zip(a, b, strict=True):
        assert left.shape == right.shape
        gap, largest = (left - right).abs().max().item(), right.abs().max().item()
        assert gap <= 2e-5 * max(1e-3, largest)
