"""A pack of four made-up frames."""

import numpy as np

from gatesearch.datasets.pack_writer import SplitFrames, write_pack

SIZE = (3, 4)


def frame(number):
    rng = np.random.default_rng(number)
    normals = rng.standard_normal((*SIZE, 3))
    return {
        "image": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "semseg": rng.integers(0, 5, SIZE, np.uint8),
        "depth": rng.uniform(0, 5, SIZE).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def write(folder, *, frames=frame, train=3, emit=lambda event: None, notes=(), test=None):
    return write_pack(
        folder,
        dataset="toy",
        size=SIZE,
        classes={"semseg": 5},
        splits={
            "train": SplitFrames(
                [f"a{i}" for i in range(train)], (frames(i) for i in range(train))
            ),
            "test": SplitFrames(["b0"], iter([frame(100) | (test or {})])),
        },
        source="made up",
        notes=notes,
        emit=emit,
    )
