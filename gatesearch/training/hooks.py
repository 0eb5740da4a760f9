"""What a phase of a method adds to plain training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

Penalty = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
FramePenalty = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions that the trainer calls; each of them is optional.

    Attributes:
        penalty: (images as the network reads them, task -> prediction) -> scalar that is added to
            the loss of each step. No weighting changes it.
        frame_penalty: Also added: (B, T) losses of each frame by itself, without graph, NaN where a
            frame has no labels of a task -> scalar. For networks that learn from rewards.
        before_step: Called before each step with the share of the phase that is done, in [0, 1).
        after_step: Called after each step of the optimizer, before its step size changes.
        observe: Number of the epoch that has ended, from 1 -> values to keep in the history.
        halt: Returns True to end the phase early; asked after each epoch, after `observe`.
    """

    penalty: Penalty | None = None
    frame_penalty: FramePenalty | None = None
    before_step: Callable[[float], None] | None = None
    after_step: Callable[[], None] | None = None
    observe: Callable[[int], Mapping[str, float]] | None = None
    halt: Callable[[], bool] | None = None


NO_HOOKS = Hooks()
