"""Encoders by name: built as graphs for any width and output stride, or imported.

A new one of the package's own is a file with its graph, a line here and, for published weights, one
in `gatesearch.models.pretrained.PUBLISHED`. Any other is imported (`gatesearch.models.imported`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

from torch import Tensor

from gatesearch.errors import UsageError, unknown
from gatesearch.models.cnn import cnn
from gatesearch.models.efficientnet import efficientnet_lite0
from gatesearch.models.graph import Graph
from gatesearch.models.imported import REGISTERED, import_backbone, is_imported
from gatesearch.models.imported.weights import trained_state
from gatesearch.models.pretrained import load_pretrained
from gatesearch.models.resnet import resnet

BACKBONES: dict[str, Callable[..., Graph]] = {
    "resnet18": partial(resnet, depths=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(resnet, depths=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(resnet, depths=(3, 4, 6, 3), bottleneck=True),
    # The backbone of AdaShare (Sun et al., NeurIPS 2020), in which its costs are counted.
    "deeplab_resnet34": partial(resnet, depths=(3, 4, 6, 3), bottleneck=False, deeplab=True),
    "efficientnet_lite0": efficientnet_lite0,
    # Plain convolutions for small images, without published weights.
    "cnn4": partial(cnn, depth=1),
    "cnn8": partial(cnn, depth=2),
}
OUTPUT_STRIDE = 8
FORMS = ("timm:NAME", "torchvision:NAME")


class BackboneSpec(Protocol):
    """What a study says of its backbone: `gatesearch.study.schema.ModelSpec`."""

    @property
    def backbone(self) -> str:
        """Its name."""

    @property
    def width(self) -> float:
        """Multiplier of its channels."""

    @property
    def output_stride(self) -> int | Literal["auto"]:
        """Input resolution divided by feature resolution; `auto` for what is usual."""


@dataclass(frozen=True)
class Backbone:
    """An encoder and the weights that it can start from.

    Attributes:
        graph: The encoder.
        initial: Seed -> state of `Encoder(graph)` with its own kind of random weights; None where
            the nodes' modules draw them.
        trained: Source of weights, as `model.weights` says it -> state with trained ones.
    """

    graph: Graph
    initial: Callable[[int], Mapping[str, Tensor] | None]
    trained: Callable[[str], Mapping[str, Tensor]]


def backbone_of(
    spec: BackboneSpec, image_size: tuple[int, int], *, key: str = "model.backbone"
) -> Backbone:
    """Build or import a backbone.

    Args:
        spec: Which one.
        image_size: (H, W) of the images; imported transformers take no others.
        key: What the name is called in errors.

    Raises:
        UsageError: It is unknown or cannot be imported, or a width or stride that it cannot have.
    """
    name = spec.backbone
    if is_imported(name):
        return _imported(spec, image_size)
    if name not in BACKBONES:
        raise unknown(key, name, [*BACKBONES, *REGISTERED, *FORMS])
    stride = OUTPUT_STRIDE if spec.output_stride == "auto" else spec.output_stride
    if stride < OUTPUT_STRIDE:
        raise UsageError(f"model.output_stride must be 8, 16 or 32 for {name}, found {stride}")
    graph = BACKBONES[name](output_stride=stride, width=spec.width)
    return Backbone(graph, lambda seed: None, partial(load_pretrained, name, graph=graph))


def _imported(spec: BackboneSpec, image_size: tuple[int, int]) -> Backbone:
    if spec.width != 1:
        raise UsageError(
            f"model.width must be 1 for the imported backbone {spec.backbone}, found "
            f"{spec.width:g}; take a smaller network of the same family"
        )
    stride = None if spec.output_stride == "auto" else spec.output_stride
    found = import_backbone(spec.backbone, image_size, stride)
    return Backbone(
        found.graph,
        found.initial,
        lambda weights: trained_state(found, weights, image_size),
    )
