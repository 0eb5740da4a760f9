"""A tiny PASCAL_MT: images of differing sizes with random labels, or of given images."""

import warnings

import numpy as np
import scipy.io
from PIL import Image

SIZES = ((10, 16), (16, 12), (9, 9))
IDS = {
    "train": ("2008_000001", "2008_000002", "2008_000003"),
    "val": ("2009_000007", "2009_000008"),
}
PIECES = ("head", "torso", "luarm", "rlarm", "luleg", "rfoot")
FOLDERS = (
    "ImageSets/Context", "JPEGImages", "semseg/VOC12", "semseg/pascal-context", "human_parts",
    "normals_distill", "sal_distill", "pascal-context/trainval",
)  # fmt: skip


def save_mat(path, **values):
    """Write a compressed MAT-file, by an independent writer."""
    with warnings.catch_warnings(action="ignore"):
        scipy.io.savemat(path, values, do_compression=True)


def structures(items):
    """An array of structures, as MATLAB has them, 1 x N."""
    fields = [(name, object) for name in items[0]]
    array = np.zeros((1, len(items)), fields)
    for index, item in enumerate(items):
        for name, value in item.items():
            array[0, index][name] = value
    return array


def annotation(objects):
    """The content of a file of parts.

    Args:
        objects: (class, mask, {piece: mask}) of each.
    """
    return {
        "imname": "made up",
        "objects": structures(
            [
                {
                    "class": "person" if kind == 15 else "cow",
                    "class_ind": float(kind),
                    "mask": mask.astype(np.uint8),
                    "parts": structures(
                        [
                            {"part_name": name, "mask": piece.astype(np.uint8)}
                            for name, piece in pieces.items()
                        ]
                    )
                    if pieces
                    else np.zeros((0, 0)),
                }
                for kind, mask, pieces in objects
            ]
        ),
    }


def raw_frame(number, size):
    """Random labels; every second frame has a person with parts."""
    rng = np.random.default_rng(number)
    piece = {name: rng.random(size) < 0.1 for name in PIECES}
    whole = np.ones(size, bool)
    return {
        "image": np.full((*size, 3), rng.integers(0, 256, 3), np.uint8),
        "semseg": rng.choice(np.array([*range(21), 255], np.uint8), size),
        "context": rng.choice(np.array([2, 25, 59, 284, 360]), size).astype(np.uint16),
        "normals": rng.integers(0, 256, (*size, 3), np.uint8),
        "saliency": rng.integers(0, 256, size, np.uint8),
        "objects": [(15, whole, piece), (10, whole, {})] if number % 2 else [(10, whole, {})],
    }


def write_frame(root, name, frame, *, voc):
    """Write the files of one frame."""
    Image.fromarray(frame["image"]).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    folder = "VOC12" if voc else "pascal-context"
    Image.fromarray(frame["semseg"]).save(root / "semseg" / folder / f"{name}.png")
    Image.fromarray(frame["normals"]).save(root / "normals_distill" / f"{name}.png")
    Image.fromarray(frame["saliency"]).save(root / "sal_distill" / f"{name}.png")
    save_mat(root / "pascal-context" / "trainval" / f"{name}.mat", LabelMap=frame["context"])
    save_mat(root / "human_parts" / f"{name}.mat", anno=annotation(frame["objects"]))


def write_pascal(root, frames=None):
    """Write a tree; of random frames, or of those given, id -> frame of `raw_frame`'s form."""
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for split, names in IDS.items():
        (root / "ImageSets" / "Context" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            number = int(name[-1])
            frame = (frames or {}).get(name) or raw_frame(number, SIZES[number % len(SIZES)])
            write_frame(root, name, frame, voc=number % 2 == 1)
    return root
