"""EfficientNet-Lite0 as a graph: the EfficientNet-B0 of Tan and Le (ICML 2019) made for phones.

No squeeze-and-excitation, and ReLU6 in place of Swish (the Lite models of the authors' TPU
repository, 2020).
"""

from functools import partial

from gatesearch.models.graph import Graph, stage_ends
from gatesearch.models.nodes import INPUT, Add, Conv, Node

# Blocks, output channels, kernel, stride, expansion.
GROUPS = (
    (1, 16, 3, 1, 1),
    (2, 24, 3, 2, 6),
    (2, 40, 5, 2, 6),
    (3, 80, 3, 2, 6),
    (3, 112, 5, 1, 6),
    (4, 192, 5, 2, 6),
    (1, 320, 3, 1, 6),
)
STEM = 32


def efficientnet_lite0(*, output_stride: int = 8, width: float = 1.0) -> Graph:
    """EfficientNet-Lite0 without its last 1x1 convolution and its classifier.

    A stage is the nodes of one feature size in the undilated network. Strides beyond
    `output_stride` become dilation, as in `gatesearch.models.resnet`. Both sides are padded alike;
    TensorFlow, where the published weights come from, pads one side more under a stride of 2, which
    moves the features by one pixel of that layer.

    Args:
        output_stride: 8, 16 or 32.
        width: Multiplier of all channels.
    """
    conv_relu6 = partial(Conv, ceiling=6.0)
    nodes: list[Node] = [conv_relu6("stem", INPUT, inputs=3, outputs=STEM, kernel=3, stride=2)]
    source, channels, stride, dilation, stage, index = "stem", STEM, 2, 1, 1, 0
    strides: dict[int, int] = {}
    for blocks, outputs, kernel, step, expansion in GROUPS:
        stage += step == 2
        first_dilation = dilation
        if step == 2 and stride == output_stride:
            step, dilation = 1, dilation * 2
        stride *= step
        strides[stage] = stride
        for block in range(blocks):
            name, inner = f"blocks.{index}", channels * expansion
            index += 1
            block_step = step if block == 0 else 1
            expanded = source
            if expansion != 1:
                expanded = f"{name}.expand"
                nodes.append(conv_relu6(expanded, source, channels, inner, 1, stage=stage))
            nodes.append(
                conv_relu6(
                    f"{name}.depthwise", expanded, inner, inner, kernel, block_step,
                    first_dilation if block == 0 else dilation, depthwise=True, stage=stage,
                )
            )  # fmt: skip
            summed = block_step == 1 and channels == outputs and block > 0
            projected = Conv(
                f"{name}.project", f"{name}.depthwise", inner, outputs, 1, relu=False, stage=stage,
                ends_block=not summed,
            )  # fmt: skip
            nodes.append(projected)
            if summed:
                nodes.append(Add(name, projected.name, source, outputs, relu=False, stage=stage))
            source, channels = nodes[-1].name, outputs
    features = stage_ends(nodes)
    return Graph(tuple(nodes), stride, features, tuple(strides.values())).scaled(width)
