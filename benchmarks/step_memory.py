"""Peak memory of a supernet's training step against T+1 plain encoders and T heads at once.

Compared is the highest sum of live bytes that torch's allocator handed out during a step beyond
those alive before it (activations, gradients, temporaries; parameters and optimizer state are the
same on both sides). Resident memory would also count freed memory that the C library has not given
back, and so depend on what the process did before.
"""

from collections.abc import Callable

import torch

from benchmarks.figure import Figure
from benchmarks.networks import PlainSteps, SupernetStep, full_width_study, image_batch
from gatesearch.training import resolve_runtime

BAR = 1.2


def measure() -> list[Figure]:
    study = full_width_study()
    figures = []
    for precision in ("fp32", "bf16"):
        runtime = resolve_runtime(precision, "nhwc")
        image = image_batch(study, runtime)
        ours = peak_bytes(SupernetStep.of(study, image, runtime))
        theirs = peak_bytes(PlainSteps.of(study, image, runtime).together)
        detail = f"{ours / 2**30:.2f} GiB against {theirs / 2**30:.2f} GiB"
        figures.append(Figure(f"step memory, {precision}", ours / theirs, BAR, "x", detail))
    return figures


def peak_bytes(step: Callable[[], None]) -> int:
    """Highest sum of bytes allocated during a step beyond what was alive before it."""
    step()  # makes the optimizer's state
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    peak = live = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
