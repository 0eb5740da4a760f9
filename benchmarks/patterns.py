"""Cost of gate patterns by formula against fvcore's count of the extracted network."""

import torch

import gatesearch as gs
from benchmarks.figure import Figure
from gatesearch.cost import PatternCost
from gatesearch.models import GatedSupernet

PATTERNS = 500
STUDIES = ("scenes", "nyud-small")


def measure() -> list[Figure]:
    generator = torch.Generator().manual_seed(0)
    off, done = 0, 0
    cases = [(name, kind) for name in STUDIES for kind in ("conv", "block")]
    for name, kind in cases:
        study = gs.load_study(name, overrides=[f"interrogate.granularity={kind}"])
        shape = (1, 3, *study.protocol.size)
        supernet = gs.build_model(study, "interrogate")
        assert isinstance(supernet, GatedSupernet)
        cost = PatternCost.of(supernet, shape)
        for _ in range(PATTERNS // len(cases)):
            lean = float(torch.rand((), generator=generator))
            gates = {
                node: torch.rand(alpha.shape, generator=generator) < lean
                for node, alpha in supernet.logits().items()
            }
            supernet.set_gates(gates)
            counted = gs.count_macs(gs.extract(supernet), shape, cross_check=False)
            figures = (int(cost.macs(gates)), int(cost.params(gates)))
            off += figures != (counted.macs, counted.params)
            done += 1
    detail = f"{done} patterns, MACs and parameters, {', '.join(STUDIES)}, conv and block"
    return [Figure("patterns whose formula is not fvcore's count", off, 0, "", detail)]
