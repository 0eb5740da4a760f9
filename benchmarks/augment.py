"""Augmentation of a batch against the per-sample form that a data set of frames usually has.

That form is a plain rewrite of what LibMTL's NYUv2 data set does
(https://github.com/median-research-group/LibMTL, `examples/nyu/create_dataset.py`): a random window
of each frame is enlarged by `F.interpolate` and mirrored at random, and the samples are stacked.
Both sides begin with frames in memory and end with a batch. Only ours reads windows at fractions
of a pixel, and brings normals to length 1 again.

Changes of colours are measured against torchvision's `ColorJitter` per sample, in the faster of its
two forms.
"""

import random
import time

import torch
import torch.nn.functional as F
import torchvision.transforms.v2 as torchvision
from torch import Tensor

from benchmarks.figure import Figure, in_turns
from gatesearch.tasks import TASKS
from gatesearch.training.augment import augment
from gatesearch.training.colour import jitter

BAR = 1.0
ROUNDS = 31
FRAMES, SIZE, CLASSES = 8, (288, 384), 40
ZOOM = (1.0, 1.2, 1.5)
COLOUR = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def measure() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_warps(), _colours()]
    finally:
        torch.set_num_threads(threads)


def _warps() -> Figure:
    batch = _frames()
    tasks = {name: TASKS[name](classes=CLASSES) for name in batch if name != "image"}
    generator, draws = torch.Generator().manual_seed(0), random.Random(0)
    # Such a data set reads floating-point numbers with the channels last, but for the classes.
    image, normals = (
        batch[name].float().contiguous(memory_format=torch.channels_last)
        for name in ("image", "normals")
    )
    frames = list(zip(image, batch["semseg"], batch["depth"][:, None], normals, strict=True))

    def ours() -> object:
        return augment(
            batch, tasks, flip=True, zoom=ZOOM, scale=(1.0, 1.0), rotate=0.0, generator=generator
        )

    def per_sample() -> object:
        samples = [_sample(*frame, draws) for frame in frames]
        return [torch.stack(fields) for fields in zip(*samples, strict=True)]

    ratio, a, b = in_turns(ours, per_sample, rounds=ROUNDS, clock=time.process_time)
    detail = f"{1e3 * a:.1f} ms against {1e3 * b:.1f} ms of processor time, one thread"
    return Figure(f"augmenting {FRAMES} frames over per sample", ratio, BAR, "x", detail)


def _colours() -> Figure:
    image = _frames()["image"]
    generator, per_sample = torch.Generator().manual_seed(0), torchvision.ColorJitter(**COLOUR)
    ratio, a, b = in_turns(
        lambda: jitter(image, generator=generator, **COLOUR),
        lambda: torch.stack([per_sample(sample) for sample in image]),
        rounds=ROUNDS,
        clock=time.process_time,
    )
    detail = f"{1e3 * a:.1f} ms against {1e3 * b:.1f} ms of processor time, one thread"
    return Figure(f"colours of {FRAMES} frames over torchvision's", ratio, BAR, "x", detail)


def _frames() -> dict[str, Tensor]:
    """Random frames of the size of NYUD's, which cost the same as real ones."""
    generator = torch.Generator().manual_seed(0)
    shape = (FRAMES, *SIZE)
    normals = torch.randn((FRAMES, 3, *SIZE), generator=generator)
    return {
        "image": torch.randint(256, (FRAMES, 3, *SIZE), generator=generator, dtype=torch.uint8),
        "semseg": torch.randint(CLASSES, shape, generator=generator, dtype=torch.uint8),
        "depth": 0.5 + 9.5 * torch.rand(shape, generator=generator),
        "normals": F.normalize(normals, dim=1),
    }


def _sample(
    image: Tensor, semseg: Tensor, depth: Tensor, normals: Tensor, draws: random.Random
) -> tuple[Tensor, ...]:
    """Augment one frame: image and normals (3, H, W), classes (H, W), depth (1, H, W)."""
    zoom = draws.choice(ZOOM)
    height, width = SIZE
    rows, columns = int(height / zoom), int(width / zoom)
    top, left = draws.randint(0, height - rows), draws.randint(0, width - columns)

    def enlarged(planes: Tensor, mode: str) -> Tensor:
        window = planes[None, :, top : top + rows, left : left + columns]
        corners = True if mode == "bilinear" else None
        return F.interpolate(window, size=SIZE, mode=mode, align_corners=corners)[0]

    fields = [
        enlarged(image, "bilinear"),
        enlarged(semseg[None].float(), "nearest"),
        enlarged(depth, "nearest") / zoom,
        enlarged(normals, "bilinear"),
    ]
    if draws.random() < 0.5:
        fields = [planes.flip(-1) for planes in fields]
        fields[-1][0] = -fields[-1][0]
    return tuple(fields)
