"""Encoders by name; each is built as a graph for any width and output stride.

A new one is a file with its graph, a line here and, for published weights, one in
`gatesearch.models.pretrained.PUBLISHED`.
"""

from collections.abc import Callable
from functools import partial

from gatesearch.models.efficientnet import efficientnet_lite0
from gatesearch.models.graph import Graph
from gatesearch.models.resnet import resnet

BACKBONES: dict[str, Callable[..., Graph]] = {
    "resnet18": partial(resnet, depths=(2, 2, 2, 2), bottleneck=False),
    "resnet34": partial(resnet, depths=(3, 4, 6, 3), bottleneck=False),
    "resnet50": partial(resnet, depths=(3, 4, 6, 3), bottleneck=True),
    # The backbone of AdaShare (Sun et al., NeurIPS 2020), in which its costs are counted.
    "deeplab_resnet34": partial(resnet, depths=(3, 4, 6, 3), bottleneck=False, deeplab=True),
    "efficientnet_lite0": efficientnet_lite0,
}
