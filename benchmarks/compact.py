"""Latency of compact networks against their FLOPs, both as ratios to the single-task networks.

The single-task networks are timed as they are trained, and once more as `gatesearch export` writes
them: as a compact network.

A random share of all gates is on, the pattern that extraction can simplify least. It is measured as
drawn, with channels rounded to multiples of 8 (`interrogate.round_to`), and with the same number of
gates per layer aligned between tasks (`interrogate.align`).
"""

from functools import partial

import torch

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.networks import full_width_study
from gatesearch.cost import align_tasks, rounded
from gatesearch.models import GatedSupernet
from gatesearch.training import resolve_runtime
from gatesearch.trials.kept_networks import as_compact

BAR = 1.10
SHAPE = (1, 3, 288, 384)
ROUNDS = 9
SHARES = (0.25, 0.5, 0.75)
LAYOUTS = {"random": (1, False), "by 8": (8, False), "aligned": (1, True)}


def measure() -> list[Figure]:
    study = full_width_study()
    supernet = gs.build_model(study, "interrogate")
    assert isinstance(supernet, GatedSupernet)
    stl = gs.build_model(study, "stl").eval()
    shipped = as_compact(stl, "stl", study)
    whole = gs.count_macs(stl, SHAPE).macs
    figures = []
    for share in SHARES:
        for layout, (multiple, align) in LAYOUTS.items():
            supernet.set_gates(some_on(supernet, share, multiple=multiple, align=align))
            compact = gs.extract(supernet)
            flops = gs.count_macs(compact, SHAPE).macs / whole
            for memory_format in ("nchw", "nhwc"):
                runtime = resolve_runtime("fp32", memory_format)
                image = runtime.image(torch.randn(SHAPE))
                for network in (compact, stl, shipped):
                    runtime.place(network)
                with torch.inference_mode():
                    ours, theirs = partial(compact, image), partial(stl, image)
                    ratio, a, b = in_turns(ours, theirs, rounds=ROUNDS)
                    other, _, _ = in_turns(ours, partial(shipped, image), rounds=ROUNDS)
                detail = (
                    f"{1e3 * a:.0f} ms / {1e3 * b:.0f} ms = {ratio:.3f}, FLOPs {flops:.3f}; "
                    f"against STL as it ships {other / flops:.3f}"
                )
                name = f"compact latency, {share:g} on, {layout}, {memory_format}"
                figures.append(Figure(name, ratio / flops, BAR, "x", detail))
    return figures


def some_on(
    supernet: GatedSupernet, share: float, *, multiple: int, align: bool
) -> dict[str, torch.Tensor]:
    """Gated node -> (T, C) bool with a random share of each row on."""
    generator = torch.Generator().manual_seed(0)
    alpha = {}
    for name, gates in supernet.hard_gates().items():
        rank = torch.rand(gates.shape, generator=generator).argsort(1)
        alpha[name] = share * rank.shape[1] - rank.double()
    if align:
        alpha = align_tasks(alpha, supernet.graph)
    return rounded({name: a > 0 for name, a in alpha.items()}, alpha, multiple=multiple)
