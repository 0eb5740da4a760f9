"""Methods: the ways in which tasks share a network. Each has one file, and one line in `METHODS`.

`base` defines what a method is; read it before you write one. `METHODS` lists all methods, those
with hyperparameters to search first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gatesearch.errors import UsageError, unknown
from gatesearch.methods import definitions
from gatesearch.methods.adashare.method import ADASHARE
from gatesearch.methods.allocation import ALLOCATION
from gatesearch.methods.base import (
    Context,
    Method,
    Phase,
    Stopwatch,
    Supernet,
    TrainedNetwork,
    TrainingRequest,
)
from gatesearch.methods.branch import BRANCH
from gatesearch.methods.controls import CONTROL
from gatesearch.methods.cross_stitch import CROSS_STITCH
from gatesearch.methods.definitions import at_width
from gatesearch.methods.den.method import DEN
from gatesearch.methods.dymu.method import DYMU
from gatesearch.methods.ecmt.method import ECMT
from gatesearch.methods.gradsplit import GRADSPLIT
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.methods.interrogate.one_shot import ONE_SHOT
from gatesearch.methods.lomt.method import LOMT
from gatesearch.methods.mtan import MTAN
from gatesearch.methods.mtl import MTL
from gatesearch.methods.nddr import NDDR
from gatesearch.methods.sluice import SLUICE
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
    "at_width",
    "binding_methods",
    "build_model",
    "check_study",
    "method_of",
    "start_of",
    "training_of",
    "tuned_methods",
]

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (
        *(INTERROGATE, ONE_SHOT, ALLOCATION, ADASHARE, LOMT, ECMT, DYMU),
        *(STL, MTL, BRANCH, CROSS_STITCH, SLUICE, NDDR, MTAN, DEN, GRADSPLIT),
    )
}


def method_of(name: str) -> Method[Any]:
    """Look a method up in `METHODS`; `control` is one too, which only the search asks for.

    Raises:
        UsageError: Unknown method.
    """
    if name == CONTROL.name:
        return CONTROL
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def tuned_methods(study: Study) -> dict[str, Method[Any]]:
    """List the methods whose hyperparameters a study searches; by default the first that has any.

    Returns:
        Name -> method.

    Raises:
        UsageError: An unknown method, or one without hyperparameters to search.
    """
    names = study.tune or [name for name, method in METHODS.items() if method.space][:1]
    tuned = {name: method_of(name) for name in names}
    for name, method in tuned.items():
        if not method.space:
            tunable = [other for other, entry in METHODS.items() if entry.space]
            raise UsageError(
                f"a method to tune must have hyperparameters to search, and '{name}' has none; "
                f"name one of {', '.join(tunable)}, or train it as it is with --methods {name}"
            )
    return tuned


def check_study(study: Study) -> Study:
    """Validate a study's options of methods; return the study without those that are the default.

    Raises:
        UsageError: An unknown method, option or hyperparameter, a bad value, or a method among
            `methods` that must be searched.
    """
    for name in study.methods:
        if not method_of(name).baseline:
            raise UsageError(
                f"methods must be those that are trained without a search, and '{name}' is not; "
                f'search it with --tune {name} (tune = ["{name}"] in a study), not --methods'
            )
    return definitions.checked(study, tuned_methods(study), method_of, METHODS)


def training_of(study: Study, method: str) -> TrainingSpec:
    """Return the training settings of a method's networks."""
    return definitions.training_of(study, method_of(method))


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Specify the network whose trained weights another network starts from.

    Returns:
        None where the network starts from random or pretrained weights.
    """
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
    """Build a method's network for a study, image (B, 3, H, W) -> task -> (B, channels, H, W).

    Args:
        study: The definition.
        method: A name in `METHODS`.
        seed: Seed of the initial weights; the study's when None.
        stl: State dict of the trained single-task networks, for methods that start from them.
        pretrained: False leaves out pretrained encoder weights; see `parts_of`.

    Raises:
        UsageError: Unknown method, or an option that it does not have.
    """
    entry = method_of(method)
    options = definitions.options_of(study, entry)
    return entry.build(parts_of(study, seed=seed, stl=stl, pretrained=pretrained), options)


def binding_methods(names: Sequence[str], results: Sequence[str]) -> list[str]:
    """Select the methods whose options must not change in a store.

    Args:
        names: Methods to select from.
        results: Methods of which the store holds results. These results depend on the options of
            their own method and of the one that it is built on (`Method.built_on`).
    """
    bound = set(results) | {METHODS[name].built_on for name in results if name in METHODS}
    return [name for name in names if name in bound]
