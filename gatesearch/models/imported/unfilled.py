"""Builds modules without drawing their initial weights, which takes longer than all else."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_FILLED_ALL_THE_SAME = frozenset(["copy_", "requires_grad_", "detach_"])


class Unfilled(TorchFunctionMode):
    """While it is entered, functions that fill a parameter in place leave it as it is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, or return the parameter that it would fill."""
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name not in _FILLED_ALL_THE_SAME:
            target = next(iter(tree_leaves((args, kwargs or {}))), None)
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **(kwargs or {}))
