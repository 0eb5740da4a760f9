"""How heads are called: with one map or with one for each feature, with or without the size."""

import inspect
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from gatesearch.models.graph import Graph


class FunctionHead(nn.Module):
    """A head that is a function without weights, called as `takes_size` says."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function
        self.reads_stages = reads_stages(function)

    def forward(self, *inputs: object) -> object:
        """Call the function."""
        return self.function(*inputs)


def reads_stages(head: object) -> bool:
    """Tell whether a head reads every feature of the encoder, or the last one alone.

    A head, or what builds it, says so by an attribute `reads_stages`, which is True.
    """
    return getattr(head, "reads_stages", False) is True


def takes_size(head: nn.Module) -> bool:
    """Tell whether a head is called with features and image size, or with features alone.

    It is called with both if its `forward` has a second positional parameter that is named `size`
    or has no default. A `forward` without a signature, as of a scripted module, gets features.
    """
    forward = head.function if isinstance(head, FunctionHead) else head.forward
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [parameter for parameter in parameters if parameter.kind in kinds][1:2]
    return any(p.name == "size" or p.default is inspect.Parameter.empty for p in second)


class Heads(nn.ModuleDict):
    """Task -> head, each called as it asks (see `reads_stages` and `takes_size`)."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        self._takes_size: dict[str, bool] = {}
        super().__init__(dict(heads))

    def __setitem__(self, task: str, head: nn.Module) -> None:
        """Set the head of a task."""
        super().__setitem__(task, head)
        self._takes_size[task] = takes_size(head)

    def nodes(self, graph: Graph, *tasks: str) -> tuple[str, ...]:
        """Name the nodes of an encoder that the heads of some tasks read, or all heads."""
        return graph.read_by(any(reads_stages(self[task]) for task in tasks or self))

    def call_head(
        self, task: str, features: Tensor | Sequence[Tensor], size: Sequence[int]
    ) -> Tensor:
        """Compute a task's prediction.

        Args:
            task: The task.
            features: (B, C, h, w) of each of the encoder's features, the last one last; a head
                that reads the last one alone may be given that tensor.
            size: (H, W) of the image.
        """
        head, maps = self[task], [features] if isinstance(features, Tensor) else list(features)
        read = maps if reads_stages(head) else maps[-1]
        prediction: Tensor = head(read, size) if self._takes_size[task] else head(read)
        return prediction
