"""Accept a user's heads, or refuse them before anything is trained."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from gatesearch.errors import UsageError, first_line
from gatesearch.files import first_fault
from gatesearch.models.gated_supernet import SHARED
from gatesearch.models.heads import FunctionHead, Heads
from gatesearch.pruning.extract import CopyOfComputed
from gatesearch.pruning.mix import MOST_TASKS
from gatesearch.study.definition import TaskName

# A module, or a function without weights; see `gatesearch.models.heads.takes_size`.
HeadLike = nn.Module | Callable[..., object]

_NAME: TypeAdapter[str] = TypeAdapter(TaskName)


def accept_heads(heads: Mapping[str, HeadLike]) -> dict[str, nn.Module]:
    """Check heads, and wrap those that are functions.

    Args:
        heads: Task -> module or function.

    Returns:
        Task -> module; the given ones, not copies.

    Raises:
        UsageError: A name that cannot be a task's, a head that cannot be called as heads are, or
            one that could not be carried over into the compact network.
    """
    if not isinstance(heads, Mapping) or not 1 <= len(heads) <= MOST_TASKS:
        found = f"{len(heads)} of them" if isinstance(heads, Mapping) else type(heads).__name__
        raise UsageError(
            f"heads must be a dict of 1 to {MOST_TASKS} heads, task -> module, found {found}"
        )
    accepted = {}
    for task, head in heads.items():
        _check_name(task)
        if isinstance(head, type) or not callable(head):
            raise UsageError(
                f"the head of task {task} must be a module or a function, found {head!r:.100}; "
                "pass an instance, as torch.nn.Conv2d(encoder.channels, 1, 1)"
            )
        module = head if isinstance(head, nn.Module) else FunctionHead(head)
        _check_arguments(task, module)
        _check_weights(task, module)
        accepted[task] = module
    try:
        with CopyOfComputed():
            copy.deepcopy(accepted)
    except Exception as error:  # Of any kind: modules may hold anything.
        raise UsageError(
            "heads must be such that copy.deepcopy copies them, because the compact network holds "
            f"copies; found {type(error).__name__}: {first_line(error)[:200]}; build what cannot "
            "be copied outside the head"
        ) from error
    return accepted


def _check_name(task: object) -> None:
    try:
        name = _NAME.validate_python(task)
    except ValidationError as error:
        raise UsageError(f"heads: {first_fault(error)}") from error
    if name == SHARED or hasattr(Heads({}), name):
        raise UsageError(
            f"a task must not have the name of an attribute of torch.nn.ModuleDict, or {SHARED}, "
            f"found '{name}'; name it differently"
        )


def _check_arguments(task: str, head: nn.Module) -> None:
    """Refuse a head that needs other arguments than features and size."""
    forward = head.function if isinstance(head, FunctionHead) else head.forward
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # A function that is not written in Python.
        return
    for inputs in (("features",), ("features", "size")):
        try:
            signature.bind(*inputs)
        except TypeError:
            continue
        return
    raise UsageError(
        f"the head of task {task} must be called as head(features) or head(features, size), found "
        f"{type(head).__name__} with forward{signature}; give its other arguments to __init__"
    )


def _check_weights(task: str, head: nn.Module) -> None:
    """Refuse modules that a head uses and torch does not know of.

    They would not be trained or saved, and functions would go on to use those of the supernet
    after the head was copied.
    """
    registered = {id(module) for module in head.modules()}
    for module in head.modules():
        if isinstance(module, torch.jit.ScriptModule):  # Its code cannot refer to others.
            continue
        for name, value in vars(module).items():
            if name.startswith("_") and name in _OF_TORCH:
                continue
            for hidden, by_function in _modules_in(value):
                if by_function or id(hidden) not in registered:
                    raise UsageError(
                        f"weights of a head must be in modules that are its attributes, found "
                        f"{type(hidden).__name__} inside {type(value).__name__} {name} of the head "
                        f"of task {task}; make it an attribute of a torch.nn.Module, or put it "
                        "into a torch.nn.ModuleList"
                    )


# Attributes of every module that hold what is registered.
_OF_TORCH = frozenset(vars(nn.Module()))


def _modules_in(value: object) -> Iterator[tuple[nn.Module, bool]]:
    """List modules with parameters that a value refers to: a module, a container, a function.

    Returns:
        Pairs (module, whether a function refers to it, which copies of the function then do too).
    """
    if isinstance(value, nn.Module):
        if next(value.parameters(), None) is not None:
            yield value, False
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _modules_in(item)
    elif isinstance(value, Mapping):
        yield from _modules_in(list(value.values()))
    elif isinstance(value, functools.partial):
        yield from _modules_in([value.func, value.args, value.keywords])
    elif inspect.ismethod(value):
        yield from _modules_in(value.__self__)
    elif inspect.isfunction(value):
        named = inspect.getclosurevars(value)
        for item in (*named.nonlocals.values(), *named.globals.values()):
            if isinstance(item, nn.Module):
                yield from ((module, True) for module, _ in _modules_in(item))
    elif callable(value) and not isinstance(value, type | Tensor):
        yield from _modules_in(getattr(value, "__dict__", {}))
