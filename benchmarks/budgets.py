"""How much of a budget projected gates use: random gates, random budgets between MTL and STL."""

import statistics

import torch

import gatesearch as gs
from benchmarks.figure import Figure, seconds
from gatesearch.cost import Budget, PatternCost, project
from gatesearch.models import GatedSupernet

STUDIES = ("scenes", "nyud-small", "nyud")
BUDGETS = 200  # per study and granularity
LEAST = 0.98


def measure() -> list[Figure]:
    generator = torch.Generator().manual_seed(0)
    figures = []
    for name in STUDIES:
        shares, times = [], []
        for granularity in ("conv", "block"):
            study = gs.load_study(name, overrides=[f"interrogate.granularity={granularity}"])
            with torch.device("meta"):
                supernet = gs.build_model(study, "interrogate", pretrained=False)
            assert isinstance(supernet, GatedSupernet)
            cost = PatternCost.of(supernet, (1, 3, *study.protocol.size))
            shapes = {node: alpha.shape for node, alpha in supernet.logits().items()}
            ends = [{n: torch.full(s, on) for n, s in shapes.items()} for on in (0.0, 1.0)]
            least, most = (float(cost.macs(gates)) for gates in ends)
            for _ in range(BUDGETS):
                share, lean = torch.rand(2, generator=generator).tolist()
                alpha = {n: torch.randn(s, generator=generator) + 3 * lean - 1.5
                         for n, s in shapes.items()}  # fmt: skip
                budget = Budget("", "macs", least + share * (most - least))
                found: dict[str, torch.Tensor] = {}

                def one(alpha=alpha, cost=cost, budget=budget, found=found) -> None:
                    found.update(project(alpha, cost, [budget]))

                times.append(seconds(one))
                shares.append(float(cost.macs(found)) / budget.limit)
        detail = f"{len(shares)} budgets, median {1e3 * statistics.median(times):.0f} ms each"
        figures.append(Figure(f"budget taken up at most, {name}", max(shares), 1.0, "x", detail))
        figures.append(Figure(f"budget left over, {name}", 1 - min(shares), 1 - LEAST, "x"))
    return figures
