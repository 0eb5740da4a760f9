"""How labels are encoded and stored, and helpers that several kinds of task share."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from gatesearch.tasks.task import Task

# Label of a pixel that loss and metric ignore, where labels are classes or 0 and 1.
IGNORE = 255

# Class indices per image are stored as 16-bit integers.
MOST_CLASSES = 2**15 - 1

Size = tuple[int, int]  # height and width, pixels

_MOST_SHOWN = 5  # values in an error


@dataclass(frozen=True)
class Storage:
    """How a pack stores one field of its frames.

    Attributes:
        dtype: Element type as NumPy spells it, with its byte order.
        channels: Shape of what each pixel has, or each image if the field is not dense.
        dense: Whether the field has values per pixel, so that (H, W) come before `channels`.
    """

    dtype: str
    channels: tuple[int, ...] = ()
    dense: bool = True

    def shape(self, size: Size) -> tuple[int, ...]:
        """Shape of one frame's values at a size of the image, in pixels."""
        return (*size, *self.channels) if self.dense else self.channels


def to_tensor(stored: NDArray[Any]) -> Tensor:
    """A pack's field as a tensor: pixels' channels before (H, W); halves as float32.

    (N, H, W, C) becomes (N, C, H, W), all else keeps its shape.
    """
    return contiguous(channels_first(stored))


def channels_first(stored: NDArray[Any]) -> Tensor:
    """What `to_tensor` returns, but as the field lies in memory, and in its own element type."""
    tensor = torch.from_numpy(np.ascontiguousarray(stored))
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def contiguous(stored: Tensor) -> Tensor:
    """Turn what `channels_first` returns into what `to_tensor` returns, in one pass."""
    return stored.to(tensor_type(stored), memory_format=torch.contiguous_format)


def tensor_type(stored: Tensor) -> torch.dtype:
    """The element type that a field has in batches."""
    return torch.float32 if stored.dtype == torch.float16 else stored.dtype


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The inverse of `to_tensor` for a tensor on the processor."""
    channels_last = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return np.asarray(channels_last.contiguous().numpy())


def labelled_frames(target: Tensor, unknown_value: float) -> Tensor:
    """Which frames have any label, (B,) bool.

    Args:
        target: (B, ...) labels in the encoding of a task.
        unknown_value: The task's value of what is not known.
    """
    known = target.isfinite() if target.is_floating_point() else torch.ones_like(target).bool()
    if not math.isnan(unknown_value):
        known = known & (target != unknown_value)
    return known.flatten(1).any(1) if target.ndim > 1 else known


def unknown_labels(task: "Task", frames: int, size: tuple[int, int]) -> NDArray[Any]:
    """Labels of frames that have none, as a pack stores them.

    Args:
        task: Their task.
        frames: Number of frames.
        size: Height and width of the frames, pixels.
    """
    shape = (frames, *task.storage.shape(size))
    return np.full(shape, task.unknown_value, task.storage.dtype)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask`; 0 with zero gradient where nothing is masked in."""
    weights = mask.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)


def nearest_resize(target: Tensor, size: Size) -> Tensor:
    """Nearest-neighbour resize of (B, H, W), exact for integer labels below 2^24."""
    resized = F.interpolate(target[:, None].float(), size=size, mode="nearest-exact")
    return resized[:, 0].to(target.dtype)


def constant(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor of the type and on the device of another, copied there once.

    No graph of CUDA may copy them while it is recorded.
    """
    return _constant(values, like.dtype, like.device)


@functools.cache
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def plane(raw: NDArray[Any]) -> NDArray[Any]:
    """A label of one channel as (H, W).

    Raises:
        ValueError: It has another shape.
    """
    flat = raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw
    if flat.ndim != 2:
        raise ValueError(f"must have one value per pixel, found the shape {raw.shape}")
    return flat


def encode_values(raw: NDArray[Any], codes: dict[int, int], *, what: str) -> NDArray[np.uint8]:
    """Replace stored values by those of the pack.

    Args:
        raw: Numbers of any shape.
        codes: Stored value -> value in the pack, 0..255.
        what: Rule for the error, as "values must be 0 to 4, or 255 where there is no label".

    Raises:
        ValueError: There are other values; says which, and of how many pixels.
    """
    if raw.dtype.kind in "bu" and raw.dtype.itemsize <= 2:
        # Few values are possible: counted without sorting, which takes most of the time.
        inverse = raw.astype(np.uint16) if raw.dtype.kind == "b" else raw
        counts = np.bincount(inverse.reshape(-1))
        values = np.arange(len(counts))
    else:
        values, inverse, counts = np.unique(raw, return_inverse=True, return_counts=True)
    wrong = [i for i, value in enumerate(values.tolist()) if counts[i] and value not in codes]
    if wrong:
        shown = ", ".join(f"{values[i]:g} ({counts[i]} pixels)" for i in wrong[:_MOST_SHOWN])
        more = f" and {len(wrong) - _MOST_SHOWN} more" if len(wrong) > _MOST_SHOWN else ""
        raise ValueError(f"{what}, found {shown}{more}")
    table = np.array([codes.get(value, 0) for value in values.tolist()], np.uint8)
    return np.asarray(table[inverse].reshape(raw.shape))


def encode_classes(
    raw: NDArray[Any], *, classes: int, values: Sequence[int], ignore: int
) -> NDArray[np.uint8]:
    """Convert a mask to class indices, 255 where ignored, (H, W).

    Args:
        raw: Numbers, (H, W).
        classes: Number of classes.
        values: Value of each class in the file; 0, 1, 2 ... if empty.
        ignore: Value of pixels without a label, unless it is that of a class.

    Raises:
        ValueError: There are other values.
    """
    of_class = values or tuple(range(classes))
    codes = {ignore: IGNORE} | {value: index for index, value in enumerate(of_class)}
    listed = ", ".join(map(str, values)) if values else f"0 to {classes - 1}"
    rule = f"values must be {listed}" + (
        "" if ignore in of_class else f", or {ignore} where there is no label"
    )
    return encode_values(plane(raw), codes, what=rule)


def encode_binary(
    raw: NDArray[Any], *, positive: int, ignore: int, threshold: float | None
) -> NDArray[np.uint8]:
    """Convert a mask to 0 and 1, 255 where ignored, (H, W).

    Args:
        raw: Numbers, (H, W).
        positive: Value that becomes 1; 0 stays 0.
        ignore: Value of pixels without a label, unless it is one of these two.
        threshold: When given, values of at least this become 1 and all others 0.

    Raises:
        ValueError: There are other values.
    """
    mask = plane(raw)
    if threshold is not None:
        if not np.isfinite(mask).all():
            raise ValueError("values must be finite, found one that is not")
        return (mask >= threshold).astype(np.uint8)
    codes = {ignore: IGNORE} | {0: 0, positive: 1}
    rule = f"values must be 0 or {positive}"
    if ignore not in (0, positive):
        rule += f", or {ignore} where there is no label"
    return encode_values(mask, codes, what=rule)
