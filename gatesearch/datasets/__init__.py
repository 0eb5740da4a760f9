"""Data sets, each of which becomes a pack of memory-mapped arrays (see `pack`).

| file | what |
|---|---|
| `dataset.py` | what a data set is; `ensure_pack` opens the pack of a study |
| `pack.py` | the pack on disk: write, open, check |
| `scenes.py` | rooms rendered on the spot, with exact labels |
| `raycast.py` | the geometry under `scenes` |
| `nyud.py` | NYU Depth v2 from its two public layouts |
| `archives.py` | unpacking archives that nobody vouches for |
"""

from gatesearch.datasets import nyud, scenes
from gatesearch.datasets.dataset import Dataset, ensure_pack
from gatesearch.datasets.pack_reader import Pack, check_pack, open_pack

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in (scenes.DATASET, nyud.DATASET)}

__all__ = ["DATASETS", "Dataset", "Pack", "check_pack", "ensure_pack", "open_pack"]
