"""The network in which AdaShare learns a policy: one encoder, a pass through it for each task.

For task k, behind residual block l with branch F and shortcut r,

    x = p[l, k, 0] · ReLU(r + F) + p[l, k, 1] · r

with p = (1, 0) where the block is selected and (0, 1) where it is skipped (Sun et al., NeurIPS
2020, section 3). In training p is drawn anew in each pass by the Gumbel softmax

    p(j) = exp((log π(j) + G(j)) / τ) / Σ_i exp((log π(i) + G(i)) / τ),  G = -log(-log U)

with π the softmax of two logits, and in evaluation p is the choice of the larger logit.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, nn

from gatesearch.methods.adashare.plan import Policy, residual_blocks
from gatesearch.models.activation import rectified
from gatesearch.models.conv_norm import ConvNorm
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import execute
from gatesearch.models.model_factory import Parts
from gatesearch.models.nodes import INPUT, Add, Node


class PolicySupernet(nn.Module):
    """One encoder with a policy per task, and one head per task.

    Args:
        parts: Encoder and heads.

    Attributes:
        blocks: Names of the residual blocks, L of them.
        logits: Per task (L, 2) logits of selecting and skipping; selecting is even at first.
        temperature: τ, which the training lowers.
        freed: Number of the last blocks whose policy counts; all tasks select the others, which are
            computed once for all of them.

    The state dict holds temperature and number of freed blocks too (as `_extra_state`).
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.tasks = parts.tasks
        self.graph = parts.graph
        self.head_specs = dict(parts.heads)
        self.blocks = residual_blocks(parts.graph)
        self.encoder: Encoder = parts.encoder()
        self.heads = parts.all_heads()
        shape = (len(self.blocks), 2)
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for _ in parts.tasks)
        self.temperature = 1.0
        self.freed = len(self.blocks)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> (B, channels, H, W)."""
        policy = self.relaxed_policy() if self.training else self._one_hot()
        first = len(self.blocks) - self.freed
        number = {name: i for i, name in enumerate(self.blocks) if i >= first}

        def apply(node: Node, inputs: list[list[Tensor]]) -> list[Tensor]:
            """Compute a node once for all tasks, or per task where they differ."""
            streams = max(map(len, inputs))
            read = [xs * streams if len(xs) < streams else xs for xs in inputs]
            mixed = node.name in number
            lean = mixed and isinstance(node, Add) and not policy.requires_grad
            with signs_alone() if lean else nullcontext():
                outputs = [self._apply_node(node, list(x)) for x in zip(*read, strict=True)]
            if not mixed:
                return outputs
            skips = read[node.sources.index(self.graph.shortcuts[node.name])]
            if streams < len(self.tasks):
                outputs, skips = outputs * len(self.tasks), skips * len(self.tasks)
            chosen = policy[:, number[node.name]].to(outputs[0].dtype)
            return [p[0] * x + p[1] * r for p, x, r in zip(chosen, outputs, skips, strict=True)]

        last, start = self.graph.nodes[-1].name, {INPUT: [image]}
        features = execute(self.graph.nodes, start, apply)[last]
        features = features * len(self.tasks) if len(features) < len(self.tasks) else features
        return {
            task: self.heads.call_head(task, x, image.shape[-2:])
            for task, x in zip(self.tasks, features, strict=True)
        }

    def _apply_node(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """Compute a node; behind frozen weights, whose readers keep no input, keep signs alone."""
        if node.ends_in_norm and torch.is_grad_enabled():
            layer = cast(ConvNorm, self.encoder.layer(node.name))
            if layer.relu and layer.ceiling is None and not layer.conv.weight.requires_grad:
                y = layer.bn(layer.convolved(inputs[0]))
                with signs_alone():
                    return rectified(y, None)
        return self.encoder.apply_node(node, inputs)

    def all_logits(self) -> Tensor:
        """Return the logits of all tasks, (T, L, 2)."""
        return torch.stack(list(self.logits))

    def relaxed_policy(self) -> Tensor:
        """Draw p, (T, L, 2)."""
        logits = self.all_logits()
        return gumbel_softmax(logits, gumbel_noise(logits), temperature=self.temperature)

    def likeliest_policy(self) -> Policy:
        """Return the policy of the larger logits; blocks that are not freed are selected."""
        return tuple(tuple(row) for row in self._likelier().tolist())

    def set_policy(self, policy: Policy) -> None:
        """Set the logits so that `likeliest_policy` is the given one."""
        with torch.no_grad():
            for logits, row in zip(self.logits, policy, strict=True):
                select = torch.tensor(row, dtype=logits.dtype, device=logits.device)
                logits.copy_(torch.stack([select, 1 - select], 1))

    def margins(self) -> Tensor:
        """Return the logit of selecting less that of skipping, (T, L), on the processor."""
        return self._margins().cpu()

    def get_extra_state(self) -> Tensor:
        """Return temperature and number of freed blocks."""
        return torch.tensor([self.temperature, self.freed], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore temperature and number of freed blocks."""
        self.temperature, self.freed = float(state[0]), int(state[1])

    def _margins(self) -> Tensor:
        return torch.stack([(x[:, 0] - x[:, 1]).detach().float() for x in self.logits])

    def _likelier(self) -> Tensor:
        """(T, L) True where a task selects a block."""
        select = self._margins() >= 0
        select[:, : len(self.blocks) - self.freed] = True
        return select

    def _one_hot(self) -> Tensor:
        select = self._likelier()
        return torch.stack([select, ~select], 2).float()


def signs_alone() -> AbstractContextManager[object]:
    """Let a ReLU keep the signs of its output for backward, not the output.

    Where no other layer keeps the output, it would be kept for its signs alone: behind a block that
    is mixed with its shortcut, and before convolutions with frozen weights.
    """

    def pack(output: Tensor) -> tuple[Tensor, torch.dtype]:
        return output > 0, output.dtype

    def unpack(packed: tuple[Tensor, torch.dtype]) -> Tensor:
        positive, dtype = packed
        return positive.to(dtype)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def gumbel_noise(like: Tensor) -> Tensor:
    """Draw G = -log(-log U) in the shape of a tensor."""
    return -torch.empty_like(like).exponential_().log()


def gumbel_softmax(logits: Tensor, noise: Tensor, *, temperature: float) -> Tensor:
    """Compute the Gumbel softmax over the last dimension, with given noise G."""
    return ((logits.log_softmax(-1) + noise) / temperature).softmax(-1)
