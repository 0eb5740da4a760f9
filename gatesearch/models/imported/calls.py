"""What a recording holds: calls of torch, where each was made, and how one is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gatesearch.errors import UsageError


@dataclass(frozen=True)
class Site:
    """Where a call was made.

    Attributes:
        module: Path of the module that made it; empty for the network itself.
        place: `FILE:LINE` of its source outside torch.
    """

    module: str
    place: str


@dataclass(frozen=True)
class Reference:
    """A tensor that depends on the image, by its number in the recording."""

    number: int


@dataclass(frozen=True)
class Call:
    """One call of a function of torch.

    Attributes:
        function: Its name, as `conv2d`; of a method that works in place without the last `_`. For
            modules that are recorded whole, `module:` and the name of their class.
        arguments: Its arguments; tensors are `Reference`s or `Constant`s.
        keywords: Its keyword arguments.
        results: Numbers of the tensors that it returns.
        single: Whether it returns a tensor rather than several.
        site: Where it was made.
    """

    function: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[int, ...]
    single: bool
    site: Site


@dataclass(frozen=True)
class Recording:
    """A recorded forward pass.

    Attributes:
        image: The image.
        calls: What was computed from it, in order.
        shapes: Tensor -> its shape.
        outputs: What the module returned, by name: keys of a dict, else positions.
        classes: Path of each module -> its class.
        opaque: Path of each module that is kept whole -> the module.
    """

    image: Reference
    calls: tuple[Call, ...]
    shapes: Mapping[int, tuple[int, ...]]
    outputs: Mapping[str, Reference]
    classes: Mapping[str, type[nn.Module]]
    opaque: Mapping[str, nn.Module]


def cannot_import(site: Site, function: str, fault: str) -> UsageError:
    """Make the error for what cannot become nodes of a graph."""
    return UsageError(
        f"the network cannot be imported: {function} in {site.module or 'the network itself'} "
        f"({site.place}) {fault}; write this module with other operators, or keep it whole with "
        "gs.opaque(module)"
    )


def opaque(module: nn.Module) -> nn.Module:
    """Mark a module of a backbone to be kept whole when the backbone is imported.

    It becomes one node: each stream has all of it, and gates are only behind it. It must compute
    one tensor from one, and whatever else it is called with must be numbers.

    Returns:
        The module itself.

    >>> part = opaque(nn.Conv2d(8, 8, 3))
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"gs.opaque takes a torch module, found {type(module).__name__}")
    module._gatesearch_opaque = True  # type: ignore[assignment]
    return module


def is_opaque(module: nn.Module) -> bool:
    """Whether a module was marked by `opaque`."""
    return bool(getattr(module, "_gatesearch_opaque", False))
