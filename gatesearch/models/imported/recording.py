"""Records what a module's forward pass computes: every call of torch, in order.

The forward pass runs once, in evaluation mode, on an image without data (device meta): plain Python
control flow and shapes are those of a real image. A `TorchFunctionMode` sees each call of torch
with its arguments; calls that no image enters are kept as constants of the parameters.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from gatesearch.errors import UsageError, first_line
from gatesearch.models.imported.calls import (
    Call,
    Recording,
    Reference,
    Site,
    cannot_import,
    is_opaque,
)
from gatesearch.models.imported.constants import Constant, State, entry, fixed
from gatesearch.models.imported.stochastic_depth import drop_probability

# Images of the recorded batch. Above 1, so that the batch axis is told from axes of length 1.
BATCH = 2

_SILENT_FOLDERS = tuple(os.path.dirname(f) + os.sep for f in (torch.__file__, __file__))
# Functions that need values, and fail without data.
_NEED_VALUES = frozenset(
    [
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "item",
        "tolist",
        "numpy",
        "nonzero",
        "equal",
        "allclose",
        "masked_select",
        "unique",
        "argwhere",
    ]
)
# Functions whose results have the shape of an argument, but none of its values.
_FILLED = {"zeros": 0.0, "empty": 0.0, "ones": 1.0}


def record(
    module: nn.Module,
    image_size: tuple[int, int],
    *,
    whole: Callable[[nn.Module], bool] = lambda module: False,
) -> Recording:
    """Record a module's forward pass in evaluation mode.

    Args:
        module: Image (B, 3, H, W) -> a tensor, or a list or dict of tensors; it is not changed.
        image_size: (H, W).
        whole: Whether a module inside is recorded as one call.

    Raises:
        UsageError: It cannot be run on an image without data; names module, line and function.
    """
    recorder = Recorder(module)
    image = torch.empty(BATCH, 3, *image_size, device="meta")
    start = recorder.track(image)
    modes = {inner: inner.training for inner in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), recorder.inside_modules(), recorder.whole_modules(whole), recorder:
            outputs = module(image)
    except UsageError:
        raise
    # Whatever the user's code raises on a tensor without data.
    except Exception as error:
        site = recorder.site
        raise cannot_import(
            site, recorder.function, f"fails on an image without data: {first_line(error)[:200]}"
        ) from error
    finally:
        for inner, mode in modes.items():
            inner.training = mode
    return Recording(
        image=start,
        calls=tuple(recorder.calls),
        shapes=recorder.shapes,
        outputs=recorder.outputs(outputs),
        classes={path: type(inner) for path, inner in module.named_modules()},
        opaque={path: inner for path, inner in module.named_modules() if is_opaque(inner)},
    )


class Recorder(TorchFunctionMode):
    """Notes every call of torch while it is entered."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[Call] = []
        self.shapes: dict[int, tuple[int, ...]] = {}
        self.site = Site("", "")
        self.function = "forward"
        self._numbers: dict[int, int] = {}  # id -> number
        self._constants: dict[int, Constant] = {}  # id -> constant
        self._twins: dict[int, Tensor] = {}  # id -> the same without data
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._paths = {inner: path for path, inner in module.named_modules()}
        self._stack: list[str] = [""]
        self._silent = False
        self._state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        kept = set(module.state_dict())
        for name, tensor in self._state.items():
            held = entry(name, tensor) if name in kept else fixed(tensor)
            self._constants[id(tensor)] = held

    def track(self, tensor: Tensor) -> Reference:
        """Give a tensor that depends on the image a new number."""
        number = len(self.shapes)
        self._numbers[id(tensor)] = number
        self._constants.pop(id(tensor), None)
        self.shapes[number] = tuple(tensor.shape)
        self._alive.append(tensor)
        return Reference(number)

    def outputs(self, outputs: object) -> dict[str, Reference]:
        """Return what the module returned, by name.

        Raises:
            UsageError: It is something else than tensors, or they do not depend on the image.
        """
        found = type(outputs).__name__
        if isinstance(outputs, Tensor):
            outputs = [outputs]
        if isinstance(outputs, Sequence):
            outputs = dict(enumerate(outputs))
        if (
            not isinstance(outputs, Mapping)
            or not outputs
            or not all(
                isinstance(tensor, Tensor) and id(tensor) in self._numbers
                for tensor in outputs.values()
            )
        ):
            raise UsageError(
                "a backbone must return a feature map, or a list or dict of feature maps, that "
                f"depend on the image, found {found}; return the maps alone"
            )
        return {str(k): Reference(self._numbers[id(tensor)]) for k, tensor in outputs.items()}

    @contextmanager
    def inside_modules(self) -> Iterator[None]:
        """Keep track of which module is running."""

        def enter(inner: nn.Module, arguments: object) -> None:
            self._stack.append(self._paths.get(inner, self._stack[-1]))

        def leave(inner: nn.Module, arguments: object, result: object) -> None:
            self._stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def whole_modules(self, whole: Callable[[nn.Module], bool]) -> Iterator[None]:
        """Record some modules as one call each."""
        chosen = [
            inner
            for inner in self.module.modules()
            if whole(inner) or is_opaque(inner) or drop_probability(inner)
        ]
        for inner in chosen:
            inner.forward = self._recorded_whole(inner, inner.forward)
        try:
            yield
        finally:
            for inner in chosen:
                del inner.forward

    def _recorded_whole(self, inner: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            before, self._silent = self._silent, True
            probability = 0.0 if is_opaque(inner) else drop_probability(inner)
            try:
                result = forward(*arguments, **keywords)
                if probability:  # what is returned as it is becomes a tensor of its own
                    result = result.view_as(result)
            finally:
                self._silent = before
            if not self._silent:
                self.site = Site(self._stack[-1], _place())
                if probability:
                    self._note("drop_path", (*arguments, probability), keywords, result)
                    return result
                name = "opaque" if is_opaque(inner) else type(inner).__name__
                self._note(f"module:{name}", arguments, keywords, result)
            return result

        return run

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch, and note it."""
        kwargs = kwargs or {}
        name = _name(func)
        self.function = name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = any(id(tensor) in self._numbers for tensor in tensors)
        if name in _NEED_VALUES and tensors:
            return self._value(func, name, depends, args, kwargs)
        result = func(*tree_map(self._twin, args), **tree_map(self._twin, kwargs))
        if name == "__setitem__":
            self._write(args, depends)
            return result
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(result)):
            return result
        if isinstance(result, Tensor) and tensors and self._twin(tensors[0]) is result:
            result = tensors[0]  # written in place, or returned as it is
        if self._silent:
            if depends:
                for leaf in tree_leaves(result):
                    self.track(leaf)
            return result
        filling = next((v for k, v in _FILLED.items() if name in (f"new_{k}", f"{k}_like")), None)
        if depends and filling is not None:
            self._hold(
                result,
                lambda state: torch.full(result.shape, filling, dtype=result.dtype),
                frozenset(),
            )
        elif depends:
            self.site = Site(self._stack[-1], _place())
            self._note(name, args, kwargs, result)
        else:
            self._note_constant(func, args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        arguments, keywords = tree_map(self._known, args), tree_map(self._known, kwargs)
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.calls.append(
            Call(
                function=name,
                arguments=tuple(arguments),
                keywords=dict(keywords),
                results=tuple(self.track(tensor).number for tensor in tensors),
                single=isinstance(result, Tensor),
                site=self.site,
            )
        )

    def _note_constant(self, func: Callable[..., Any], args: Any, kwargs: Any, result: Any) -> None:
        arguments, keywords = tree_map(self._known, args), tree_map(self._known, kwargs)
        names = frozenset[str]().union(
            *(x.names for x in tree_leaves((arguments, keywords)) if isinstance(x, Constant))
        )

        def compute(state: State) -> Any:
            def real(value: Any) -> Any:
                if isinstance(value, Constant):
                    # A copy: the function may work in place.
                    return value.compute(state).clone()
                return torch.device("cpu") if isinstance(value, torch.device) else value

            return func(*tree_map(real, arguments), **tree_map(real, keywords))

        if isinstance(result, Tensor):
            self._hold(result, compute, names)
            return
        for i, tensor in enumerate(tree_leaves(result)):
            self._hold(tensor, partial(_entry, compute, i), names)

    def _write(self, args: tuple[Any, ...], depends: bool) -> None:
        """Note `target[index] = value`."""
        target, index, value = (tree_map(self._known, arg) for arg in args)
        if depends or not isinstance(target, Constant):
            self.site = Site(self._stack[-1], _place())
            raise cannot_import(self.site, "__setitem__", "writes into a part of a tensor")

        def compute(state: State) -> Tensor:
            whole = target.compute(state).clone()
            whole[index] = value.compute(state) if isinstance(value, Constant) else value
            return whole

        self._hold(args[0], compute, target.names)

    def _value(
        self, func: Callable[..., Any], name: str, depends: bool, args: Any, kwargs: Any
    ) -> Any:
        """Run a function that needs values; those of constants are known."""
        if depends:
            self.site = Site(self._stack[-1], _place())
            raise cannot_import(
                self.site,
                name,
                "depends on values computed from the image, as in data-dependent control flow",
            )

        def real(value: Any) -> Any:
            known = self._known(value)
            return known.compute(self._state) if isinstance(known, Constant) else value

        return func(*tree_map(real, args), **tree_map(real, kwargs))

    def _hold(self, tensor: Tensor, compute: Callable[[State], Any], names: frozenset[str]) -> None:
        meta = tensor if tensor.device.type == "meta" else torch.empty_like(tensor, device="meta")
        self._constants[id(tensor)] = Constant(meta, compute, names)
        self._alive.append(tensor)

    def _twin(self, value: Any) -> Any:
        """Return a tensor without data in place of one with data."""
        if not isinstance(value, Tensor) or value.device.type == "meta":
            return torch.device("meta") if isinstance(value, torch.device) else value
        if id(value) not in self._twins:
            self._twins[id(value)] = torch.empty_like(value, device="meta", requires_grad=False)
            self._alive.append(value)
        return self._twins[id(value)]

    def _known(self, value: Any) -> Any:
        """Return the `Reference` or `Constant` that a tensor is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._numbers:
            return Reference(self._numbers[id(value)])
        if id(value) not in self._constants:
            if value.device.type == "meta":
                raise cannot_import(self.site, self.function, "reads a tensor of unknown origin")
            self._constants[id(value)] = fixed(value)
            self._alive.append(value)
        return self._constants[id(value)]


def _name(func: Callable[..., Any]) -> str:
    name = cast(str, getattr(func, "__name__", type(func).__name__))
    if name == "__get__":
        return cast(str, getattr(func, "__self__").__name__)  # noqa: B009
    return name if name.startswith("__") else name.rstrip("_")


def _entry(compute: Callable[[State], Any], i: int, state: State) -> Tensor:
    return cast(Tensor, tree_leaves(compute(state))[i])


def _place() -> str:
    """Return `FILE:LINE` of the innermost caller outside torch and this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_SILENT_FOLDERS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
