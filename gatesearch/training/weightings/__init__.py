"""Ways to balance the tasks' losses and gradients, for any method of sharing.

A new weighting is a builder that takes `Basis` and its options, and one line in `WEIGHTINGS`.
`Weighting` documents what a training calls; `gradients` says which parameters count as shared.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from gatesearch.errors import UsageError, unknown
from gatesearch.training.weightings import rules
from gatesearch.training.weightings.auto_lambda import AutoLambda
from gatesearch.training.weightings.fixed import scalar, uniform
from gatesearch.training.weightings.losses import (
    DynamicWeightAverage,
    FastAdaptive,
    RandomLossWeighting,
    imtl_l,
    stch,
    uncertainty,
)
from gatesearch.training.weightings.representation import UpperBound
from gatesearch.training.weightings.weighting import (
    Basis,
    TrainingView,
    UnbalancedError,
    Weighting,
)

__all__ = [
    "WEIGHTINGS",
    "Basis",
    "Entry",
    "TrainingView",
    "UnbalancedError",
    "Weighting",
    "build_weighting",
]


@dataclass(frozen=True)
class Entry:
    """A way to balance tasks.

    Attributes:
        build: Builds the weighting from `Basis` and its options.
        paper: Authors and venue.
        year: Year of the paper.
        summary: What it does, in a few words.
        kind: Whether it looks at losses or at gradients.
        cost: What a step costs in time and memory beyond a uniform one, for T tasks that share the
            parameters θ.
        passes: (T, share of a forward pass that is in shared layers) -> what a step computes beyond
            a uniform one, in forward passes; a backward pass counts as two.
        held_out: True if it looks at batches of the validation part (`Weighting.before_step`).
    """

    build: Callable[..., Weighting]
    paper: str
    year: int
    summary: str
    kind: Literal["loss", "gradient"] = "loss"
    cost: str = "none"
    passes: Callable[[int, float], float] = lambda tasks, shared: 0.0
    held_out: bool = False


def _gradient(build: Callable[..., Weighting], paper: str, year: int, summary: str) -> Entry:
    """Describe a weighting that needs the gradients of every task."""
    cost = "T - 1 backward passes of θ, T |θ| memory"
    return Entry(
        build,
        paper,
        year,
        summary,
        "gradient",
        cost,
        lambda tasks, shared: 2 * (tasks - 1) * shared,
    )


WEIGHTINGS: dict[str, Entry] = {
    "uniform": Entry(uniform, "(reference)", 1997, "the study's own weights"),
    "scalar": Entry(
        scalar, "(reference)", 1997, "fixed weights, searched", cost="one training a try",
    ),
    "dwa": Entry(
        DynamicWeightAverage, "Liu et al., CVPR", 2019,
        "more for tasks whose loss fell less from epoch to epoch",
    ),
    "uncertainty": Entry(
        uncertainty, "Kendall et al., CVPR", 2018, "learned variances of the tasks' noise",
    ),
    "auto_lambda": Entry(
        AutoLambda, "Liu et al., TMLR", 2022,
        "weights that lower the validation loss one step ahead",
        cost="4 forward, 2 backward passes, 3 |θ| memory",
        passes=lambda tasks, shared: 8.0,
        held_out=True,
    ),
    "rlw": Entry(
        RandomLossWeighting, "Lin et al., TMLR", 2022, "random weights in each step",
    ),
    "pcgrad": _gradient(
        rules.pcgrad, "Yu et al., NeurIPS", 2020, "projects conflicting gradients off each other",
    ),
    "cagrad": _gradient(
        rules.cagrad, "Liu et al., NeurIPS", 2021,
        "near the mean gradient, the direction that the worst task likes best",
    ),
    "mgda": _gradient(
        rules.mgda, "Désidéri, C. R. Math. 350", 2012, "the shortest combination of gradients",
    ),
    "mgda_ub": Entry(
        UpperBound, "Sener & Koltun, NeurIPS", 2018,
        "the same from gradients of the shared features", "gradient",
        "T gradients of the features in memory",
    ),
    "nash_mtl": _gradient(
        rules.nash_mtl, "Navon et al., ICML", 2022, "the bargaining solution between tasks",
    ),
    "imtl_g": _gradient(
        rules.imtl_g, "Liu et al., ICLR", 2021, "equal projections on all gradients",
    ),
    "imtl_l": Entry(imtl_l, "Liu et al., ICLR", 2021, "learned scales that even the losses out"),
    "upgrad": _gradient(
        rules.upgrad, "Quinton & Rey, arXiv 2406.16232", 2024,
        "projects gradients on the cone that no task objects to",
    ),
    "aligned_mtl": _gradient(
        rules.aligned_mtl, "Senushkin et al., CVPR", 2023,
        "evens out the gradients' principal components",
    ),
    "famo": Entry(
        FastAdaptive, "Liu et al., NeurIPS", 2023,
        "learned weights that lower all log losses alike", cost="1 forward pass",
        passes=lambda tasks, shared: 1.0,
    ),
    "stch": Entry(stch, "Lin et al., ICML", 2024, "a smooth maximum of the losses"),
    "fairgrad": _gradient(rules.fairgrad, "Ban & Ji, ICML", 2024, "α-fair progress of the tasks"),
    "gradvac": _gradient(
        rules.gradvac, "Wang et al., ICLR", 2021, "turns gradients to their usual angles",
    ),
    "graddrop": _gradient(
        rules.graddrop, "Chen et al., NeurIPS", 2020, "entry by entry, gradients of one sign",
    ),
    "config": _gradient(
        rules.config, "Liu et al., ICLR", 2025, "equal cosines with all gradients",
    ),
}  # fmt: skip


def build_weighting(
    name: str,
    omega: Mapping[str, float],
    *,
    seed: int = 0,
    device: str = "cpu",
    options: Mapping[str, float | Mapping[str, float]] | None = None,
) -> Weighting:
    """Build the weighting of a training.

    Args:
        name: A name in `WEIGHTINGS`.
        omega: Task -> ω_t, the study's weight of its loss, in the order of the losses.
        seed: Seed of the weighting's random numbers.
        device: Device of the losses.
        options: Keyword arguments of its builder.

    Raises:
        UsageError: Unknown weighting or option, a bad value, or a package that is missing.
    """
    if name not in WEIGHTINGS:
        raise unknown("weighting", name, WEIGHTINGS)
    build = WEIGHTINGS[name].build
    options = options or {}
    allowed = dict(list(inspect.signature(build).parameters.items())[1:])
    for option, value in options.items():
        if option not in allowed:
            raise unknown(f"option of weighting {name}", option, allowed)
        wanted = allowed[option].default
        if isinstance(wanted, float | int) and type(value) not in (float, int):
            raise UsageError(
                f"option {option} of weighting {name} must be a number such as {wanted}, found "
                f"{value!r}"
            )
    try:
        return build(Basis(dict(omega), seed, device), **options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"weighting {name}: {error}") from error
