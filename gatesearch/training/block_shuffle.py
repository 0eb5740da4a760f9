"""The random order of frames that are too many for memory: blocks, then frames within windows.

Reading frames from a disk one by one at random is many times slower than reading blocks of some
MiB. So blocks of frames that lie side by side are drawn in random order, and the frames of each
window of several blocks are shuffled.

How good that is, for W blocks per window: every order of the blocks is equally likely, so the place
of a frame in an epoch is not correlated with its place in the file. Two frames that follow each
other come from the same block with a probability of about 1 / W, where a full shuffle has one over
the number of all blocks. With the defaults W is 64, so a batch of 16 holds frames of some 14
blocks, and even of a file that is sorted by class each window is a sample of 64 places of it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Bytes that are read at a time, and those of a window; two windows are in memory at once.
BLOCK_BYTES = 4 * 2**20
WINDOW_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Window:
    """Frames that are read together.

    Attributes:
        blocks: Positions of the frames, ascending within each block.
        order: (n,) places in the blocks one after the other, in the order of the epoch.
    """

    blocks: tuple[Tensor, ...]
    order: Tensor

    def __len__(self) -> int:
        return len(self.order)


def window_sizes(frame_bytes: int) -> tuple[int, int]:
    """Choose the frames per block and the blocks per window."""
    block = max(1, BLOCK_BYTES // frame_bytes)
    return block, max(2, WINDOW_BYTES // (block * frame_bytes))


def draw_windows(
    frames: int, *, block: int, window: int, generator: torch.Generator
) -> list[Window]:
    """Draw the order of an epoch, which depends on the state of the generator alone.

    Args:
        frames: Number of frames.
        block: Frames per block; the last may have fewer.
        window: Blocks per window; the last may have fewer.
        generator: Draws the order.
    """
    blocks = torch.arange(frames).split(block)
    order = torch.randperm(len(blocks), generator=generator).tolist()
    windows = []
    for start in range(0, len(order), window):
        chosen = tuple(blocks[i] for i in order[start : start + window])
        count = sum(map(len, chosen))
        windows.append(Window(chosen, torch.randperm(count, generator=generator)))
    return windows
