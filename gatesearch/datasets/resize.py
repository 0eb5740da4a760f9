"""Frames at another size, in the pack's encodings."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatesearch.datasets.label_checks import Array, unit


def resize(frame: dict[str, Array], size: tuple[int, int]) -> dict[str, Array]:
    """A frame at another size, each field by the rule that keeps its meaning.

    Image: Lanczos, antialiased. Labels and depth: the nearest pixel, nothing mixed. Normals:
    antialiased bilinear, made unit again, unknown where the nearest pixel is. Edges: 1 where any
    covered pixel is.
    """
    height, width = size
    if frame["image"].shape[:2] == size:
        return frame
    picture = Image.fromarray(frame["image"]).resize((width, height), Image.Resampling.LANCZOS)
    rows, columns = (
        _centres(old, new) for old, new in zip(frame["image"].shape, size, strict=False)
    )
    nearest = np.ix_(rows, columns)
    smooth = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(frame["normals"][..., i])).resize(
                    (width, height), Image.Resampling.BILINEAR
                )
            )
            for i in range(3)
        ],
        axis=-1,
    )
    known = frame["normals"][nearest].any(-1, keepdims=True)
    return {
        "image": np.asarray(picture),
        "semseg": frame["semseg"][nearest],
        "depth": frame["depth"][nearest],
        "normals": unit(smooth) * known,
        "edges": _any_pixel(_any_pixel(frame["edges"], height, axis=0), width, axis=1),
    }


def _centres(old: int, new: int) -> NDArray[np.intp]:
    return ((np.arange(new) + 0.5) * old / new).astype(np.intp)


def _any_pixel(edges: Array, new: int, *, axis: int) -> Array:
    old = edges.shape[axis]
    if new >= old:
        return edges.take(_centres(old, new), axis)
    starts = np.arange(new) * old // new
    covered: Array = np.maximum.reduceat(edges, starts, axis)
    return covered
