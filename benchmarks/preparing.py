"""Images per second that one core prepares: JPEG photographs and PNG masks of 288x384 into a pack.

Photographs are smooth noise with some grain, which compress as real ones do (about 60 KiB each);
masks are blocks of classes. Time is that of the processor, so that other processes do not decide.
"""

import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.figure import Figure
from gatesearch.datasets.frame_size import resize_frame
from gatesearch.datasets.label_checks import read_label_map, read_photo
from gatesearch.datasets.pack_manifest import Frame
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.tasks import Task, build_task

SIZE = (288, 384)
LARGER = (480, 640)
FRAMES = 200
CLASSES = 40
BAR = 150.0


@dataclass(frozen=True)
class Reader:
    """Reads a photograph and its mask."""

    folder: Path
    task: Task

    def __call__(self, index: int) -> Frame:
        """Make the frame of a number."""
        frame = {
            "image": read_photo(self.folder / f"{index}.jpg"),
            "mask": self.task.encode(read_label_map(self.folder / f"{index}.png")),
        }
        return resize_frame(frame, SIZE, {"mask": self.task})


def measure() -> list[Figure]:
    figures = []
    for size, bar in ((SIZE, 1 / BAR), (LARGER, None)):
        with tempfile.TemporaryDirectory() as folder:
            sources = Path(folder) / "sources"
            write_sources(sources, size)
            taken = prepare(sources, Path(folder) / "pack")
            decoding = decode(sources)
        name = f"preparing from {size[0]}x{size[1]}, a frame"
        detail = f"{1 / taken:.0f} images/s a core; decoding alone {1 / decoding:.0f}"
        # A figure is met below its bar, so the time of a frame stands for images per second.
        bar_ms = None if bar is None else 1e3 * bar
        figures.append(Figure(name, 1e3 * taken, bar_ms, "ms", detail))
    return figures


def write_sources(folder: Path, size: tuple[int, int], *, frames: int = FRAMES) -> None:
    folder.mkdir()
    random = np.random.default_rng(0)
    height, width = size
    for index in range(frames):
        coarse = random.integers(0, 256, (9, 12, 3), np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        photo = (smooth + random.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f"{index}.jpg", quality=90)
        blocks = random.integers(0, CLASSES, (12, 16), np.uint8)
        mask = np.repeat(np.repeat(blocks, height // 12, 0), width // 16, 1)
        Image.fromarray(mask).save(folder / f"{index}.png")


def prepare(sources: Path, pack: Path) -> float:
    """Seconds of the processor per frame, of a whole preparation in one process."""
    task = build_task("semseg", {"classes": CLASSES}, where="benchmark")
    reader = Reader(sources, task)
    counts = {"train": FRAMES - 20, "test": 20}
    splits = {
        "train": SplitFrames([str(i) for i in range(counts["train"])], reader),
        "test": SplitFrames(
            [str(i) for i in range(20)], partial(_shifted, reader, start=counts["train"])
        ),
    }
    started = time.process_time()
    write_pack(
        pack, dataset="benchmark", size=SIZE, fields={"mask": task}, splits=splits,
        source="made up", identity="benchmark", processes=1, emit=lambda event: None,
    )  # fmt: skip
    return (time.process_time() - started) / FRAMES


def _shifted(reader: Reader, index: int, *, start: int) -> Frame:
    return reader(start + index)


def decode(sources: Path) -> float:
    """Seconds of the processor per frame that Pillow takes to decode both files."""
    started = time.process_time()
    for index in range(FRAMES):
        for name in (f"{index}.jpg", f"{index}.png"):
            np.asarray(Image.open(sources / name))
    return (time.process_time() - started) / FRAMES
