"""`gatesearch new` on 10,000 photographs with masks, the start of Python included.

The files are links to one photograph and one mask, so that making them takes no time; `new` lists
all of them and looks into a sample.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.preparing import SIZE, write_sources

FILES = 10_000
BAR = 10.0


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder / "one", SIZE, frames=1)
        for kind, suffix in (("photos", "jpg"), ("masks", "png")):
            (folder / kind).mkdir()
            for i in range(FILES):
                link = folder / kind / f"{i}.{suffix}"
                link.hardlink_to(folder / "one" / f"0.{suffix}")
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "gatesearch", "new", "many", "--images", "photos/*.jpg",
             "--label", "shape=masks/{id}.png", "--to", "many.toml"],
            cwd=folder, check=True, capture_output=True,
        )  # fmt: skip
        taken = time.perf_counter() - started
    return [Figure(f"new on {FILES:,} photographs and masks", taken, BAR, "s")]
