"""NDDR-CNN: layerwise feature fusing (Gao et al., CVPR 2019, https://arxiv.org/abs/1801.08297).

One encoder per task. Behind the stem and behind every stage, for every task t,

    x_t <- ReLU(BN_t(W_t [x_1; ...; x_T] + b_t))

with a 1x1 convolution W_t over the channels of all tasks (Neural Discriminative Dimensionality
Reduction). The encoders start from trained single-task networks, W_t from a diagonal: d for task
t's own channels and (1 - d) / (T - 1) for the same channels of each other task, which is the
paper's (0.9, 0.1) where there are two. The layers learn at 100 times the rate of the rest.
"""

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.events import Log
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, refuse_budgets, training_of
from gatesearch.methods.space import Range
from gatesearch.models import Parts, parts_of
from gatesearch.models.channel_source import ChannelSlice
from gatesearch.models.encoder import Encoder
from gatesearch.pruning import CompactNet
from gatesearch.pruning.pointwise import PointwiseStep, at_pixels
from gatesearch.pruning.streams import StreamWriter
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.training import ParameterGroup

MOMENTUM = 0.05  # of the running statistics, as in the public code
_HIGH = 10  # multiple of the rate from which the log warns, unless the optimizer is SGD


class NDDROptions(Strict):
    """Options of NDDR-CNN; as published by default.

    Attributes:
        diagonal: Initial weight of a task's own channels; the other tasks share 1 - diagonal.
        rate: Learning rate of the fusion layers, as a multiple of the study's. The paper's 100 is
            for SGD; with Adam or AdamW take 1.
    """

    diagonal: float = Field(default=0.9, ge=0, le=1)
    rate: float = Field(default=100.0, gt=0, le=1e6)


class Fusion(nn.Module):
    """One task's fusion layer: 1x1 convolution with bias, batch norm, ReLU.

    Args:
        task: Index of the task.
        tasks: Number of tasks.
        channels: Channels of each task's features.
        diagonal: Initial weight of the task's own channels.
    """

    def __init__(self, task: int, *, tasks: int, channels: int, diagonal: float) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # what torch draws is replaced
            self.conv = nn.Conv2d(tasks * channels, channels, 1)
        rest = (1 - diagonal) / max(1, tasks - 1)
        shares = [diagonal if other == task and tasks > 1 else rest for other in range(tasks)]
        shares = shares if tasks > 1 else [1.0]
        with torch.no_grad():
            weight = torch.cat([share * torch.eye(channels) for share in shares], 1)
            self.conv.weight.copy_(weight[:, :, None, None])
            nn.init.zeros_(cast(Tensor, self.conv.bias))
        self.bn = nn.BatchNorm2d(channels, momentum=MOMENTUM)

    def forward(self, features: Tensor) -> Tensor:
        """Fuse the features of all tasks, (B, T C, *positions) -> (B, C, *positions)."""
        return at_pixels(lambda x: torch.relu_(self.bn(self.conv(x))), features)

    @torch.no_grad()
    def folded(self) -> tuple[Tensor, Tensor]:
        """Fold the norm into the convolution: weights (C, T C, 1, 1) and bias (C,).

        With scale s = γ / sqrt(σ² + ε): W' = s W, b' = s (b - μ) + β.
        """
        norm = self.bn
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight / (variance + norm.eps).sqrt()
        bias = scale * (cast(Tensor, self.conv.bias) - mean) + norm.bias
        return scale[:, None, None, None] * self.conv.weight, bias


class NDDRNet(nn.Module):
    """One encoder per task, and a fusion layer per task behind the stem and every stage.

    Args:
        parts: Encoders and heads.
        diagonal: Initial weight of a task's own channels.
    """

    def __init__(self, parts: Parts, *, diagonal: float = 0.9) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({task: parts.encoder(task) for task in parts.tasks})
        graph, count = parts.graph, len(parts.tasks)
        self.fusions = nn.ModuleList(
            nn.ModuleList(
                Fusion(
                    task, tasks=count, channels=graph.stage(stage)[-1].outputs, diagonal=diagonal
                )
                for task in range(count)
            )
            for stage in range(graph.stages)
        )
        self.heads = parts.all_heads()
        self.stages_read = graph.features_by_stage(self.heads.nodes(graph))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        encoders = [cast(Encoder, encoder) for encoder in self.encoders.values()]
        streams = [image] * len(encoders)
        features: list[list[Tensor]] = []
        for stage, fusions in enumerate(self.fusions):
            streams = [
                encoder.forward_stage(x, stage)[1]
                for encoder, x in zip(encoders, streams, strict=True)
            ]
            fused = torch.cat(streams, 1)
            streams = [fusion(fused) for fusion in cast(nn.ModuleList, fusions)]
            if stage in self.stages_read:
                name = self.stages_read[stage]
                features.append(
                    [encoder.feature(name, x) for encoder, x in zip(encoders, streams, strict=True)]
                )
        return {
            task: self.heads.call_head(task, maps, image.shape[-2:])
            for task, maps in zip(self.heads, zip(*features, strict=True), strict=True)
        }


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase, in which fusion layers have a rate of their own."""
    study, params = request.study, request.spec.params
    options = options_of(study, NDDR)
    diagonal = float(params.get("nddr_diagonal", options.diagonal))
    rate = float(params.get("nddr_rate", options.rate))

    training = training_of(study, NDDR)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        if rate >= _HIGH and training.optimizer != "sgd":
            request.emit(
                Log(
                    f"{request.spec.label}: fusion layers learn at {rate:g} times the rate, which "
                    f"the paper does by SGD; by {training.optimizer} options.nddr.rate=1 can be "
                    "much better"
                )
            )
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(NDDRNet(parts, diagonal=diagonal))

    def groups(module: nn.Module) -> list[ParameterGroup]:
        assert isinstance(module, NDDRNet)
        others = (*module.encoders.parameters(), *module.heads.parameters())
        fusions = tuple(module.fusions.parameters())
        return [ParameterGroup(others), ParameterGroup(fusions, rate=rate)]

    span = (0, training.epochs)
    return [Phase(name="whole", span=span, begin=begin, groups=groups)]


def as_compact(network: nn.Module, study: Study) -> CompactNet:
    """Convert a trained network into a compact one that computes the same.

    The fusion layers of all tasks behind a stage become one convolution, as they read the same
    channels; its weights hold their batch norms.
    """
    assert isinstance(network, NDDRNet)
    parts = parts_of(study, pretrained=False)
    encoders = {task: cast(Encoder, network.encoders[task]) for task in parts.tasks}
    writer = StreamWriter(encoders)
    for stage, fusions in enumerate(network.fusions):
        nodes = parts.graph.stage(stage)
        last = nodes[-1]
        for task in parts.tasks:
            for node in nodes:
                writer.add_node(task, node)
        step = PointwiseStep(
            name=f"fusion{stage}",
            source=tuple(piece for t in parts.tasks for piece in writer.values[t][last.name]),
            inputs=len(parts.tasks) * last.outputs,
            outputs=len(parts.tasks) * last.outputs,
        )
        (fused,) = writer.add_step(step, step.name, _folded(cast(nn.ModuleList, fusions)))
        tail = parts.graph.tail(network.stages_read.get(stage, last.name))
        for t, task in enumerate(parts.tasks):
            start = t * last.outputs
            piece = ChannelSlice(tensor=fused.tensor, start=start, stop=start + last.outputs)
            writer.values[task][last.name] = (piece,)
            for node in tail:
                writer.add_node(task, node)
    return writer.finish(parts.heads, network.heads)


def _folded(fusions: nn.ModuleList) -> nn.Conv2d:
    """Make one convolution of all tasks' fusion layers of a stage, norms included."""
    weights, biases = zip(*(cast(Fusion, fusion).folded() for fusion in fusions), strict=True)
    weight = torch.cat(weights)
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
    with torch.no_grad():
        conv.weight.copy_(weight)
        cast(Tensor, conv.bias).copy_(torch.cat(biases))
    return conv


NDDR = Method(
    name="nddr",
    paper="Gao et al., CVPR",
    year=2019,
    summary="one encoder per task, fused by 1x1 convolutions behind the stem and every stage",
    build=lambda parts, options: NDDRNet(parts, diagonal=options.diagonal),
    options=NDDROptions,
    start="stl",
    phases=phases,
    space={
        "nddr_diagonal": Range(0.5, 1.0, legal=(0.0, 1.0)),
        "nddr_rate": Range(1.0, 1000.0, log=True, legal=(1e-3, 1e6)),
    },
    as_compact=as_compact,
    check=refuse_budgets("every network of 'nddr' costs the same"),
    outline=("all epochs, the fusion layers at 100 times the learning rate",),
    effort="T encoders, then T encoders",
    ours="more than two tasks share 1 - diagonal alike; the head keeps the study's learning rate",
)
