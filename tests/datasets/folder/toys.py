"""Small folders of images and labels, made on the spot."""

from pathlib import Path

import numpy as np
from PIL import Image

STUDY = """
name = "own"
[protocol]
name = "own"
size = [12, 16]
[tasks.things]
kind = "semseg"
classes = 3
label = "masks/{id}.png"
[data]
dataset = "folder"
images = "photos/*.png"
fractions = { validation = 0.2, test = 0.2 }
[model]
backbone = "resnet18"
width = 0.0625
output_stride = 32
head = "light"
head_channels = 8
[training]
epochs = 1
batch_size = 4
lr = 2e-3
memory_format = "nhwc"
precision = "fp32"
[search]
startup = 2
"""


def photo(height: int = 12, width: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    )


def mask(height: int = 12, width: int = 16, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 3, (height, width), np.uint8))


def make_folder(root: Path, count: int = 10, study: str = STUDY) -> Path:
    """Write photos f0, f1, ... with masks of three classes, and a study."""
    for name in ("photos", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photo(seed=i).save(root / "photos" / f"f{i}.png")
        mask(seed=i).save(root / "masks" / f"f{i}.png")
    (root / "own.toml").write_text(study)
    return root
