"""Converts a recorded forward pass into nodes, call by call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from gatesearch.errors import UsageError
from gatesearch.models.imported import channels, convolutions, elementwise, pooling, tokens, whole
from gatesearch.models.imported.builder import Builder, Draft, Handler, Value
from gatesearch.models.imported.calls import Call, Recording, Reference
from gatesearch.models.imported.layout import LayoutError, View, length
from gatesearch.models.imported.layout import whole as whole_value
from gatesearch.models.nodes import INPUT

# Function of torch -> what makes nodes of it. Names that no function of torch has are called by
# handlers: `cat_positions`, `add_constant`, `multiply_constant`.
HANDLERS: Mapping[str, Handler] = {
    **channels.HANDLERS,
    **convolutions.HANDLERS,
    **elementwise.HANDLERS,
    **pooling.HANDLERS,
    **tokens.HANDLERS,
    **whole.HANDLERS,
}
# Modules, by the names of their classes, that are recorded as one call.
WHOLE = frozenset(name.removeprefix("module:") for name in HANDLERS if name.startswith("module:"))


@dataclass(frozen=True)
class Converted:
    """Nodes of a recorded network.

    Attributes:
        draft: The nodes.
        outputs: Name of each output -> node.
    """

    draft: Draft
    outputs: Mapping[str, str]


def convert(recording: Recording, state: Mapping[str, Tensor], backbone: str = "") -> Converted:
    """Make nodes of a recording.

    Args:
        recording: Of a module.
        state: The module's state dict.
        backbone: The module's name, for parts of it that are kept whole.

    Raises:
        UsageError: It has an operator that no kind of node computes.
    """
    shape = recording.shapes[recording.image.number]
    b = Builder(
        shape,
        handlers=HANDLERS,
        classes=recording.classes,
        state=state,
        opaque=recording.opaque,
        backbone=backbone,
    )
    values: dict[int, Value] = {recording.image.number: whole_value(INPUT, shape)}
    for call in recording.calls:
        _handle(b, call, values, recording.shapes)
    outputs = {}
    for name, output in recording.outputs.items():
        outputs[name] = _output(b, values[output.number])
    return Converted(b.draft, outputs)


def _handle(
    b: Builder, call: Call, values: dict[int, Value], shapes: Mapping[int, tuple[int, ...]]
) -> None:
    def known(argument: Any) -> Any:
        return values[argument.number] if isinstance(argument, Reference) else argument

    b.shapes = tuple(shapes[number] for number in call.results)
    arguments = tree_map(known, call.arguments)
    result = b.handle(call, arguments, tree_map(known, call.keywords))
    results = [result]
    if not call.single:
        leaves = tree_leaves(result, is_leaf=_is_leaf)
        results = [leaf for leaf in leaves if leaf is not None]
    for number, value in zip(call.results, results, strict=True):
        if isinstance(value, View):
            assert value.shape == shapes[number], (call, value.shape, shapes[number])
        values[number] = value


def _is_leaf(value: object) -> bool:
    return not isinstance(value, list | tuple)


def _output(b: Builder, view: Value) -> str:
    """Return the node whose value a returned tensor is: a map, tokens, or (B, C).

    Raises:
        UsageError: It is something else.
    """
    if not isinstance(view, View):
        raise UsageError("a backbone must return feature maps, found something else")
    for axis in (1, len(view.axes) - 1):
        rest = [a for i, a in enumerate(view.axes) if i not in (0, axis)]
        try:
            channels_on = b.with_channels_on(view, axis)
        except LayoutError:
            continue
        if length(view.axes[axis]) != channels_on.channels or len(view.axes) < 2:
            continue
        rest = [a for i, a in enumerate(channels_on.axes) if i not in (0, axis)]
        if not rest and channels_on.positions:
            rest = [()] * len(channels_on.positions)
        return b.arranged(channels_on, channels=channels_on.axes[axis], positions=rest)
    raise UsageError(
        f"a backbone must return feature maps (B, C, H, W), found a tensor {view.shape} without an "
        "axis of channels"
    )
