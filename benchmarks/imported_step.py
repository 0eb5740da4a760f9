"""Time of the supernet's training step on imported networks, against T+1 plain encoder steps.

ResNet-18 is also compared with the one of the package, whose graph it should have.
"""

import time

import torch

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.networks import PlainSteps, SupernetStep, full_width_study, image_batch
from gatesearch.study import Study
from gatesearch.training import resolve_runtime

BAR = 1.10
ROUNDS = 7
NETWORKS = ("timm:resnet18", "timm:convnext_atto", "timm:vit_tiny_patch16_224")


def measure() -> list[Figure]:
    torch.set_num_threads(1)  # processor time of one thread can be compared on a busy machine
    figures = []
    for precision in ("fp32", "bf16"):
        runtime = resolve_runtime(precision, "nhwc")
        for name in NETWORKS:
            study = imported_study(name)
            image = image_batch(study, runtime)
            ours = SupernetStep.of(study, image, runtime)
            plain = PlainSteps.of(study, image, runtime)
            ratio, a, b = in_turns(ours, plain.one_by_one, rounds=ROUNDS, clock=time.process_time)
            detail = f"{a:.2f} s against {b:.2f} s"
            figures.append(Figure(f"step of {name}, {precision}", ratio, BAR, "x", detail))
        imported = imported_study("timm:resnet18", output_stride=8)
        ours, theirs = (
            SupernetStep.of(study, image_batch(study, runtime), runtime)
            for study in (imported, full_width_study())
        )
        ratio, a, b = in_turns(ours, theirs, rounds=ROUNDS, clock=time.process_time)
        detail = f"{a:.2f} s against {b:.2f} s"
        figures.append(Figure(f"resnet18, imported or not, {precision}", ratio, 1.02, "x", detail))
    return figures


def imported_study(
    name: str,
    output_stride: int | str = "auto",
    size: tuple[int, int] = (96, 128),
    mix: str = "tasks",
) -> Study:
    """Three tasks, light heads."""
    changes = {
        "model.backbone": name,
        "model.width": 1.0,
        "model.output_stride": output_stride,
        "protocol.size": list(size),
        "protocol.name": "nyud-40",
        "interrogate.mix": mix,
    }
    return gs.load_study("nyud-small", [f"{key}={value}" for key, value in changes.items()])
