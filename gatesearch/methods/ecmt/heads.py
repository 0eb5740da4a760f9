"""The heads that can be made narrower: what their weights read, and what they cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gatesearch.errors import UsageError
from gatesearch.models import Parts
from gatesearch.models.graph import Graph
from gatesearch.models.heads import ASPP_RATES
from gatesearch.models.model_factory import HeadSpec

_BRANCHES = len(ASPP_RATES) + 2  # of ASPP: 1x1, a 3x3 per rate, and image pooling


@dataclass(frozen=True)
class SlimmableHead:
    """A kind of head of which it is known which of its channels belong together.

    Attributes:
        macs: (head, pixels of the features) -> multiply-adds.
        params: Head -> parameters.
        concatenated: Weight that reads several tensors side by side -> number of these tensors.
    """

    macs: Callable[[HeadSpec, int], int]
    params: Callable[[HeadSpec], int]
    concatenated: Mapping[str, int] = field(default_factory=dict)


def _light_weights(head: HeadSpec) -> int:
    """Count the weights of the 3x3 convolution and of the classifier."""
    return 9 * head.inputs * head.channels + head.channels * head.outputs


def _light_params(head: HeadSpec) -> int:
    return _light_weights(head) + 2 * head.channels + head.outputs


def _deeplabv3_weights(head: HeadSpec) -> int:
    """Count the weights that are applied at every pixel: all but those behind image pooling."""
    branches = (1 + 9 * len(ASPP_RATES)) * head.inputs * head.channels
    return branches + (_BRANCHES + 9) * head.channels**2 + head.channels * head.outputs


def _deeplabv3_params(head: HeadSpec) -> int:
    norms = 2 * (_BRANCHES + 2) * head.channels
    return _deeplabv3_weights(head) + head.inputs * head.channels + norms + head.outputs


# Kind of head -> how it is made narrower.
SLIMMABLE_HEADS: Mapping[str, SlimmableHead] = {
    "light": SlimmableHead(
        macs=lambda head, pixels: pixels * _light_weights(head), params=_light_params
    ),
    "deeplabv3": SlimmableHead(
        macs=lambda head, pixels: pixels * _deeplabv3_weights(head) + head.inputs * head.channels,
        params=_deeplabv3_params,
        concatenated={"layers.0.project.conv.weight": _BRANCHES},
    ),
    "pooled": SlimmableHead(
        macs=lambda head, pixels: head.inputs * head.outputs,
        params=lambda head: (head.inputs + 1) * head.outputs,
    ),
}


def check_graph(graph: Graph) -> None:
    """Refuse an encoder whose first channels at any width are not a network of their own.

    Raises:
        UsageError: It joins, splits or shuffles channels, or has groups of several, as heads.
    """
    for node in graph:
        joins = node.routes is not None and not node.channelwise
        if joins or 1 < node.groups < node.outputs:
            what = "joins or divides channels" if joins else "has groups of them"
            raise UsageError(
                "'ecmt' keeps the first channels of every layer, which must then be those of "
                f"narrower layers; found {node.name}, which {what}: set model.backbone to a "
                "network of dense and depthwise layers, as resnet18 or timm:convnext_atto, or "
                "leave ecmt out"
            )


def check_heads(parts: Parts) -> None:
    """Refuse heads of which it is not known which of their channels belong together.

    Raises:
        UsageError: There is such a head.
    """
    for task, head in parts.heads.items():
        if head.kind not in SLIMMABLE_HEADS:
            raise UsageError(
                f"'ecmt' cuts channels inside the heads, and knows those of "
                f"{', '.join(SLIMMABLE_HEADS)}; found head '{head.kind}' for task {task}: set "
                f"tasks.{task}.head or model.head"
            )
