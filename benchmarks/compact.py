"""Latency of a compact network against its FLOPs, both as ratios to the single-task networks.

Half of all gates are on, at random: exactly half the channels of each layer and task, which is the
layout that extraction can tidy up least.
"""

from functools import partial

import torch

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.networks import full_width_study
from gatesearch.models import InterroGate
from gatesearch.training import resolve_runtime

BAR = 1.15
SHAPE = (1, 3, 288, 384)
ROUNDS = 9


def measure() -> list[Figure]:
    study = full_width_study()
    supernet = gs.build_model(study, "interrogate")
    assert isinstance(supernet, InterroGate)
    supernet.set_gates(half_on(supernet))
    compact, stl = gs.extract(supernet), gs.build_model(study, "stl").eval()
    flops = gs.count_macs(compact, SHAPE).macs / gs.count_macs(stl, SHAPE).macs
    figures = []
    for memory_format in ("nchw", "nhwc"):
        runtime = resolve_runtime("fp32", memory_format)
        image = runtime.image(torch.randn(SHAPE))
        runtime.place(compact), runtime.place(stl)
        with torch.inference_mode():
            ratio, a, b = in_turns(partial(compact, image), partial(stl, image), rounds=ROUNDS)
        detail = f"{1e3 * a:.0f} ms / {1e3 * b:.0f} ms = {ratio:.3f}, FLOPs {flops:.3f}"
        name = f"compact latency over FLOPs, fp32 {memory_format}"
        figures.append(Figure(name, ratio / flops, BAR, "x", detail))
    return figures


def half_on(supernet: InterroGate) -> dict[str, torch.Tensor]:
    """Gated node -> (T, C) bool with a random half of each row on."""
    generator = torch.Generator().manual_seed(0)
    patterns = {}
    for name, gates in supernet.hard_gates().items():
        ranks = torch.rand(gates.shape, generator=generator).argsort(1)
        patterns[name] = ranks < gates.shape[1] // 2
    return patterns
