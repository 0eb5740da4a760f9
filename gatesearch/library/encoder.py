"""A backbone with its initial weights, from which `gs.InterroGate` builds its streams."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from gatesearch.errors import UsageError, unknown
from gatesearch.models.backbones import BACKBONES, backbone_of
from gatesearch.models.graph import Graph
from gatesearch.models.heads import Feature
from gatesearch.models.model_factory import features_of
from gatesearch.models.pretrained import PUBLISHED
from gatesearch.study.schema import ModelSpec
from gatesearch.study.validation import validated


@dataclass(frozen=True)
class EncoderSpec:
    """A backbone: its graph, and the weights that all streams start from.

    Attributes:
        graph: Its layers.
        weights: State dict of `gatesearch.models.encoder.Encoder`; None for random weights.
    """

    graph: Graph
    weights: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @property
    def channels(self) -> int:
        """Channels C of the features (B, C, h, w), which heads read."""
        return self.graph.outputs

    @property
    def stride(self) -> int:
        """Input resolution divided by feature resolution, H / h."""
        return self.graph.stride

    @property
    def features(self) -> tuple[Feature, ...]:
        """Channels and stride of every map that a head with `reads_stages = True` reads."""
        return features_of(self.graph)


def encoder(
    name: str,
    *,
    width: float = 1.0,
    output_stride: int | Literal["auto"] = "auto",
    image_size: tuple[int, int] = (224, 224),
    pretrained: bool | str | Path = False,
) -> EncoderSpec:
    """Describe an encoder for `gs.InterroGate`: a backbone, its size and its initial weights.

    Args:
        name: `resnet18`, `resnet34`, `resnet50`, `deeplab_resnet34`, `efficientnet_lite0`,
            `timm:NAME`, `torchvision:NAME`, or a name that `gs.register_backbone` was given.
        width: Multiplier of its channels, 0.01 to 100; 1 for the imported ones.
        output_stride: Input resolution divided by feature resolution: 8, 16 or 32, reached by
            dilation; `auto` for 8, or what an imported network has.
        image_size: (H, W) of the images, which imported transformers depend on.
        pretrained: True for published weights, which are fetched; or a file: .safetensors with the
            parameter names of torchvision, or any state dict of an imported network. They need
            `width=1`.

    Returns:
        The encoder; its `channels` are those of the features that heads read.

    Raises:
        UsageError: Unknown backbone, a value out of range, or weights that do not fit.
        DataError: The weights cannot be fetched.

    >>> encoder("resnet18", width=0.25, output_stride=16).channels
    128
    """
    if not isinstance(name, str):
        raise unknown("encoder", str(name), BACKBONES)
    given = {"backbone": name, "width": width, "output_stride": output_stride}
    spec: ModelSpec = validated(ModelSpec, given, where="encoder")
    backbone = backbone_of(spec, image_size, key="encoder")
    if pretrained is False:
        return EncoderSpec(backbone.graph, backbone.initial(0))
    ours = name in BACKBONES
    if ours and (spec.width != 1 or name not in PUBLISHED):
        raise UsageError(
            f"pretrained weights are those of the whole width of {', '.join(PUBLISHED)}, found "
            f"{name} with width={width:g}; take width=1, or pretrained=False"
        )
    source = "imagenet" if pretrained is True else str(pretrained)
    return EncoderSpec(backbone.graph, backbone.trained(source))
