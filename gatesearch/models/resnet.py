"""ResNet encoders (He et al., CVPR 2016) as graphs, dilated to a chosen output stride."""

from functools import partial

from gatesearch.models.graph import Graph, stage_ends
from gatesearch.models.nodes import INPUT, Add, Conv, MaxPool, Node

STAGE_CHANNELS = (64, 128, 256, 512)


def resnet(
    *,
    depths: tuple[int, ...],
    bottleneck: bool,
    output_stride: int = 8,
    width: float = 1.0,
    deeplab: bool = False,
) -> Graph:
    """A ResNet without its classifier; node names are torchvision's.

    Strides beyond `output_stride` become dilation: the first block of a stage keeps the dilation of
    the stage before and the rest take the new one, as torchvision's
    `replace_stride_with_dilation`, here for basic blocks too.

    Args:
        depths: Blocks per stage.
        bottleneck: Blocks of 1x1, 3x3, 1x1 convolutions with fourfold expansion (ResNet-50), else
            of two 3x3 (ResNet-18, -34).
        output_stride: 8, 16 or 32.
        width: Multiplier of all channels.
        deeplab: As in the first DeepLab networks: all blocks of a stage take the new dilation, and
            the max-pooling of an even side gives one output more.
    """
    expansion = 4 if bottleneck else 1
    nodes: list[Node] = [
        Conv("conv1", INPUT, inputs=3, outputs=64, kernel=7, stride=2),
        MaxPool("maxpool", "conv1", outputs=64, ceil_mode=deeplab),
    ]
    source, channels, stride, dilation = "maxpool", 64, 4, 1
    strides: list[int] = []
    for stage, (inner, depth) in enumerate(zip(STAGE_CHANNELS, depths, strict=True), start=1):
        step, first_dilation = 1, dilation
        if stage > 1:
            if stride * 2 <= output_stride:
                step, stride = 2, stride * 2
            else:
                dilation *= 2
                first_dilation = dilation if deeplab else first_dilation
        for block in range(depth):
            name, outputs = f"layer{stage}.{block}", inner * expansion
            block_step = step if block == 0 else 1
            block_dilation = first_dilation if block == 0 else dilation
            make = partial(Conv, stage=stage)
            if bottleneck:
                branch = [
                    make(f"{name}.conv1", source, channels, inner, 1),
                    make(
                        f"{name}.conv2", f"{name}.conv1", inner, inner, 3, block_step,
                        block_dilation,
                    ),
                    make(f"{name}.conv3", f"{name}.conv2", inner, outputs, 1, relu=False),
                ]  # fmt: skip
            else:
                branch = [
                    make(f"{name}.conv1", source, channels, inner, 3, block_step, block_dilation),
                    make(
                        f"{name}.conv2", f"{name}.conv1", inner, outputs, 3, 1, block_dilation,
                        relu=False,
                    ),
                ]  # fmt: skip
            nodes += branch
            skip = source
            if block_step != 1 or channels != outputs:
                skip = f"{name}.downsample"
                nodes.append(make(skip, source, channels, outputs, 1, block_step, relu=False))
            nodes.append(Add(name, branch[-1].name, skip, outputs=outputs, stage=stage))
            source, channels = name, outputs
        strides.append(stride)
    return Graph(tuple(nodes), stride, stage_ends(nodes), tuple(strides)).scaled(width)
