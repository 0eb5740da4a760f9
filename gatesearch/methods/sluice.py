"""Sluice networks (Ruder et al., AAAI 2019, https://arxiv.org/abs/1705.08142).

One encoder per task, whose features are split in two subspaces of channels. Behind every stage,
for every task t and subspace a,

    x_{t,a} <- Σ_u Σ_b α[t, a, u, b] x_{u,b}                  over tasks u and subspaces b

and the head of task t reads a mix of the stages, Σ_l β[t, l] x_t[l]. A penalty keeps the two
subspaces of a stage apart: Σ_t Σ_l ‖W_{t,l,1} W_{t,l,2}ᵀ‖²_F, where the rows of W_{t,l,a} are the
filters whose outputs are the channels of subspace a.

The paper is about recurrent layers of one size for text. Ours, for stages of a ResNet:

- stages of another size are brought to that of the last one before β mixes them, without weights:
  averaged over pixels, and filled up with channels of zeros;
- the filters are those of the last convolution of a stage. In the public code the product is
  W_1ᵀ W_2, which vanishes for no filters but zero, as there are fewer filters than inputs;
- α begins with `diagonal` for the same task and subspace, and β with `last` for the last stage, the
  rest shared alike (β as in the public code; α there averages all tasks, which would undo
  pretrained encoders).
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, refuse_budgets, training_of
from gatesearch.methods.space import Range
from gatesearch.methods.stage_maps import check_maps
from gatesearch.models import Parts, parts_of
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.filters import filters_of
from gatesearch.models.graph import Graph
from gatesearch.models.mixing import mixing_sum
from gatesearch.strict import Strict
from gatesearch.training import Hooks

SUBSPACES = 2


class SluiceOptions(Strict):
    """Options of sluice networks.

    Attributes:
        diagonal: Initial α of the same task and subspace; the others of a row are equal, and each
            row sums to 1.
        last: Initial β of the last stage; the others of a task are equal, and they sum to 1.
        orthogonality: Weight of the penalty between subspaces; 0 for none.
    """

    diagonal: float = Field(default=0.9, ge=0, le=1)
    last: float = Field(default=0.9, ge=0, le=1)
    orthogonality: float = Field(default=0.1, ge=0, le=1e6)


class SluiceNet(nn.Module):
    """One encoder per task; subspaces are mixed behind every stage, and stages before the head.

    Args:
        parts: Encoders and heads.
        diagonal: Initial α of the same task and subspace.
        last: Initial β of the last stage.

    Attributes:
        penalised: Whether forward passes in training compute the penalty, for `take_overlap`.
    """

    def __init__(self, parts: Parts, *, diagonal: float = 0.9, last: float = 0.9) -> None:
        super().__init__()
        check_maps(parts.graph, "sluice")
        self.encoders = nn.ModuleDict({task: parts.encoder(task) for task in parts.tasks})
        count, stages = len(parts.tasks), parts.graph.stages - 1
        size = SUBSPACES * count
        alpha = torch.full((size, size), (1 - diagonal) / (size - 1))
        alpha.fill_diagonal_(diagonal)
        # (to task, to subspace, from task, from subspace) for each stage after the stem.
        shape = (count, SUBSPACES, count, SUBSPACES)
        self.alpha = nn.ParameterList(alpha.reshape(shape).clone() for _ in range(stages))
        beta = torch.full((count, stages), (1 - last) / max(1, stages - 1))
        beta[:, -1] = last if stages > 1 else 1.0
        self.beta = nn.Parameter(beta)
        self.heads = parts.all_heads()
        self.stages_read = parts.graph.features_by_stage(self.heads.nodes(parts.graph))
        self.maps = parts.graph.maps()
        self.shrinks = [_shrink(parts.graph, stage) for stage in range(1, stages + 1)]
        self.penalised = False
        self._overlap: Tensor | None = None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        if self.penalised and self.training and torch.is_grad_enabled():
            # Gradients of what is computed first come last, when the features have been dropped.
            self._overlap = self.overlap()
        encoders = [cast(Encoder, encoder) for encoder in self.encoders.values()]
        streams = [encoder.forward_stage(image, 0)[1] for encoder in encoders]
        by_stage: list[list[Tensor]] = []
        for stage, alpha in enumerate(self.alpha, start=1):
            streams = [
                encoder.forward_stage(x, stage)[1]
                for encoder, x in zip(encoders, streams, strict=True)
            ]
            streams = mixed_subspaces(streams, alpha)
            by_stage.append(streams)
        return {
            task: self.heads.call_head(task, self._features(t, by_stage), image.shape[-2:])
            for t, task in enumerate(self.heads)
        }

    def _features(self, t: int, by_stage: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Collect a task's maps for its head, the mix of all stages in place of the last one."""
        encoder = cast(Encoder, list(self.encoders.values())[t])
        earlier = [
            encoder.feature(name, by_stage[stage - 1][t])
            for stage, name in list(self.stages_read.items())[:-1]
        ]
        return [*earlier, self._mixed_stages(t, by_stage)]

    def _mixed_stages(self, t: int, by_stage: Sequence[Sequence[Tensor]]) -> Tensor:
        """Mix a task's features of all stages, as large as those of the last."""
        encoder = cast(Encoder, list(self.encoders.values())[t])
        features = []
        for stage, streams in enumerate(by_stage, start=1):
            x = streams[t]
            if stage in self.maps:
                x = encoder.feature(self.maps[stage], x)
            features.append(shrunk(x, self.shrinks[stage - 1]))
        return mixed_channels(features, self.beta[t])

    def take_overlap(self) -> Tensor:
        """Return the overlap that the last forward pass in training began with, once."""
        overlap, self._overlap = self._overlap, None
        assert overlap is not None
        return overlap

    def overlap(self) -> Tensor:
        """Compute Σ_t Σ_l ‖W_{t,l,1} W_{t,l,2}ᵀ‖²_F over the last layer of every stage."""
        total = torch.zeros((), device=self.beta.device)
        for module in self.encoders.values():
            encoder = cast(Encoder, module)
            for stage in range(1, encoder.graph.stages):
                filters = rows_of(last_filters(encoder, stage))
                first, second = torch.split(filters, _halves(len(filters)))
                total = total + (first @ second.T).square().sum()
        return total


def last_filters(encoder: Encoder, stage: int) -> Tensor:
    """Return the weight of a stage's last convolution or linear layer."""
    nodes = encoder.graph.stage(stage)
    layers = (encoder.layers[module_key(node.name)] for node in nodes[::-1] if node.has_weights)
    return next(found.weight for found in map(filters_of, layers) if found is not None)


def rows_of(weight: Tensor) -> Tensor:
    """Return the filters of a layer as rows, in the order of memory.

    Args:
        weight: (C, inputs), or (C, inputs, h, w), contiguous or channels-last.

    Returns:
        (C, inputs), or (C, inputs h w) or (C, h w inputs).
    """
    return (weight if weight.is_contiguous() else weight.permute(0, 2, 3, 1)).flatten(1)


def mixed_subspaces(streams: Sequence[Tensor], alpha: Tensor) -> list[Tensor]:
    """Mix the subspaces of all tasks' features.

    With an odd number of channels the first subspace has one more; a task's second subspace gives
    nothing to this channel.

    Args:
        streams: For each task, (B, C, *positions).
        alpha: (to task, to subspace, from task, from subspace).

    Returns:
        For each task, the same shape.
    """
    weights = alpha.to(streams[0].dtype).flatten(2).flatten(0, 1)
    last = not streams[0].is_contiguous()
    if torch.is_grad_enabled():
        mixed: tuple[Tensor, ...] = _Mixed.apply(weights, last, *streams)
        return list(mixed)
    return _features(weights @ _rows(streams, last), streams[0], last)


class _Mixed(torch.autograd.Function):
    """The mix as a product of matrices that keeps no copy of the features."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, last: bool, *streams: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(weights, *streams)
        ctx.last = last
        return tuple(_features(weights @ _rows(streams, last), streams[0], last))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, *streams = ctx.saved_tensors
        grad = _rows(grads, ctx.last)
        of_streams = _features(weights.T @ grad, streams[0], ctx.last)
        return grad @ _rows(streams, ctx.last).T, None, *of_streams


def _rows(streams: Sequence[Tensor], last: bool) -> Tensor:
    """Lay out features (B, C, *positions) as one row for each task and subspace.

    Args:
        streams: For each task.
        last: Whether channels are last in memory.
    """
    dim, halves = (streams[0].dim() - 1 if last else 1), []
    for x in streams:
        x = x.movedim(1, -1) if last else x
        if x.shape[dim] % SUBSPACES:
            x = torch.cat([x, torch.zeros_like(x.narrow(dim, 0, 1))], dim)
        halves.append(torch.unflatten(x, dim, (SUBSPACES, -1)).movedim(dim, 0))
    return torch.cat(halves).reshape(len(halves) * SUBSPACES, -1)


def _features(rows: Tensor, like: Tensor, last: bool) -> list[Tensor]:
    """Turn rows, as `_rows` lays them out, into features of the shape of `like` for each task."""
    batch, channels, *positions = like.shape
    half = channels - channels // SUBSPACES
    shape = (batch, *positions, half) if last else (batch, half, *positions)
    dim, features = (like.dim() - 1 if last else 1), []
    for halves in rows.view(-1, SUBSPACES, *shape):
        x = halves.movedim(0, dim).flatten(dim, dim + 1).narrow(dim, 0, channels).contiguous()
        features.append(x.movedim(-1, 1) if last else x)
    return features


def shrunk(x: Tensor, shrink: int) -> Tensor:
    """Average over windows of `shrink` pixels."""
    return F.avg_pool2d(x, shrink, shrink, ceil_mode=True) if shrink > 1 else x


def mixed_channels(features: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Compute Σ_l w_l x_l with as many channels as the last x_l, others filled up with zeros.

    Args:
        features: x_l, (B, C_l, H, W).
        weights: (L,).

    Returns:
        (B, C_L, H, W).
    """
    channels = int(features[-1].shape[1])  # of a traced network it is no number
    counts = [min(int(x.shape[1]), channels) for x in features]
    # Features are cut where one of them ends, so that no zeros are computed.
    ends = sorted(set(counts))
    sizes = [end - start for start, end in pairwise([0, *ends])]
    runs: list[list[Tensor]] = [[] for _ in ends]
    read: list[list[Tensor]] = [[] for _ in ends]
    for x, count, weight in zip(features, counts, weights, strict=True):
        run_count = ends.index(count) + 1
        for i, run in enumerate(torch.split(x[:, :count], sizes[:run_count], 1)):
            runs[i].append(run)
            read[i].append(weight)
    mixed = [mixing_sum(xs, torch.stack(ws)[:, None]) for xs, ws in zip(runs, read, strict=True)]
    return torch.cat(mixed, 1)


def _halves(channels: int) -> list[int]:
    return [channels - channels // SUBSPACES, channels // SUBSPACES]


def _shrink(graph: Graph, stage: int) -> int:
    """Resolution of a stage divided by that of the last one."""
    later = range(stage + 1, graph.stages)
    return math.prod(max(node.stride for node in graph.stage(other)) for other in later)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase, with the penalty between subspaces."""
    study, params = request.study, request.spec.params
    options = options_of(study, SLUICE)
    strength = float(params.get("orthogonality", options.orthogonality))

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(build(parts, options))

    def hooks(module: nn.Module) -> Hooks:
        assert isinstance(module, SluiceNet)
        module.penalised = strength > 0

        def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
            return strength * module.take_overlap()

        def observe(epoch: int) -> dict[str, float]:
            with torch.no_grad():
                return {"overlap": float(module.overlap())}

        return Hooks(penalty=penalty if strength else None, observe=observe)

    span = (0, training_of(study, SLUICE).epochs)
    return [Phase(name="whole", span=span, begin=begin, hooks=hooks)]


def build(parts: Parts, options: SluiceOptions) -> SluiceNet:
    """Build the network."""
    return SluiceNet(parts, diagonal=options.diagonal, last=options.last)


SLUICE = Method(
    name="sluice",
    paper="Ruder et al., AAAI",
    year=2019,
    summary="one encoder per task; halves of the channels and the stages are mixed",
    build=build,
    options=SluiceOptions,
    phases=phases,
    space={"orthogonality": Range(0.001, 1.0, log=True, legal=(1e-9, 1e6))},
    check=refuse_budgets("every network of 'sluice' costs the same"),
    outline=("all epochs, with the penalty between subspaces",),
    effort="T encoders",
    ours=(
        "a layer is a stage; stages are averaged and filled up to the size of the last one; the "
        "penalty is on the filters of a stage's last convolution"
    ),
)
