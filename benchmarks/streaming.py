"""A set of 20 GB, which no memory holds, streamed in shuffled blocks: peak memory and speed.

Its files are sparse: they take no space on the disk, and reading them costs what it costs to copy
them from the system's cache. A process of its own reads part of an epoch and part of the set in
order, so that its peak is that of nothing else.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure
from gatesearch.datasets.frame_files import array_header

BAR_GIB = 2.0
GIGABYTES = 20.0
FRAMES = 10_000

STREAM = """
import re, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from gatesearch.datasets import open_pack
from gatesearch.tasks import build_task
from gatesearch.training import SplitData
pack = open_pack(Path(sys.argv[1]))
tasks = {"mask": build_task("semseg", {"classes": 2}, where="toy")}
data = SplitData(pack, "train", indices=range(pack.frames("train")), tasks=tasks, size=pack.size)
count, started = 0, time.perf_counter()
for batch in data.shuffled(16, torch.Generator().manual_seed(0)):
    count += len(batch["image"])
    if count >= int(sys.argv[2]):
        break
seconds = time.perf_counter() - started
for batch in data.in_order(16, int(sys.argv[2])):
    pass
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = Path("/proc/self/status")
if status.exists():  # on Linux, ru_maxrss starts with the peak of the process that started this one
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1])
print(count, peak / 2**20, seconds)
"""


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        pack = sparse_pack(Path(folder) / "sparse")
        command = [sys.executable, "-c", STREAM, str(pack), str(FRAMES)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, gib, taken = map(float, done.stdout.split())
    detail = f"of {GIGABYTES:g} GB; {count / taken:.0f} frames/s of 288x384 in random order"
    return [Figure("streaming, peak memory", gib, BAR_GIB, "GiB", detail)]


def sparse_pack(
    folder: Path, *, gigabytes: float = GIGABYTES, size: tuple[int, int] = (288, 384)
) -> Path:
    """A pack of zeros that takes no space on the disk."""
    per_frame = size[0] * size[1] * 4
    counts = {"train": int(gigabytes * 1e9) // per_frame, "test": 1}
    shapes = {"image": (3,), "mask": ()}
    splits = {}
    for split, frames in counts.items():
        (folder / split).mkdir(parents=True)
        files = {}
        for field, channels in shapes.items():
            shape = (frames, *size, *channels)
            header = array_header("|u1", shape)
            path = folder / split / f"{field}.npy"
            path.write_bytes(header)
            os.truncate(path, len(header) + int(np.prod(shape)))
            sha256 = hashlib.sha256(header).hexdigest()  # not that of the file
            files[field] = {"sha256": sha256, "dtype": "|u1", "shape": shape}
        splits[split] = {
            "frames": frames, "ids": [str(i) for i in range(frames)], "files": files,
            "labelled": {"mask": frames},
        }  # fmt: skip
    fields = {
        "image": {"kind": "", "dtype": "|u1", "shape": [3]},
        "mask": {"kind": "semseg", "dtype": "|u1", "shape": [], "classes": 2},
    }
    manifest = {
        "format": 2, "dataset": "toy", "pack": "sparse", "size": size, "fields": fields,
        "splits": splits, "source": "zeros",
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
