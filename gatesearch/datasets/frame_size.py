"""Images and frames at another size: the one rule of resampling.

`gatesearch data prepare --size` and a study that reads a pack at another size both come here, so
that they give the same frames. How labels are resized is for their task to say.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gatesearch.datasets.pack_manifest import IMAGE, IMAGE_STORAGE, Frame
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


@dataclass(frozen=True)
class SizedFrames:
    """Frames of a split by number, all of one size, which any process can read.

    Attributes:
        read: Number -> frame as its files have it; picklable.
        ids: Id of each frame.
        size: Height and width to which frames are resized; None to keep theirs.
        first: Id, height and width of a frame, whose size all must have if it is kept.
        tasks: Field of labels -> its task.
        where: The data set, for the error.
    """

    read: Callable[[int], Frame]
    ids: Sequence[str]
    size: tuple[int, int] | None
    first: tuple[str, tuple[int, int]]
    tasks: Mapping[str, Task]
    where: str

    def __call__(self, index: int) -> Frame:
        """Read a frame.

        Raises:
            DataError: It cannot be read, or no size is given and it has another one.
        """
        frame = self.read(index)
        if self.size is not None:
            return resize_frame(frame, self.size, self.tasks)
        found, (first, size) = frame[IMAGE].shape[:2], self.first
        if found != size:
            raise DataError(
                f"{self.where}: all frames must have one size, {first} has {size[0]} x {size[1]}, "
                f"{self.ids[index]} has {found[0]} x {found[1]}; name one with --size H W, or get "
                "the release again"
            )
        return frame


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
