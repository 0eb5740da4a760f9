"""The data set `folder`: a user's own images and labels, without any code.

| file | content |
|---|---|
| `prepare.py` | makes the pack, tells whether files have changed since |
| `options.py` | what a study says of its folder |
| `listing.py` | which frames there are, where their labels lie, in which part each is |
| `images.py`, `labels.py`, `parts.py` | find images, labels; assign parts |
| `findings.py` | gathers faults and files while a folder is listed |
| `patterns.py` | patterns of file names, and ids |
| `tables.py` | CSV and Parquet |
| `image_lists.py` | lists of ids or image paths |
| `splits.py` | draws parts by shares, with groups kept together |
| `frame.py` | reads one frame |
| `photos.py`, `label_files.py` | read images, labels |
| `fit.py` | stretches, crops or pads frames |
| `check.py` | reads all files and gathers their faults |
| `guess.py` | guesses kind, classes and unit of labels |
| `draft.py` | writes a study from files, for `gatesearch new` |
"""

from gatesearch.datasets.folder.prepare import DATASET

__all__ = ["DATASET"]
