"""Data sets, each of which is prepared into a pack of memory-mapped arrays.

| file | content |
|---|---|
| `dataset.py` | what a data set is; `ensure_pack` opens the pack of a study |
| `pack_reader.py` | the pack on disk: open, check, read |
| `pack_manifest.py` | what a manifest holds; fields and splits |
| `array_file.py` | maps .npy files into memory |
| `pack_writer.py` | writes packs |
| `frame_files.py` | the files of a split, into which frames are written in any order |
| `frame_journal.py` | which frames of an unfinished pack are written |
| `frame_pool.py` | makes frames in several processes |
| `frame_faults.py` | frames that cannot be made |
| `pack_samples.py` | packs of any torch Dataset or iterable of dicts |
| `sample_sources.py` | such a data set as frames that are read by their number |
| `samples.py` | one sample, a dict, as a frame of a pack |
| `ready_pack.py` | the data set `pack`: a pack that exists already |
| `spread.py` | chooses some of many frames |
| `scratch.py` | folders that are written beside their place and moved into it when whole |
| `exchange.py` | swaps two folders in one step |
| `free_space.py` | looks at the free space of a disk |
| `frame_size.py` | images and frames at another size |
| `scenes.py` | rooms rendered on demand, with exact labels |
| `scene_layout.py` | draws the rooms of `scenes` |
| `raycast.py` | the geometry of `scenes` |
| `nyud.py` | NYU Depth v2 from its two public layouts |
| `pascal.py` | PASCAL-Context with five tasks |
| `celeba.py` | CelebA with forty attributes |
| `utkface.py` | UTKFace with age, gender and race |
| `multi_fashion.py` | two garments of Fashion-MNIST in one image |
| `release.py` | opens releases: folders, archives, official lists |
| `image_files.py` | reads image files from untrusted sources: formats, sizes, broken metadata |
| `orientation.py` | turns images upright as their EXIF orientation says |
| `label_checks.py` | checks files of a release and converts them to the pack's encodings |
| `mat_file.py` | reads MATLAB's files of version 5 |
| `edges.py` | edges of a label map |
| `folder/` | a folder of a user's own images and labels |
| `faults.py` | what is wrong with a user's files, as one table |
| `thinning.py` | thins regions to lines |
| `archives.py` | unpacks archives from untrusted sources |
| `tar_stream.py`, `gunzip.py` | read tar and gzip within bounds |
"""

from gatesearch.datasets import (
    celeba,
    folder,
    multi_fashion,
    nyud,
    pascal,
    ready_pack,
    scenes,
    utkface,
)
from gatesearch.datasets.dataset import Dataset, PackRequest, ensure_pack
from gatesearch.datasets.pack_reader import Pack, check_pack, open_pack

DATASETS: dict[str, Dataset] = {
    module.DATASET.name: module.DATASET
    for module in (scenes, nyud, pascal, celeba, utkface, multi_fashion, folder, ready_pack)
}

__all__ = ["DATASETS", "Dataset", "Pack", "PackRequest", "check_pack", "ensure_pack", "open_pack"]
