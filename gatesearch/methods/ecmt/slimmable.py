"""A multi-task network that runs at many widths, and the networks that are cut out of it.

A width w keeps the first max(1, round(w C)) of every C channels (Yu et al., "Slimmable Neural
Networks", ICLR 2019). The encoder has one width for all its layers, so that both sides of a
residual sum and both ends of a depthwise convolution keep the same channels. Each head has a width
for the channels inside it; it reads the channels that the encoder keeps, and gives all its outputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gatesearch.methods.ecmt.heads import SLIMMABLE_HEADS
from gatesearch.methods.ends import compact_of_parts
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder
from gatesearch.models.heads import takes_size
from gatesearch.models.model_factory import HeadSpec
from gatesearch.models.nodes.node import scaled_channels

_NOTHING: Mapping[str, int] = {}


@dataclass(frozen=True)
class Widths:
    """Widths of a slice, each in (0, 1].

    Attributes:
        encoder: Width of all layers of the encoder.
        heads: Width of each task's head, in the order of the tasks.
    """

    encoder: float
    heads: tuple[float, ...]

    @property
    def full(self) -> bool:
        """True if nothing is cut away."""
        return self.encoder == 1 and all(width == 1 for width in self.heads)


def narrowed(parts: Parts, widths: Widths) -> Parts:
    """Describe the encoder and the heads of a slice, as parts with fresh weights."""
    graph = parts.graph.scaled(widths.encoder)
    heads = {
        task: narrowed_head(parts, task, inputs=graph.outputs, width=width)
        for task, width in zip(parts.tasks, widths.heads, strict=True)
    }
    return Parts(graph, heads, parts.seed)


def narrowed_head(parts: Parts, task: str, *, inputs: int, width: float) -> HeadSpec:
    """Describe a head of a slice.

    Args:
        parts: Encoder and heads of the whole network.
        task: The head's task.
        inputs: Channels that the slice's encoder gives.
        width: Width of the head.
    """
    head = parts.heads[task]
    assert isinstance(head, HeadSpec)
    return replace(head, inputs=inputs, channels=scaled_channels(head.channels, width))


def first_channels(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], concatenated: Mapping[str, int]
) -> dict[str, Tensor]:
    """Take the first channels of every tensor, as views where no gradient is asked for.

    Args:
        tensors: Name -> tensor of a whole module.
        shapes: Name -> shape of the same tensor in the narrow module.
        concatenated: Name -> number n of tensors that this weight reads side by side. Its input
            channels are n groups, and the first channels of each are taken.
    """
    taken, copied = {}, []
    for name, shape in shapes.items():
        tensor, groups = tensors[name], concatenated.get(name, 1)
        if groups > 1:
            grouped = torch.unflatten(tensor, 1, (groups, -1))
            taken[name] = grouped[: shape[0], :, : shape[1] // groups].flatten(1, 2)
        elif tensor.shape == shape:
            taken[name] = tensor
        elif tensor.requires_grad:
            copied.append(name)
        else:
            taken[name] = tensor[_first(shape)]
    if copied:
        slices = [_first(shapes[name]) for name in copied]
        copies = cast(tuple[Tensor, ...], _First.apply(slices, *(tensors[n] for n in copied)))
        taken |= dict(zip(copied, copies, strict=True))
    return taken


def _first(shape: torch.Size) -> tuple[slice, ...]:
    return tuple(map(slice, shape))


class _First(torch.autograd.Function):
    """The first channels of many tensors, copied once and not by each reader."""

    @staticmethod
    def forward(
        ctx: Any, slices: Sequence[tuple[slice, ...]], *whole: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*whole)
        ctx.slices = slices
        ctx.set_materialize_grads(False)
        return tuple(tensor[part].clone() for tensor, part in zip(whole, slices, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *map(_filled, ctx.saved_tensors, ctx.slices, grads)


def _filled(whole: Tensor, part: tuple[slice, ...], grad: Tensor | None) -> Tensor | None:
    """Return a gradient of the whole that is 0 outside of a part."""
    if grad is None:
        return None
    filled = torch.zeros_like(whole)
    filled[part] = grad
    return filled


class SlimmableNet(nn.Module):
    """A multi-task network that runs at the widths that are set.

    In training, a batch norm normalises with the statistics of the batch, whatever the width; only
    passes at full width change its running statistics, as those of other widths differ. A slice
    gets statistics of its own after it is cut (`recompute_statistics`), as in Yu and Huang,
    "Universally Slimmable Networks", ICCV 2019.

    Args:
        network: The whole network, which holds all weights.
        parts: What it was built from.
        generator: Source of the widths that the method draws.

    Attributes:
        widths: Widths of the next forward pass.
        features: (B, C, h, w) features of the last forward pass.
    """

    def __init__(self, network: MultiTaskNet, parts: Parts, generator: torch.Generator) -> None:
        super().__init__()
        self.network = network
        self.parts = narrowed(parts, Widths(1.0, (1.0,) * len(parts.tasks)))  # no weights in it
        self.generator = generator
        self.widths = Widths(1.0, (1.0,) * len(parts.tasks))
        self.features: Tensor | None = None
        # Narrow modules without data, by task (none for the encoder) and widths.
        self._shapes: dict[tuple[str, float, float], nn.Module] = {}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        size, encoder = image.shape[-2:], self.widths.encoder
        self.features = features = self.encode(image)
        outputs = {}
        for task, width in zip(self.parts.tasks, self.widths.heads, strict=True):
            if encoder == width == 1:
                outputs[task] = self.network.heads.call_head(task, features, size)
                continue
            # The head itself runs, with fewer channels, as weightings may hook its call.
            head, shape = self.network.heads[task], self._shape(task, encoder, width)
            concatenated = SLIMMABLE_HEADS[self.parts.heads[task].kind].concatenated
            taken = self._taken(head, shape, concatenated)
            inputs = (features, size) if takes_size(head) else (features,)
            with _no_statistics(head):
                outputs[task] = functional_call(head, taken, inputs)
        return outputs

    def encode(self, image: Tensor) -> Tensor:
        """Compute the features at the encoder's width, (B, C, h, w)."""
        width = self.widths.encoder
        if width == 1:
            return self.full_features(image)
        shape = self._shape("", width).train(self.training)
        taken = self._taken(self.network.encoder, shape)
        with _no_statistics(shape):
            features: Tensor = functional_call(shape, taken, image)
        return features

    def full_features(self, image: Tensor) -> Tensor:
        """Compute the features at full width, (B, C, h, w)."""
        features: Tensor = self.network.encoder(image)
        return features

    def get_extra_state(self) -> dict[str, object]:
        """Return the state that no tensor of the network holds: widths and generator."""
        widths = [self.widths.encoder, *self.widths.heads]
        return {"generator": self.generator.get_state(), "widths": widths}

    def set_extra_state(self, state: Mapping[str, object]) -> None:
        """Restore the widths and the generator that `get_extra_state` returned."""
        generator, widths = state["generator"], state["widths"]
        assert isinstance(generator, Tensor)
        assert isinstance(widths, list)
        self.generator.set_state(generator.cpu())
        self.widths = Widths(widths[0], tuple(widths[1:]))

    def _taken(
        self, whole: nn.Module, shape: nn.Module, concatenated: Mapping[str, int] = _NOTHING
    ) -> dict[str, Tensor]:
        """Take the tensors with which a narrow module runs out of a whole module's.

        Args:
            whole: The module with the weights.
            shape: The narrow module, without data.
            concatenated: As for `first_channels`.
        """
        shapes = {name: tensor.shape for name, tensor in shape.named_parameters()}
        tensors: dict[str, Tensor] = dict(whole.named_parameters())
        if not self.training:
            shapes |= {name: tensor.shape for name, tensor in shape.named_buffers()}
            tensors |= dict(whole.named_buffers())
        return first_channels(tensors, shapes, concatenated)

    def _shape(self, task: str, encoder: float, width: float = 1.0) -> nn.Module:
        """Return the narrow encoder, or the narrow head of a task, without data."""
        key = (task, encoder, width)
        if key not in self._shapes:
            graph = self.parts.graph.scaled(encoder)
            with torch.device("meta"):
                shape = (
                    narrowed_head(self.parts, task, inputs=graph.outputs, width=width).build()
                    if task
                    else Encoder(graph)
                )
            self._shapes[key] = shape
        return self._shapes[key]


@contextmanager
def _no_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms in training leave their running statistics as they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def sliced_state(state: Mapping[str, Tensor], parts: Parts, widths: Widths) -> dict[str, Tensor]:
    """Take a slice's weights out of those of the whole network.

    Args:
        state: State dict of the whole `MultiTaskNet`.
        parts: What it was built from.
        widths: Widths of the slice.

    Returns:
        State dict of the slice's `MultiTaskNet`, as views.
    """
    with torch.device("meta"):
        shape = MultiTaskNet(narrowed(parts, widths))
    concatenated = {
        f"heads.{task}.{name}": count
        for task, head in parts.heads.items()
        for name, count in SLIMMABLE_HEADS[head.kind].concatenated.items()
    }
    shapes = {name: tensor.shape for name, tensor in shape.state_dict().items()}
    return first_channels(state, shapes, concatenated)


def plain_slice(state: Mapping[str, Tensor], parts: Parts, widths: Widths) -> MultiTaskNet:
    """Cut a plain multi-task network out of the whole one; arguments as for `sliced_state`."""
    network = MultiTaskNet(narrowed(parts, widths))
    network.load_state_dict(sliced_state(state, parts, widths))
    return network


def compact_slice(state: Mapping[str, Tensor], parts: Parts, widths: Widths) -> nn.Module:
    """Cut a compact network out of the whole one; arguments as for `sliced_state`."""
    narrow = narrowed(parts, widths)
    return compact_of_parts(narrow, sliced_state(state, parts, widths), open_=False)


def feature_distance(narrow: Tensor, full: Tensor) -> Tensor:
    """Compute the configuration-invariant distillation of features (Aich et al., ICCV 2023).

        d = mean((F_w - F_1)^2) / mean(F_1^2)

    with F_w the features at width w, and F_1 the same channels of those at full width, which get no
    gradient. It is 0 at full width. The abstract names the loss and no formula: the distance, its
    scale and the choice of the encoder's last features are ours.

    Args:
        narrow: F_w, (B, C_w, h, w).
        full: Features at full width, (B, C, h, w), of which the first C_w channels are compared.

    Returns:
        Scalar, without unit.
    """
    target = full[:, : narrow.shape[1]].detach().float()
    if not narrow.is_contiguous():  # of channels-last features the gradient is channels-last too
        narrow, target = narrow.permute(0, 2, 3, 1), target.permute(0, 2, 3, 1)
    return (narrow.float() - target).square().mean() / target.square().mean().clamp_min(1e-12)
