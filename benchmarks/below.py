"""Budgets below MTL's cost: `python -m benchmarks.below [NAME ...] [--budgets N] [--exact N]`.

Each network becomes the supernet of two tasks with light heads, on images of 64x64. Budgets are
drawn evenly from 0.25xMTL to 1xSTL. For each, channels of random importance are narrowed to it, and
random gates projected. One row a network:

- cost of the narrowest network, as a multiple of MTL's;
- smallest and largest share of a budget that is taken, of how many budgets below MTL's and in all;
- of the first N budgets the network is cut, with random weights: whether fvcore counts what the
  formula says, and the largest difference from the supernet's outputs, over the largest output;
- smallest and largest share that a multi-task network narrowed by one factor takes;
- seconds for each budget.
"""

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.imported import largest_gap, parts_of_graph, scatter
from gatesearch.cost import Budget, PatternCost, count_macs, project
from gatesearch.cost.narrowing import NarrowCost, relative_order, uniform_order, widest
from gatesearch.methods.interrogate.below import kept_within
from gatesearch.models import GatedSupernet, Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.channel_units import per_channel, unit_count, unit_index
from gatesearch.models.graph import Graph
from gatesearch.models.imported import import_backbone
from gatesearch.models.narrowing import narrowed_parts
from gatesearch.pruning import extract

SIZE = (64, 64)
SHAPE = (1, 3, *SIZE)
NETWORKS = ("resnet18", "timm:mobilenetv3_small_100", "timm:convnext_atto",
            "timm:vit_tiny_patch16_224")  # fmt: skip
SHARED = 0.8


@dataclass(frozen=True)
class Row:
    """What was found for a network; shares are (smallest, largest)."""

    network: str
    narrowest: float
    budgets: int
    below_mtl: int
    taken: tuple[float, float]
    exact: bool
    difference: float
    multi_task: tuple[float, float]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--budgets", type=int, default=200)
    parser.add_argument("--exact", type=int, default=5)
    options = parser.parse_args(arguments)
    for name in options.networks:
        print(measured(name, options.budgets, options.exact), flush=True)


def graph_of(name: str) -> Graph:
    """A backbone's graph at full width."""
    if name in BACKBONES:
        return BACKBONES[name](output_stride=32)
    return import_backbone(name, SIZE, None).graph


def measured(name: str, budgets: int, exact: int) -> Row:
    """Measure one network."""
    parts = parts_of_graph(graph_of(name))
    cost = NarrowCost(parts, SIZE)
    every = np.ones(cost.groups.count, dtype=bool)
    mtl, whole = cost.of(every).macs, pattern_cost(parts)
    stl = float(whole.macs({n: torch.ones(2, whole.graph.channels(n)) for n in whole.gated}))
    nothing = np.zeros(cost.groups.count)
    least = cost.of(relative_order(cost.groups, nothing).narrowest).macs
    uniform = uniform_order(cost.groups, nothing)
    draw, began = random.Random(0), time.perf_counter()
    taken, plain, differences, equal, below = [], [], [0.0], True, 0
    for seed in range(budgets):
        budget = Budget("", "macs", draw.uniform(max(0.25 * mtl, least), stl))
        narrow, formula = parts, whole
        if budget.limit < mtl:
            below += 1
            worth = np.random.default_rng(seed).random(cost.groups.count)
            kept = kept_within(cost, worth, [budget], shared=SHARED)
            narrow = narrowed_parts(parts, cost.groups, kept)
            formula = pattern_cost(narrow)
            share = lambda kept, limit=budget.limit: cost.of(kept).macs / limit  # noqa: E731
            plain.append(widest(uniform, share, least=1.0)[1])
        pattern = project(random_logits(formula, seed), formula, [budget])
        taken.append(float(formula.share(pattern, [budget])))
        if seed < exact:
            found, difference = cut(narrow, pattern)
            equal &= found == round(float(formula.macs(pattern)))
            differences.append(difference)
    seconds = (time.perf_counter() - began) / max(1, budgets)
    return Row(
        name, least / mtl, budgets, below, (min(taken), max(taken)), equal, max(differences),
        (min(plain, default=1.0), max(plain, default=1.0)), seconds,
    )  # fmt: skip


def pattern_cost(parts: Parts) -> PatternCost:
    """Cost of the patterns of a supernet, of which shapes alone matter."""
    with torch.device("meta"):
        supernet = GatedSupernet(parts)
    return PatternCost.of(supernet, SHAPE)


def random_logits(cost: PatternCost, seed: int) -> dict[str, Tensor]:
    """Draw the logits of a trial's gates."""
    generator = torch.Generator().manual_seed(seed)
    logits = {}
    for name in cost.gated:
        units = unit_count(cost.units, name, cost.graph.channels(name))
        drawn = torch.randn(2, units, generator=generator)
        logits[name] = per_channel(drawn, unit_index(cost.units, name))
    return logits


def cut(parts: Parts, pattern: dict[str, Tensor]) -> tuple[int, float]:
    """Multiply-adds that fvcore counts on the network of a pattern, and its difference."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, *SIZE)
    supernet = GatedSupernet(parts)
    with torch.no_grad():
        scatter(supernet, image)
        difference = largest_gap(supernet, [pattern], image, torch.float32)
        network = extract(supernet)
    return count_macs(network, SHAPE, cross_check=False).macs, difference


if __name__ == "__main__":
    main()
