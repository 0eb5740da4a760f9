"""Plain convolutional encoders as graphs: 3x3 convolutions in a row, dilated to an output stride.

They are for small images and very narrow networks, where a ResNet's shortcuts cost more time than
they save.
"""

from gatesearch.models.graph import Graph, stage_ends
from gatesearch.models.nodes import INPUT, Conv

STAGE_CHANNELS = (64, 128, 256, 512)


def cnn(*, depth: int, output_stride: int = 8, width: float = 1.0) -> Graph:
    """Four stages of convolutions with batch norm and ReLU, whose first one has stride 2.

    The first stage is the stem. Strides beyond `output_stride` become dilation from the next
    convolution on, as in `gatesearch.models.resnet`.

    Args:
        depth: Convolutions per stage.
        output_stride: 8, 16 or 32; a stride of 32 is not reached, 16 is.
        width: Multiplier of all channels, which double from 64 to 512.
    """
    nodes: list[Conv] = []
    source, inputs, stride, dilation = INPUT, 3, 1, 1
    strides: list[int] = []
    for stage, channels in enumerate(STAGE_CHANNELS):
        dilated = stride * 2 > output_stride
        step, stride = (1, stride) if dilated else (2, stride * 2)
        for index in range(depth):
            name = f"stage{stage}.{index}"
            nodes.append(
                Conv(
                    name, source, inputs, channels, 3, step if index == 0 else 1, dilation,
                    stage=stage, ends_block=stage > 0 and index == depth - 1,
                )
            )  # fmt: skip
            source, inputs = name, channels
            if dilated and index == 0:
                dilation *= 2
        strides.append(stride)
    return Graph(tuple(nodes), stride, stage_ends(nodes), tuple(strides[1:])).scaled(width)
