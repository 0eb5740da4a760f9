"""Budgets of latency: the latency of a network cut inside one, measured again by a new process."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import gatesearch as gs
from benchmarks.figure import Figure
from gatesearch.cost import Budget, PatternCost, fit_latency, median_latency
from gatesearch.models import GatedSupernet
from gatesearch.pruning import save_compact
from gatesearch.search.setup import start_stopwatch

BAR = 1.05
BUDGETS = 10
STUDY = "nyud-small"

# A new process loads the network and measures it as `run` does.
AGAIN = """
import json, sys
from pathlib import Path
from gatesearch.cost import median_latency
from gatesearch.pruning import load_compact
from gatesearch.training import Runtime
stem, shape, runtime = sys.argv[1], *map(json.loads, sys.argv[2:])
print(median_latency(load_compact(Path(stem)), tuple(shape), Runtime(*runtime)))
"""


def measure() -> list[Figure]:
    study = gs.load_study(STUDY)
    shape = (1, 3, *study.protocol.size)
    stopwatch = start_stopwatch(study, "cpu")
    supernet = gs.build_model(study, "interrogate")
    assert isinstance(supernet, GatedSupernet)
    cost = PatternCost.of(supernet, shape, latency=stopwatch.table)
    generator = torch.Generator().manual_seed(0)
    least, most = stopwatch.table.ends
    again, taken = [], []
    for _ in range(BUDGETS):
        share = float(torch.rand((), generator=generator))
        limit = least + (0.05 + 0.9 * share) * (most - least)
        alpha = {
            name: torch.randn(a.shape, generator=generator) for name, a in supernet.logits().items()
        }

        def seconds(gates: dict[str, torch.Tensor]) -> float:
            supernet.set_gates(gates)
            return median_latency(gs.extract(supernet), shape, stopwatch.runtime)

        gates = fit_latency(alpha, cost, [Budget("", "latency", limit)], measure=seconds)
        taken.append(seconds(gates) / limit)
        again.append(_in_new_process(supernet, gates, shape, stopwatch.runtime) / limit)
    detail = f"{BUDGETS} budgets of {1e3 * least:.1f} to {1e3 * most:.1f} ms, {STUDY}; median "
    detail += f"{statistics.median(again):.3f}, least {min(again):.3f}"
    return [Figure("latency in a new process over budget", max(again), BAR, "x", detail)]


def _in_new_process(supernet, gates, shape, runtime) -> float:
    supernet.set_gates(gates)
    with tempfile.TemporaryDirectory() as folder:
        stem = Path(folder) / "network"
        save_compact(gs.extract(supernet), stem)
        threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
        plain = [runtime.device, runtime.precision, runtime.memory_format]
        command = [sys.executable, "-c", threads + AGAIN, str(stem), json.dumps(shape)]
        done = subprocess.run(
            [*command, json.dumps(plain)], check=True, capture_output=True, text=True
        )
    return float(done.stdout)
