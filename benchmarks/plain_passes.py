"""Training steps on plain passes through encoders and heads, with nothing of a method in them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gatesearch.methods import Context
from gatesearch.models import Parts
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import execute
from gatesearch.models.nodes import INPUT, Node
from gatesearch.training.forward import Forward
from gatesearch.training.optimizer import build_optimizer
from gatesearch.training.split_data import Batch


class Branches(nn.Module):
    """Nodes up to one are computed once, those behind it for each task.

    Args:
        parts: Encoders and heads.
        last: Last node that is computed once; `INPUT` for none.
        encoders: Tasks have encoders of their own behind it, or all the same.
        inputs_only: Weights get no gradients, and nothing up to `last` is differentiated; without
            a common encoder each task has its own up to `last` too.
        skipped: Task -> residual block of which it takes the shortcut alone; tasks then compute
            together what is the same for them.
    """

    def __init__(
        self,
        parts: Parts,
        last: str,
        *,
        own: bool,
        inputs_only: bool = False,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = parts.encoder()
        self.own = nn.ModuleDict({task: parts.encoder() for task in parts.tasks if own})
        self.heads = parts.all_heads()
        names = [INPUT, *(node.name for node in parts.graph)]
        cut = names.index(last)
        self.before, self.behind = parts.graph.nodes[:cut], parts.graph.nodes[cut:]
        self.last, self.inputs_only, self.skipped = last, inputs_only, dict(skipped or {})
        if inputs_only:
            self.requires_grad_(False)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        common = None if self.inputs_only and self.own else self._start(self.encoder, image)
        outputs, known = {}, {}
        for task in self.heads:
            encoder = self.own[task] if self.own else self.encoder
            x = self._start(encoder, image) if common is None else common
            apply = encoder.apply_node
            if self.skipped:
                apply = _without(encoder, self.skipped.get(task), known)
            y = execute(self.behind, {self.last: x}, apply)[self.behind[-1].name]
            outputs[task] = self.heads.call_head(task, y, image.shape[-2:])
        return outputs

    def _start(self, encoder: Encoder, image: Tensor) -> Tensor:
        if not self.before:
            return image
        x = execute(self.before, {INPUT: image}, encoder.apply_node)[self.last]
        return x.detach().requires_grad_() if self.inputs_only else x


def _without(
    encoder: Encoder, block: str | None, known: dict[tuple[object, ...], Tensor]
) -> Callable[[Node, list[Tensor]], Tensor]:
    """Apply nodes, each once to the same values; behind a skipped block comes its shortcut."""

    def apply(node: Node, inputs: list[Tensor]) -> Tensor:
        if block is not None and node.name == block:
            return inputs[1]
        if block is not None and node.name.startswith(f"{block}."):
            return inputs[0]
        key = (node.name, *map(id, inputs))
        if key not in known:
            known[key] = encoder.apply_node(node, inputs)
        return known[key]

    return apply


@dataclass
class PlainStep:
    """Forward, the tasks' losses, backward, optimizer.

    Attributes:
        context: Tasks, device and training settings.
        batch: Of every step.
        network: Image -> task -> prediction.
        beside: Modules that are trained beside it; the mean of what each gives is its loss.
        ahead: Networks that predict from the image too, without gradients.
    """

    context: Context
    batch: Batch
    network: nn.Module
    beside: Sequence["Beside"] = ()
    ahead: Sequence[nn.Module] = ()

    def __post_init__(self) -> None:
        self.network = self.context.runtime.place(self.network).train()
        modules = [self.network, *(one.place(self.context) for one in self.beside)]
        for module in self.ahead:
            self.context.runtime.place(module).train()
        together = nn.ModuleList(modules)
        self.parameters = [p for p in together.parameters() if p.requires_grad]
        spec = self.context.study.training
        self.optimizer = build_optimizer(together, spec) if self.parameters else None
        self.forward = Forward(self.network, self.context.tasks, self.context.runtime)

    def __call__(self) -> None:
        """Take the step."""
        image, outputs = self.forward.predict(self.batch)
        losses = self.forward.losses(outputs, self.batch)
        inputs: dict[str, Tensor] = {}
        for one in self.beside:
            losses.append(one.loss(image, inputs))
        with torch.no_grad():
            for module in self.ahead:
                module(image)
        del image, outputs
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        self.backward(losses)
        if self.optimizer is not None:
            self.optimizer.step()

    def backward(self, losses: list[Tensor]) -> None:
        """Add gradients."""
        torch.stack([loss for loss in losses if loss.requires_grad]).sum().backward()


class OneByOne(PlainStep):
    """The same with a backward pass for each task, whose gradients are kept apart until the sum."""

    def backward(self, losses: list[Tensor]) -> None:
        """Add gradients."""
        last = losses[-1]
        rows = [
            torch.autograd.grad(
                loss, self.parameters, retain_graph=loss is not last, allow_unused=True
            )
            for loss in losses
        ]
        for parameter, *gradients in zip(self.parameters, *rows, strict=True):
            parameter.grad = sum(gradient for gradient in gradients if gradient is not None)


@dataclass(frozen=True)
class Beside:
    """A module that is trained by itself.

    Attributes:
        module: The module.
        read: Name of what it reads, one tensor for all of that name; `image` is the batch's.
        shape: Shape of that tensor.
    """

    module: nn.Module
    read: str
    shape: tuple[int, ...] = ()

    def place(self, context: Context) -> nn.Module:
        """Place it on the device, in training mode."""
        return context.runtime.place(self.module).train()

    def loss(self, image: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Compute its loss; makes its input if no other has."""
        if self.read == "image":
            x = image
        elif self.read not in inputs:
            x = torch.ones(self.shape).contiguous(memory_format=torch.channels_last)
            x = inputs[self.read] = x.requires_grad_()
        else:
            x = inputs[self.read]
        return self.module(x).mean()


def beside(network: nn.Module, image: Tensor, modules: Sequence[nn.Module]) -> list[Beside]:
    """Copy modules of a network, each beside the shape of what it reads there.

    Those that read the same tensor there do so here.

    Args:
        network: Runs once.
        image: Its image.
        modules: Some of its modules, of one argument each.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: seen.append((module, given[0])))
        for module in modules
    ]
    with torch.no_grad():
        network.train()(image)
    for hook in hooks:
        hook.remove()
    return [Beside(copy.deepcopy(m), f"{x.data_ptr()}", tuple(x.shape)) for m, x in seen]
