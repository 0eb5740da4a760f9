"""The data set `pack`: a pack that exists already, such as one that `gatesearch.pack` made."""

import os
from pathlib import Path

from pydantic import Field

from gatesearch.datasets.dataset import Dataset, PackRequest
from gatesearch.datasets.pack_manifest import MANIFEST
from gatesearch.errors import UsageError
from gatesearch.events import Emit
from gatesearch.strict import Strict
from gatesearch.study.validation import validated

_CURE = (
    "Write a pack with Python: gatesearch.pack(dataset, tasks, to=FOLDER), and name it by "
    "data.path, relative to the study's file or to --data"
)


class PackOptions(Strict):
    """Keys of `[data]`.

    Attributes:
        path: Folder of the pack, relative to the study's file, else to the folder of packs.
    """

    path: str = Field(min_length=1)


def _pack_name(request: PackRequest) -> str:
    """Return the path of the pack; it is relative if it is to be found in the folder of packs."""
    if request.study is None:
        raise UsageError(f"packs are named by studies. {_CURE}")
    study = request.study
    options: PackOptions = validated(
        PackOptions, study.data.further, where=f"study {study.name}, data"
    )
    path = Path(options.path).expanduser()
    if study.folder is not None:
        beside = study.folder / path
        if (beside / MANIFEST).is_file():
            return os.path.abspath(beside)
    return str(path)


def _prepare(*, folder: Path, source: Path | None, request: PackRequest, emit: Emit) -> Path:
    del folder, source, request, emit
    raise UsageError(f"packs are prepared already. {_CURE}")


def _info() -> str:
    return """pack: a pack that exists already, of any images and labels.

Write it   import gatesearch as gs
           gs.pack(dataset, {"TASK": {"kind": "semseg", "classes": 7}}, to="my-pack", test=0.2)
           of a torch Dataset, a Hugging Face Dataset, a WebDataset, or any iterable of dicts
Name it    [data]
           dataset = "pack"
           path = "my-pack"       relative to the study's file, else to --data"""


DATASET = Dataset(
    name="pack",
    summary="a pack that exists already, such as one made by gatesearch.pack",
    automatic=False,
    info=_info,
    pack_name=_pack_name,
    prepare=_prepare,
    options=PackOptions,
    made_by=_CURE,
)
