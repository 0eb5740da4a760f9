"""The ways in which tasks share: one file each, one line here.

`base` has what a method is; `METHODS` has all there are, those that can be searched first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gatesearch.errors import UsageError, unknown
from gatesearch.methods import definitions
from gatesearch.methods.base import (
    Context,
    Method,
    Phase,
    Stopwatch,
    Supernet,
    TrainedNetwork,
    TrainingRequest,
)
from gatesearch.methods.cross_stitch import CROSS_STITCH
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.methods.interrogate.one_shot import ONE_SHOT
from gatesearch.methods.mtan import MTAN
from gatesearch.methods.mtl import MTL
from gatesearch.methods.specification import NetworkSpec
from gatesearch.methods.stl import STL
from gatesearch.models import parts_of
from gatesearch.study import Study, TrainingSpec

__all__ = [
    "METHODS",
    "Context",
    "Method",
    "NetworkSpec",
    "Phase",
    "Stopwatch",
    "Supernet",
    "TrainedNetwork",
    "TrainingRequest",
    "binding_methods",
    "build_model",
    "check_study",
    "method_of",
    "start_of",
    "training_of",
    "tuned_methods",
]

METHODS: dict[str, Method[Any]] = {
    method.name: method for method in (INTERROGATE, ONE_SHOT, STL, MTL, CROSS_STITCH, MTAN)
}


def method_of(name: str) -> Method[Any]:
    """The entry of `METHODS`.

    Raises:
        UsageError: Unknown method.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def tuned_methods(study: Study) -> dict[str, Method[Any]]:
    """Methods whose hyperparameters a study searches; by default the first that has any.

    Raises:
        UsageError: An unknown method, or one without hyperparameters to search.
    """
    names = study.tune or [name for name, method in METHODS.items() if method.space][:1]
    tuned = {name: method_of(name) for name in names}
    for name, method in tuned.items():
        if not method.space:
            searched = [other for other, entry in METHODS.items() if entry.space]
            raise UsageError(
                f"a method to tune must have hyperparameters to search, and '{name}' has none; "
                f"name one of {', '.join(searched)}, or train it as it is with --methods {name}"
            )
    return tuned


def check_study(study: Study) -> Study:
    """The same study with its methods' options validated, and without those that are default.

    Raises:
        UsageError: An unknown method, option or hyperparameter, or a bad value.
    """
    return definitions.checked(study, tuned_methods(study), method_of, METHODS)


def training_of(study: Study, method: str) -> TrainingSpec:
    """How a method's networks are trained."""
    return definitions.training_of(study, method_of(method))


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """The network whose trained weights another one starts from; None where they are its own."""
    method = method_of(spec.method)
    if method.start_of is not None:
        return method.start_of(spec, study)
    return definitions.single_task_start(spec, study, method)


def build_model(
    study: Study,
    method: str,
    *,
    seed: int | None = None,
    stl: Mapping[str, Tensor] | None = None,
    pretrained: bool = True,
) -> nn.Module:
    """A method's network for a study, image (B, 3, H, W) -> task -> (B, channels, H, W).

    Args:
        study: The definition.
        method: A name in `METHODS`.
        seed: Seed of the initial weights; the study's when None.
        stl: State of the trained single-task networks, for methods that start from them.
        pretrained: See `parts_of`.

    Raises:
        UsageError: Unknown method, or an option that it does not have.
    """
    entry = method_of(method)
    options = definitions.options_of(study, entry)
    return entry.build(parts_of(study, seed=seed, stl=stl, pretrained=pretrained), options)


def binding_methods(names: Sequence[str], results: Sequence[str]) -> list[str]:
    """Names of methods whose options bind a store that holds results of some methods."""
    bound = set(results) | {METHODS[name].built_on for name in results if name in METHODS}
    return [name for name in names if name in bound]
