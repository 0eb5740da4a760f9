"""Images and frames at another size: the one rule of resampling.

`gatesearch data prepare --size` and a study that reads a pack at another size both come here, so
that they give the same frames. How labels are resized is for their task to say.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.datasets.pack_reader import IMAGE, IMAGE_STORAGE, Frame
from gatesearch.errors import DataError
from gatesearch.tasks import Task
from gatesearch.tasks.labels import to_array, to_tensor


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W), uint8, at another size: bilinear with anti-aliasing."""
    resized = F.interpolate(
        image.float(), size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return resized.round().clamp(0, 255).to(torch.uint8)


def resize_frame(frame: Frame, size: tuple[int, int], tasks: Mapping[str, Task]) -> Frame:
    """A frame at another size: what a study of that size reads from a pack of the whole frame.

    Args:
        frame: Field -> values of one frame.
        size: Height and width in pixels.
        tasks: Field of labels -> its task.
    """
    if frame[IMAGE].shape[:2] == size:
        return frame
    return {field: resize_field(tasks.get(field), array, size) for field, array in frame.items()}


def frames_of_one_size(
    frames: Iterable[tuple[str, Frame]],
    size: tuple[int, int] | None,
    tasks: Mapping[str, Task],
    *,
    where: str,
) -> Iterator[Frame]:
    """Resize the frames of a split, or see to it that all have the same size.

    Args:
        frames: (id, frame) of each.
        size: Height and width in pixels; None keeps the size that they have.
        tasks: Field of labels -> its task.
        where: The data set, for the error.

    Raises:
        DataError: No size is given, and a frame has another one than the first.
    """
    first: tuple[str, tuple[int, ...]] | None = None
    for name, frame in frames:
        found = frame[IMAGE].shape[:2]
        first = first or (name, found)
        if size is not None:
            yield resize_frame(frame, size, tasks)
        elif found == first[1]:
            yield frame
        else:
            raise DataError(
                f"{where}: all frames of a split must have one size, {first[0]} has "
                f"{first[1][0]} x {first[1][1]}, {name} has {found[0]} x {found[1]}; name one "
                "with --size H W, or get the release again"
            )


def resize_field(task: Task | None, array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """Resize the labels of a task, or the image without one."""
    storage = IMAGE_STORAGE if task is None else task.storage
    if not storage.dense:
        return array
    # Rounded first as a pack stores it: a study resizes what it reads from there.
    tensor = to_tensor(np.array(array, dtype=storage.dtype)[None])
    resize = resize_image if task is None else task.resize_labels
    resized: NDArray[Any] = to_array(resize(tensor, size))[0]
    return resized
