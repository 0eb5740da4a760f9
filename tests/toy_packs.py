"""Packs of a few random frames, for tests of data sets and of training."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.tasks import build_task

Frame = Mapping[str, np.ndarray]


def toy_frame(number: int, *, size: tuple[int, int], classes: int) -> dict[str, np.ndarray]:
    """A random frame with unlabelled pixels, the same for the same number."""
    rng = np.random.default_rng(number)
    normals = rng.standard_normal((*size, 3))
    depth = rng.uniform(0.5, 5, size).astype(np.float32)
    depth[0, 0] = 0
    return {
        "image": rng.integers(0, 256, (*size, 3), np.uint8),
        "semseg": rng.choice(np.array([*range(classes), 255], np.uint8), size),
        "depth": depth,
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
        "edges": rng.integers(0, 2, size, np.uint8),
    }


def write_toy_pack(
    folder: Path,
    *,
    size: tuple[int, int],
    classes: int,
    frame: Callable[[int], Frame],
    train: int,
    test: Sequence[Frame],
    **options,
) -> Path:
    """Write a pack.

    Args:
        folder: Where.
        size: Height and width of the frames.
        classes: Of `semseg`.
        frame: Number -> frame of the training part.
        train: Frames of the training part.
        test: Frames of the test part.
        options: Of `write_pack`.
    """
    return write_pack(
        folder,
        dataset="toy",
        size=size,
        fields={
            name: build_task(name, {"classes": classes if name == "semseg" else 1}, where="toy")
            for name in test[0]
            if name != "image"
        },
        splits={
            "train": SplitFrames([f"a{i}" for i in range(train)], map(frame, range(train))),
            "test": SplitFrames([f"b{i}" for i in range(len(test))], iter(test)),
        },
        source="made up",
        **{"emit": lambda event: None, **options},
    )
