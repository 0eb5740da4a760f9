"""Time of a supernet's training step against T+1 plain encoder steps and T heads' steps."""

from benchmarks.figure import Figure, in_turns
from benchmarks.networks import PlainSteps, SupernetStep, full_width_study, image_batch
from gatesearch.training import resolve_runtime

BAR = 1.15
ROUNDS = 5


def measure() -> list[Figure]:
    study = full_width_study()
    figures = []
    for precision in ("fp32", "bf16"):
        runtime = resolve_runtime(precision, "nhwc")
        image = image_batch(study, runtime)
        ours = SupernetStep.of(study, image, runtime)
        plain = PlainSteps.of(study, image, runtime)
        ratio, a, b = in_turns(ours, plain.one_by_one, rounds=ROUNDS)
        detail = f"{a:.2f} s against {b:.2f} s"
        figures.append(Figure(f"step time, {precision}", ratio, BAR, "x", detail))
    return figures
