"""Images per second of the same set: a pack with augmentation in batches, against files one by one.

The other side is what people write first: a map-style Dataset that opens a JPEG and a PNG with
Pillow, and crops, flips and normalises them with torchvision's transforms. Its files have the size
of the pack, so that it need not shrink them, or the size of photographs. Each side reads whole
epochs in turns, in one thread. Time is that of the processor: a DataLoader with two workers has at
most twice the images per second, on two cores.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import gatesearch as gs
from benchmarks.figure import Figure, in_turns
from benchmarks.preparing import write_sources
from gatesearch.datasets.label_checks import read_label_map, read_photo
from gatesearch.tasks import Task, build_task
from gatesearch.training import SplitData, block_shuffle, split_data
from gatesearch.training.augment import augment
from gatesearch.training.split_data import MEAN, STD, normalize

SIZE = (96, 128)
LARGER = (288, 384)
BATCH = 16
FRAMES = 256
CLASSES = 40
ROUNDS = 5
# Ours is to take at most a third of the time.
BAR = 1 / 3


class Files(Dataset[dict[str, torch.Tensor]]):
    """A photograph and a mask per sample, decoded and transformed one by one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(SIZE, scale=(0.44, 1.0), ratio=(4 / 3, 4 / 3)),
                v2.RandomHorizontalFlip(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return FRAMES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        photo = tv_tensors.Image(Image.open(self.folder / f"{index}.jpg").convert("RGB"))
        pixels = np.array(Image.open(self.folder / f"{index}.png"))
        mask = tv_tensors.Mask(torch.from_numpy(pixels))
        image, label = self.transform(photo, mask)
        return {"image": image, "mask": label}


def measure() -> list[Figure]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    figures = []
    for photos in (SIZE, LARGER):
        with tempfile.TemporaryDirectory() as folder:
            figures += _compare(Path(folder), photos)
    torch.set_num_threads(threads)
    return figures


def _compare(folder: Path, photos: tuple[int, int]) -> list[Figure]:
    write_sources(folder / "sources", photos, frames=FRAMES)
    files = Files(folder / "sources")
    samples = [
        {
            "image": read_photo(files.folder / f"{i}.jpg"),
            "mask": read_label_map(files.folder / f"{i}.png"),
        }
        for i in range(FRAMES)
    ]
    table = {"mask": {"kind": "semseg", "classes": CLASSES}}
    pack = gs.pack(samples, table, to=folder / "pack", test=samples[:1], size=SIZE)
    tasks = {"mask": build_task("semseg", {"classes": CLASSES}, where="benchmark")}

    def one_by_one() -> None:
        for index in range(FRAMES):
            files[index]

    figures = []
    for name, streamed in (("in memory", False), ("streamed", True)):
        with small_windows() if streamed else nullcontext():
            data = SplitData(pack, "train", indices=range(FRAMES), tasks=tasks, size=SIZE)
            epochs = _epochs(data, tasks)
            ratio, a, b = in_turns(
                lambda: next(epochs),  # noqa: B023
                one_by_one,
                rounds=ROUNDS,
                clock=time.process_time,
            )
        detail = f"{FRAMES / a:.0f} against {FRAMES / b:.0f} images/s a core"
        title = f"pack {name}, files of {photos[0]}x{photos[1]}"
        figures.append(Figure(title, ratio, BAR, "x", detail))
    return figures


def _epochs(data: SplitData, tasks: Mapping[str, Task]) -> Iterator[int]:
    """Read an epoch, augmented and normalised, and yield the number of its batches; again."""
    generator = torch.Generator().manual_seed(0)
    while True:
        count = 0
        for batch in data.shuffled(BATCH, generator):
            batch = augment(
                batch, tasks, generator=generator, flip=True, zoom=(1.0, 1.2, 1.5), rotate=0.0,
                scale=(1.0, 1.0),
            )  # fmt: skip
            normalize(batch["image"])
            count += 1
        yield count


@contextmanager
def small_windows() -> Iterator[None]:
    """Let a small set be streamed as a large one is, in windows of 8 MiB."""
    before = split_data.IN_MEMORY_BYTES, block_shuffle.WINDOW_BYTES, block_shuffle.BLOCK_BYTES
    split_data.IN_MEMORY_BYTES = 0
    block_shuffle.WINDOW_BYTES, block_shuffle.BLOCK_BYTES = 2**23, 2**20
    try:
        yield
    finally:
        split_data.IN_MEMORY_BYTES, block_shuffle.WINDOW_BYTES, block_shuffle.BLOCK_BYTES = before
