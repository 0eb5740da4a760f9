"""One file for each way of sharing (interim)."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from gatesearch.errors import UsageError, unknown
from gatesearch.methods.cross_stitch import CrossStitch
from gatesearch.methods.mtan import MTAN
from gatesearch.methods.mtl import MTL
from gatesearch.methods.stl import STL
from gatesearch.models import parts_of
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.study import Study

__all__ = ["METHODS", "MTL", "STL", "Method", "build_model", "method_of", "needs_stl"]


@dataclass(frozen=True)
class Method:
    """A way in which tasks share.

    Attributes:
        build: Module from `Parts` and the study's `[options.NAME]` keys; its submodule `heads`
            holds the heads, all else counts as backbone.
        start: Where its weights start: `study` = as `model.init` says, `stl` = always from the
            trained single-task networks. `[options.NAME] start` overrides it.
    """

    build: Callable[..., nn.Module]
    paper: str
    year: int
    summary: str
    start: str = "study"


METHODS: dict[str, Method] = {
    "interrogate": Method(
        GatedSupernet, "Bejnordi et al., arXiv 2402.16848", 2024,
        "learned per-channel gates between a shared and a task's own stream, pruned afterwards",
    ),
    "stl": Method(STL, "(reference)", 1997, "one network a task, nothing shared"),
    "mtl": Method(MTL, "Caruana, Machine Learning 28", 1997, "one encoder, one head a task"),
    "cross_stitch": Method(
        CrossStitch, "Misra et al., CVPR", 2016,
        "one encoder a task, mixed linearly behind every stage", start="stl",
    ),
    "mtan": Method(
        MTAN, "Liu et al., CVPR", 2019, "one encoder, attention masks for each task and stage",
    ),
}  # fmt: skip


def needs_stl(study: Study, method: str) -> bool:
    """Whether a method starts from the trained single-task networks."""
    if method == "stl":
        return False
    start = study.arguments_of(method).get("start", method_of(method).start)
    if start not in ("study", "stl"):
        raise UsageError(f"options.{method}.start must be 'study' or 'stl', found {start!r}")
    return start == "stl" or study.model.init == "stl"


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
        UsageError: Unknown method, or an option that its builder does not know.
    """
    arguments = study.arguments_of(method)
    arguments.pop("start", None)
    build = method_of(method).build
    if method == "interrogate":
        gates = study.interrogate
        arguments |= {
            "granularity": gates.granularity,
            "estimator": gates.estimator,
            "initial": gates.initial,
        }
    allowed = list(inspect.signature(build).parameters)[1:]
    for name in arguments:
        if name not in allowed:
            raise unknown(f"key of options.{method}", name, ["start", "training", *allowed])
    return build(parts_of(study, seed=seed, stl=stl, pretrained=pretrained), **arguments)


def method_of(method: str) -> Method:
    """The entry of `METHODS`.

    Raises:
        UsageError: Unknown method.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return METHODS[method]
