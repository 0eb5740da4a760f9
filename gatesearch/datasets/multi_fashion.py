"""Multi-Fashion: two garments of Fashion-MNIST overlapped in one image, and a label for each.

    {train,t10k}-images-idx3-ubyte[.gz]   60,000 and 10,000 grey images of 28 x 28
    {train,t10k}-labels-idx1-ubyte[.gz]   their classes, 0 to 9

After the data set of Lin et al. (Pareto Multi-Task Learning, NeurIPS 2019), made of Fashion-MNIST
(Xiao, Rasul, Vollgraf, 2017): one garment lies to the upper left of 36 x 36 pixels, another one to
the lower right, and a pixel has the brighter of both. Theirs is a file of pairs drawn once; here
pairs are drawn anew, each garment once on either side, so that figures are not comparable.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.frame_size import resize_frame
from gatesearch.datasets.gunzip import Gunzip
from gatesearch.datasets.image_files import read_user_file
from gatesearch.datasets.label_checks import GET_AGAIN
from gatesearch.datasets.pack_manifest import Frame, SplitName
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.release import (
    folders_of,
    notes_on_counts,
    open_release,
    unknown_layout,
)
from gatesearch.datasets.spread import spread_evenly
from gatesearch.errors import DataError
from gatesearch.events import Emit
from gatesearch.files import MIB
from gatesearch.tasks import Task, build_task, named_classes

CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SIDES = ("upper_left", "lower_right")
SIDE, CANVAS = 28, 36  # pixels
OFFICIAL: dict[SplitName, int] = {"train": 60_000, "test": 10_000}
_PREFIX: dict[SplitName, str] = {"train": "train", "test": "t10k"}
_KINDS = ("images-idx3", "labels-idx1")
_SEED = 20190
_LARGEST = 64 * MIB  # of a file, whole or unpacked


def pairs(count: int, split: SplitName) -> NDArray[np.int64]:
    """Draw which garment lies to the lower right of each one of a split, (count,).

    Each lies there once, and nearly none over itself.
    """
    rng = np.random.default_rng([_SEED, list(OFFICIAL).index(split)])
    return rng.permutation(count)


def overlap(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay an image (28, 28) to the upper left and one to the lower right; grey (36, 36, 3)."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    canvas[:SIDE, :SIDE] = first
    canvas[-SIDE:, -SIDE:] = np.maximum(canvas[-SIDE:, -SIDE:], second)
    return np.repeat(canvas[..., None], 3, -1)


def read_idx(path: Path, *, axes: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, compressed or not, with so many axes.

    The format: two zeros, the type (8 for bytes), the number of axes, the length of each in four
    bytes with the highest first, then the values.

    Raises:
        DataError: It cannot be read, is damaged, or holds something else.
    """
    data = read_user_file(path, limit=_LARGEST)
    if data[:2] == b"\x1f\x8b":
        try:
            data = BufferedReader(Gunzip(BytesIO(data))).read(_LARGEST)
        except (zlib.error, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}); {GET_AGAIN}") from error
    begin = 4 + 4 * axes
    shape = tuple(np.frombuffer(data[4:begin].ljust(4 * axes, b"\0"), ">u4").tolist())
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) - begin != math.prod(shape):
        raise DataError(
            f"{path} must be an IDX file of bytes with {axes} axes and as many values as these "
            f"say, found {len(data)} bytes that begin with {data[:4].hex() or 'nothing'}; "
            f"{GET_AGAIN}"
        )
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _find(root: Path) -> dict[SplitName, tuple[Path, Path]]:
    """Find the files of images and labels of both splits, in a folder or one below it."""
    for folder in folders_of(root):
        files = {
            (split, kind): path
            for split, prefix in _PREFIX.items()
            for kind in _KINDS
            for suffix in ("-ubyte", "-ubyte.gz")
            if (path := folder / f"{prefix}-{kind}{suffix}").is_file()
        }
        if len(files) == len(_PREFIX) * len(_KINDS):
            return {split: (files[split, _KINDS[0]], files[split, _KINDS[1]]) for split in _PREFIX}
    raise unknown_layout(
        root,
        dataset="multi-fashion",
        title="Fashion-MNIST",
        expected="train-images-idx3-ubyte.gz and three more",
    )


def _read(images: Path, labels: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read the garments (N, 28, 28) and classes (N,) of a split."""
    garments, classes = read_idx(images, axes=3), read_idx(labels, axes=1)
    if garments.shape[1:] != (SIDE, SIDE) or not len(garments):
        raise DataError(f"{images} must hold images of 28 x 28, found {garments.shape}")
    if len(classes) != len(garments) or classes.max() >= len(CLASSES):
        raise DataError(
            f"{labels} must hold a class from 0 to 9 for each of {len(garments)} images, found "
            f"{len(classes)} up to {classes.max(initial=0)}; {GET_AGAIN}"
        )
    return garments, classes


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    with open_release(
        source, dataset="multi-fashion", folder=folder, request=request, emit=emit
    ) as root:
        files = _find(root)
        asked: dict[SplitName, int] = {"train": request.train_frames, "test": request.test_frames}
        size, tasks = request.size or (CANVAS, CANVAS), _tasks()
        splits, counts = {}, {}
        for split, paths in files.items():
            garments, classes = _read(*paths)
            counts[split] = len(garments)
            chosen = spread_evenly(range(len(garments)), asked[split])
            splits[split] = SplitFrames(
                [f"{split}-{index:05d}" for index in chosen],
                _frames(garments, classes, split, chosen, size, tasks),
            )
        return write_pack(
            folder / "multi-fashion",
            dataset="multi-fashion",
            size=size,
            fields=tasks,
            splits=splits,
            source=f"pairs of Fashion-MNIST, seed {_SEED}",
            notes=notes_on_counts(counts, OFFICIAL),
            emit=emit,
        )


def _frames(
    garments: NDArray[np.uint8],
    classes: NDArray[np.uint8],
    split: SplitName,
    chosen: Sequence[int],
    size: tuple[int, int],
    tasks: dict[str, Task],
) -> Iterator[Frame]:
    partners = pairs(len(garments), split)
    for index in chosen:
        both = (index, int(partners[index]))
        labels = {
            side: np.array(classes[garment], np.int16)
            for side, garment in zip(SIDES, both, strict=True)
        }
        image = overlap(garments[both[0]], garments[both[1]])
        yield resize_frame({"image": image, **labels}, size, tasks)


def _tasks() -> dict[str, Task]:
    options: dict[str, Any] = named_classes(CLASSES)
    return {side: build_task("classification", options, where="multi-fashion") for side in SIDES}


def _info() -> str:
    return f"""multi-fashion: two garments of Fashion-MNIST overlapped in 36x36 pixels
      (Lin et al., NeurIPS 2019; Fashion-MNIST: Xiao, Rasul, Vollgraf, 2017, MIT licence).

Frames   {OFFICIAL["train"]} to train and {OFFICIAL["test"]} to test, from images of the same part
Labels   upper_left and lower_right, the class of either garment (10 classes)
Layout   read from a folder or a .tgz, .tar.gz, .tar or .zip of it, up to one folder deep:
         {{train,t10k}}-images-idx3-ubyte.gz, {{train,t10k}}-labels-idx1-ubyte.gz, or both without
         .gz                                                               -> pack multi-fashion
Get it   github.com/zalandoresearch/fashion-mnist, or the Debian package dataset-fashion-mnist
Command  gatesearch data prepare multi-fashion --source PATH --data DIR
         (0.3 GB)"""


DATASET = Dataset(
    name="multi-fashion",
    summary="two garments of Fashion-MNIST in one image: the class of each (10)",
    automatic=False,
    info=_info,
    pack_name=lambda request: "multi-fashion",
    prepare=_prepare,
    class_names={(side, len(CLASSES)): CLASSES for side in SIDES},
)
