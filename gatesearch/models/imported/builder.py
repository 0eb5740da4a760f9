"""The graph under construction, and what handlers of calls build it with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from typing import Any

from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.encoder import module_key
from gatesearch.models.imported.calls import Call, Site, cannot_import
from gatesearch.models.imported.constants import Constant
from gatesearch.models.imported.layout import (
    CHANNEL_AXIS,
    Axis,
    Factor,
    LayoutError,
    View,
    cut,
    full_axis,
    joined,
    moved,
    numbers,
    whole,
)
from gatesearch.models.nodes import INPUT, Node, Rearrange, Route, concatenation
from gatesearch.models.nodes.position_operations import (
    Permute,
    PositionOperation,
    Reshape,
    Take,
)

# What handlers take and return beside plain Python values: `View`s, `Constant`s, or objects of
# their own that only other handlers read, as scores of attention.
Value = Any
Handler = Callable[..., Value]


@dataclass
class Draft:
    """Nodes in order of execution, with what is known of each.

    Attributes:
        nodes: The nodes.
        weights: Node -> name of a tensor of its layer -> what it is in the imported module.
        sites: Node -> where it was called.
        modules: Node -> paths of the modules that it stands for.
    """

    nodes: list[Node] = field(default_factory=list)
    weights: dict[str, dict[str, Constant]] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    modules: dict[str, set[str]] = field(default_factory=dict)


class Builder:
    """Adds nodes to a draft; one call is handled at a time.

    A handler is a function (builder, *arguments of the function of torch) -> results. Among its
    arguments tensors are `View`s and `Constant`s.

    Attributes:
        draft: The nodes so far.
        site: Where the call at hand was made.
        function: Its function.
        shapes: Of its results.
    """

    def __init__(
        self,
        image: tuple[int, ...],
        *,
        handlers: Mapping[str, Handler],
        classes: Mapping[str, type[nn.Module]],
        state: Mapping[str, Tensor],
        opaque: Mapping[str, nn.Module],
        backbone: str,
    ) -> None:
        self.draft = Draft()
        self.site = Site("", "")
        self.function = ""
        self.sizes: dict[str, tuple[int, ...]] = {INPUT: image}
        self.handlers = handlers
        self.classes = classes
        self.state = state
        self.opaque = opaque
        self.backbone = backbone
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self._containers = {path.rpartition(".")[0] for path in classes}
        self._keys: set[str] = set()
        self._nodes: dict[str, Node] = {}
        self._made: dict[object, str] = {}

    def handle(
        self, call: Call, arguments: Sequence[Value], keywords: Mapping[str, Value]
    ) -> Value:
        """Handle a call.

        Raises:
            UsageError: Its operator is unknown, or cannot be kept as nodes.
        """
        self.site, self.function = call.site, call.function
        return self.call(call.function, *arguments, **keywords)

    def call(self, function: str, *arguments: Value, **keywords: Value) -> Value:
        """Call the handler of another function, as part of the call at hand.

        Raises:
            UsageError: It is unknown, or cannot be kept as nodes.
        """
        if function not in self.handlers:
            raise self.refused("is an operator that no kind of node computes")
        try:
            return self.handlers[function](self, *arguments, **keywords)
        except (LayoutError, TypeError, AttributeError, LookupError, ValueError) as error:
            fault = f" ({error})" if str(error) else ""
            raise self.refused(f"is used in a way that no kind of node computes{fault}") from error

    def refused(self, fault: str) -> UsageError:
        """Make the error for the call at hand."""
        return cannot_import(self.site, self.function, fault)

    def new_name(self, kind: str = "", *, below_module: bool = False) -> str:
        """Return an unused name for a node: the path of the module, or one below it.

        Args:
            kind: What is put behind the path if that is taken; the function by default.
            below_module: Whether the path is kept for another node of the module.
        """
        kind = kind or self.function.removeprefix("module:")
        path = self.site.module or kind
        below = f"{self.site.module}.{kind}".lstrip(".")
        numbered = (f"{below}_{i}" for i in count(2))
        # The path of a module of several others is that of its sum, as a residual block's.
        bare = not below_module and (kind in ("add", "opaque") or path not in self._containers)
        candidates = chain([path] if bare else [], [below], numbered)
        return next(name for name in candidates if is_free(name, self._keys))

    def add(self, node: Node, weights: Mapping[str, Constant] | None = None) -> str:
        """Add a node, and return its name.

        Args:
            node: Its name is from `new_name`.
            weights: Name of each tensor of its layer -> what it is in the imported module.
        """
        self.draft.nodes.append(node)
        self._nodes[node.name] = node
        self.draft.weights[node.name] = dict(weights or {})
        self.draft.sites[node.name] = self.site
        self.draft.modules[node.name] = {self.site.module}
        self._keys.add(module_key(node.name))
        positions = {source: self.sizes[source][2:] for source in node.sources}
        size = (self.sizes[INPUT][0], node.outputs, *node.output_size(positions))
        self.sizes[node.name] = size
        return node.name

    def node(self, name: str) -> Node | None:
        """Return a node by its name; None for the image."""
        return self._nodes.get(name)

    def value(self, name: str) -> View:
        """Return a node's value as a view."""
        return whole(name, self.sizes[name])

    def parameter(self, name: str) -> Constant | None:
        """Return a parameter or buffer of the module that made the call; None without it."""
        from gatesearch.models.imported.constants import entry

        path = f"{self.site.module}.{name}".lstrip(".")
        return entry(path, self.state[path]) if path in self.state else None

    def number(self, constant: Constant) -> float | None:
        """Return the value of a constant of one entry that no parameter enters; else None."""
        if constant.meta.numel() != 1 or constant.names:
            return None
        return float(constant.compute(self.state))

    def arranged(self, view: View, *, channels: Sequence[Factor], positions: Sequence[Axis]) -> str:
        """Return the name of a value with channels and positions in the order asked for.

        Adds a `Route` if channels change their order, and a `Rearrange` if positions do.

        Args:
            view: A tensor.
            channels: All factors of its value's channels, the outermost first.
            positions: For each axis of the new value's positions, its factors; together all of
                the value's positions.

        Raises:
            LayoutError: Factors are missing.
        """
        name = self._routed(view, channels)
        wanted = [joined(axis) for axis in positions]
        if wanted == [full_axis(i, n) for i, n in enumerate(view.positions, start=2)]:
            return name
        factors = [f for i in range(2, len(view.sizes)) for f in cut(view, i)]
        order = [factors.index(f) for axis in positions for f in axis]
        if sorted(order) != list(range(len(factors))):
            raise LayoutError
        operations: list[PositionOperation] = []
        sizes = tuple(f.size for f in factors)
        if sizes != view.positions:
            operations.append(Reshape(sizes=sizes))
        if order != sorted(order):
            operations.append(Permute(axes=tuple(order)))
            sizes = tuple(sizes[i] for i in order)
        new = tuple(_product(axis) for axis in positions)
        if new != sizes:
            operations.append(Reshape(sizes=new))
        return self.rearranged(name, operations)

    def rearranged(self, name: str, operations: Sequence[PositionOperation]) -> str:
        """Return the name of a value after operations on positions; equal ones are added once."""
        if not operations:
            return name
        before = self.node(name)
        if isinstance(before, Rearrange) and all(o.op == "take" for o in before.operations):
            name, operations = before.source, [*before.operations, *operations]
        key = (name, tuple(operation.model_dump_json() for operation in operations))
        if key not in self._made:
            node = Rearrange(
                self.new_name("rearrange", below_module=True),
                name,
                self.sizes[name][CHANNEL_AXIS],
                tuple(operations),
            )
            self._made[key] = self.add(node)
        return self._made[key]

    def routed(self, name: str, channels: Sequence[int]) -> str:
        """Return the name of a value with some channels of another, in a chosen order."""
        count = self.sizes[name][CHANNEL_AXIS]
        if list(channels) == list(range(count)):
            return name
        key = (name, tuple(channels))
        if key not in self._made:
            routes = tuple((0, channel) for channel in channels)
            self._made[key] = self.add(
                Route(self.new_name("route", below_module=True), (name,), (count,), routes)
            )
        return self._made[key]

    def joined(self, names: Sequence[str]) -> str:
        """Return the name of the concatenation of several values."""
        channels = [self.sizes[name][CHANNEL_AXIS] for name in names]
        return self.add(concatenation(self.new_name("cat", below_module=True), names, channels))

    def settled(self, view: View) -> View:
        """Return the same tensor over a value with the positions of the tensor, in its order.

        Neighbouring factors of positions on an axis of the tensor become one axis of the value.

        Raises:
            LayoutError: The tensor does not hold every element once.
        """
        channels = [f for axis in view.axes for f in axis if f.axis == CHANNEL_AXIS]
        runs = position_runs(view.axes)
        if not runs and view.positions:  # all of length 1, which no axis shows
            runs = [()] * len(view.positions)
        name = self.arranged(view, channels=channels, positions=runs)
        return moved(view, name, [cut(view, 0), channels, *runs])

    def position_axis(self, view: View, axis: int) -> tuple[View, int]:
        """Return the same tensor over a value one of whose positions is an axis of the tensor.

        Returns:
            The tensor, and which axis of the value's positions it is.

        Raises:
            LayoutError: It holds something else than positions.
        """
        for _ in range(2):
            for position, size in enumerate(view.positions):
                if size > 1 and view.axes[axis] == full_axis(position + 2, size):
                    return view, position
            if any(f.axis < 2 for f in view.axes[axis]) or not view.axes[axis]:
                break
            view = self.settled(view)
        raise LayoutError("an axis of positions is needed")

    def with_channels_on(self, view: View, axis: int) -> View:
        """Return the same tensor over a value whose channels are one axis of the tensor, in order.

        Positions on that axis become channels: the value's slices are concatenated.

        Args:
            view: A tensor.
            axis: Of the tensor.

        Raises:
            LayoutError: The axis holds only a part of the channels.
        """
        wanted = view.axes[axis]
        elsewhere = [f for i, a in enumerate(view.axes) for f in a if i != axis and f.axis == 1]
        if elsewhere or any(f.axis == 0 or not f.stride for f in wanted):
            raise LayoutError("an axis holds a part of the channels only")
        if wanted == full_axis(CHANNEL_AXIS, view.channels):
            return view
        channels = [f for f in wanted if f.axis == CHANNEL_AXIS]
        if len(channels) == len(wanted):
            name = self._routed(view, channels)
            return moved(
                view, name, [cut(view, i) if i != 1 else channels for i in range(len(view.sizes))]
            )
        return self._with_positions_as_channels(view, wanted)

    def as_map(self, view: View) -> str:
        """Return the name of the value (B, C, H, W) that a tensor (B, C, H, W) is.

        Raises:
            LayoutError: It has other axes.
        """
        if view.axes == whole(view.name, view.sizes).axes and len(view.axes) == 4:
            return view.name
        if len(view.axes) != 4:
            raise LayoutError("a map of height and width is needed")
        view = self.with_channels_on(view, CHANNEL_AXIS)
        return self.arranged(view, channels=cut(view, 1), positions=view.axes[2:])

    def _routed(self, view: View, channels: Sequence[Factor]) -> str:
        order = numbers(channels)
        if len(order) != view.channels:
            raise LayoutError("some channels are missing")
        return self.routed(view.name, order)

    def _with_positions_as_channels(self, view: View, wanted: Axis) -> View:
        """Concatenate the slices of a value at each combination of some factors of positions."""
        taken = [f for f in wanted if f.axis != CHANNEL_AXIS]
        factors = [f for i in range(2, len(view.sizes)) for f in cut(view, i)]
        kept = [[f for f in cut(view, i) if f not in taken] for i in range(2, len(view.sizes))]
        sizes = tuple(f.size for f in factors)
        slices = []
        for entry in range(_product(taken)):
            operations: list[PositionOperation] = (
                [] if sizes == view.positions else [Reshape(sizes=sizes)]
            )
            rest = entry
            for factor in reversed(taken):
                rest, at = divmod(rest, factor.size)
                operations.append(Take(axis=factors.index(factor), start=at, stop=at + 1))
            operations.append(Reshape(sizes=tuple(_product(axis) for axis in kept)))
            slices.append(self.rearranged(view.name, operations))
        name = self.joined(slices)
        # The slices are in the order of `taken`, each with all channels.
        outer = {f: Factor(1, f.size, s * view.channels) for f, s in _strides(taken).items()}
        places = [outer.get(f, f) for f in wanted]
        name = self.routed(name, numbers(places))
        return moved(view, name, [cut(view, 0), list(wanted), *kept])


def is_free(name: str, keys: set[str]) -> bool:
    """Whether a node may have a name: modules of torch must not have it as an attribute."""
    key = module_key(name)
    return key not in keys and not hasattr(nn.ModuleDict, key) and not hasattr(_EMPTY, key)


def position_runs(axes: Sequence[Axis]) -> list[Axis]:
    """Return the runs of neighbouring factors of positions, over all axes of a tensor."""
    runs: list[Axis] = []
    for axis in axes:
        run: list[Factor] = []
        for factor in (*axis, Factor(CHANNEL_AXIS, 1, 1)):
            if factor.axis >= 2:
                run.append(factor)
            elif run:
                runs.append(tuple(run))
                run = []
    return runs


_EMPTY = nn.ModuleDict()


def _product(factors: Sequence[Factor]) -> int:
    total = 1
    for factor in factors:
        total *= factor.size
    return total


def _strides(factors: Sequence[Factor]) -> dict[Factor, int]:
    strides, stride = {}, 1
    for factor in reversed(factors):
        strides[factor] = stride
        stride *= factor.size
    return strides
