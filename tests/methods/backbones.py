"""Small networks of our own, as users register them: of convolutions, and a transformer."""

import torch
from torch import Tensor, nn


class SmallConvolutions(nn.Module):
    """Inverted blocks with squeeze-and-excite, and blocks as ConvNeXt's, at strides 2, 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(Inverted(4, 6, stride=2), Inverted(6, 6)),
                nn.Sequential(Inverted(6, 8, stride=2), Inverted(8, 8), Modern(8), Modern(8)),
            ]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = torch.relu(self.stem(image))
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Inverted(nn.Module):
    """1x1, depthwise, squeeze-and-excite, 1x1, with a shortcut where shapes allow it."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        wide = 2 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide))
        self.depth = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.norm = nn.BatchNorm2d(wide)
        self.squeeze = nn.Conv2d(wide, 2, 1)
        self.excite = nn.Conv2d(2, wide, 1)
        self.project = nn.Sequential(
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.hardswish(self.expand(x))
        y = torch.relu(self.norm(self.depth(y)))
        gate = self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.project(y * nn.functional.hardsigmoid(gate))
        return x + y if self.adds else y


class Modern(nn.Module):
    """Depthwise, layer norm, linear layers, layer scale, stochastic depth, and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.wide = nn.Linear(channels, 2 * channels)
        self.narrow = nn.Linear(2 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.5))
        self.drop = DropPath(0.2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.narrow(nn.functional.gelu(self.wide(y))) * self.scale
        return self.drop(y.permute(0, 3, 1, 2)) + x


class DropPath(nn.Module):
    """Stochastic depth, as timm has it."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.drop_prob = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class SmallTransformer(nn.Module):
    """Patches of 8x8, a class token, four blocks of two heads; a map behind every block."""

    def __init__(self, side: int = 16) -> None:
        super().__init__()
        self.side = side // 8
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.token = nn.Parameter(torch.randn(1, 1, 8) / 10)
        self.places = nn.Parameter(torch.randn(1, self.side**2 + 1, 8) / 10)
        self.blocks = nn.ModuleList(Block(8) for _ in range(4))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (self.side, self.side)))
        return maps


class OneMap(SmallTransformer):
    """The same with a map behind the last block alone."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image)[-1]


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and before a sum."""

    def __init__(self, channels: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.wide, self.narrow = nn.Linear(channels, 16), nn.Linear(16, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.project(y.transpose(1, 2).reshape(batch, tokens, channels))
        return x + self.narrow(nn.functional.gelu(self.wide(self.norm2(x))))
