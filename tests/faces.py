"""Tiny copies of CelebA and UTKFace, made of random images or of those given."""

import numpy as np
from PIL import Image

from gatesearch.datasets.celeba import ATTRIBUTES

PARTITION = {"000001.jpg": 0, "000002.jpg": 0, "000003.jpg": 0, "000004.jpg": 1, "000005.jpg": 2}


def attributes_of(name):
    """Forty values 1 or -1 of an image, the same for the same name."""
    rng = np.random.default_rng(int(name[:6]))
    return rng.choice([1, -1], len(ATTRIBUTES))


def face(seed, size=(218, 178)):
    """A random image, flat so that a JPEG keeps it."""
    return Image.new("RGB", size[::-1], tuple(np.random.default_rng(seed).integers(0, 256, 3)))


def celeba_lists(partition=PARTITION, *, csv=False):
    """Texts of the lists of attributes and parts."""
    if csv:
        head = ["image_id," + ",".join(ATTRIBUTES)]
        rows = [",".join(map(str, (name, *attributes_of(name)))) for name in partition]
        parts = ["image_id,partition", *(f"{name},{part}" for name, part in partition.items())]
        return "\n".join([*head, *rows]) + "\n", "\n".join(parts) + "\n"
    head = [str(len(partition)), " ".join(ATTRIBUTES) + " "]
    rows = [f"{name} " + " ".join(f"{v:2d}" for v in attributes_of(name)) for name in partition]
    parts = [f"{name} {part}" for name, part in partition.items()]
    return "\n".join([*head, *rows]) + "\n", "\n".join(parts) + "\n"


def write_celeba(root, *, partition=PARTITION, csv=False, images="img_align_celeba", anno=""):
    """Write a copy.

    Args:
        root: Where.
        partition: Image -> 0 train, 1 validation, 2 test.
        csv: Whether the lists are CSV, as those of Kaggle.
        images: Folder of the images.
        anno: Folder of the lists.
    """
    suffix = "csv" if csv else "txt"
    (root / images).mkdir(parents=True)
    (root / anno).mkdir(exist_ok=True)
    attributes, parts = celeba_lists(partition, csv=csv)
    (root / anno / f"list_attr_celeba.{suffix}").write_text(attributes)
    (root / anno / f"list_eval_partition.{suffix}").write_text(parts)
    for name in partition:
        face(int(name[:6])).save(root / images / name, quality=95)
    return root


UTKFACES = (
    "1_0_0_20161219140623097.jpg.chip.jpg", "24_0_1_20170116220224657 .jpg.chip.jpg",
    "26_1_2_20170104023102422.jpg.chip.jpg", "35_0_3_20170103200501766.jpg.chip.jpg",
    "39_1_20170116174525125.jpg.chip.jpg", "55_0_0_20170116232725357jpg.chip.jpg",
    "61_1_20170109142408075.jpg.chip.jpg", "61_1_20170109150557335.jpg.chip.jpg",
    "80_1_4_20170110131953974.jpg.chip.jpg", "110_1_4_20170110131953975.jpg",
)  # fmt: skip


def write_utkface(root, names=UTKFACES):
    """Write faces of some names."""
    root.mkdir(parents=True)
    for seed, name in enumerate(names):
        face(seed, (200, 200)).save(root / name, quality=95)
    return root
