"""Frames of every release can be read by other processes: what reads them travels whole."""

import importlib
import pickle

import numpy as np
import pytest

from gatesearch.datasets import DATASETS, PackRequest
from gatesearch.datasets.pack_writer import NotedFrame
from tests.faces import write_celeba, write_utkface
from tests.nyud_layouts import write_nyud_mt
from tests.pascal_tree import write_pascal

WRITERS = {
    "nyud": write_nyud_mt,
    "pascal": write_pascal,
    "celeba": write_celeba,
    "utkface": write_utkface,
}


def frame_of(reader, index):
    made = reader(index)
    return made.frame if isinstance(made, NotedFrame) else made


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("size", [None, (16, 12)])
def test_readers_of_frames_travel_to_other_processes(tmp_path, monkeypatch, name, size) -> None:
    given = {}

    def write(folder, **options):
        given.update(options)
        return folder

    monkeypatch.setattr(importlib.import_module(f"gatesearch.datasets.{name}"), "write_pack", write)
    DATASETS[name].prepare(
        folder=tmp_path / "data",
        source=WRITERS[name](tmp_path / "release"),
        request=PackRequest(size),
        emit=lambda event: None,
    )
    assert given["identity"]  # so that a preparation that was killed goes on
    for split in given["splits"].values():
        again = pickle.loads(pickle.dumps(split.frames))
        for index in range(len(split.ids)):
            here, there = frame_of(split.frames, index), frame_of(again, index)
            assert here.keys() == there.keys()
            for field in here:
                np.testing.assert_array_equal(here[field], there[field])
