"""A tiny NYUD-v2, written in both public layouts."""

import io
import tarfile
import zipfile

import numpy as np
from PIL import Image

SIZE = (6, 8)
IDS = {"train": ("0005", "12", "7"), "val": ("0001", "3")}


def raw_frame(number):
    """Random labels as the 13-class set has them: raw label 0 = ignore, 1..13."""
    rng = np.random.default_rng(number)
    normals = rng.standard_normal((*SIZE, 3)).astype(np.float32)
    normals[..., 2] = -np.abs(normals[..., 2])
    return {
        "image": np.full((*SIZE, 3), rng.integers(0, 256, 3), np.uint8),
        "label": rng.integers(0, 14, SIZE).astype(np.uint8),
        "depth": rng.uniform(0.5, 9, SIZE).astype(np.float32),
        "normal": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def write_nyud_mt(root, *, edges=False):
    for name in ("images", "segmentation", "depth", "normals", "gt_sets"):
        (root / name).mkdir(parents=True, exist_ok=True)
    if edges:
        (root / "edge").mkdir(exist_ok=True)
    for split, ids in IDS.items():
        (root / "gt_sets" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        for name in ids:
            frame = raw_frame(int(name))
            Image.fromarray(frame["image"]).save(root / "images" / f"{name}.jpg", quality=95)
            Image.fromarray(frame["label"]).save(root / "segmentation" / f"{name}.png")
            np.save(root / "depth" / f"{name}.npy", frame["depth"])
            np.save(root / "normals" / f"{name}.npy", frame["normal"])
            if edges:
                np.save(root / "edge" / f"{name}.npy", (frame["label"] == 1).astype(np.uint8))
    return root


def write_mtan(root):
    for split, ids in IDS.items():
        for name in ("image", "label", "depth", "normal"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
        for i, number in enumerate(ids):
            frame = raw_frame(int(number))
            # The picture as nyud_mt's JPEG gives it back, so that both layouts hold the same.
            coded = io.BytesIO()
            Image.fromarray(frame["image"]).save(coded, "JPEG", quality=95)
            image = np.asarray(Image.open(coded), np.float32) / 255
            np.save(root / split / "image" / f"{i}.npy", image)
            np.save(root / split / "label" / f"{i}.npy", frame["label"].astype(np.float32) - 1)
            np.save(root / split / "depth" / f"{i}.npy", frame["depth"][..., None])
            np.save(root / split / "normal" / f"{i}.npy", frame["normal"].astype(np.float64))
    return root


WRITERS = {"nyud_mt": write_nyud_mt, "mtan": write_mtan}


def packed(folder, path):
    """The folder as an archive, under its own name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for file in sorted(folder.rglob("*")):
                zipped.write(file, f"{folder.name}/{file.relative_to(folder)}")
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
            tar.add(folder, folder.name)
    return path
