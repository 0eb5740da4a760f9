"""Predictions for the report are drawn once, and anew where their file was damaged."""

import os
from dataclasses import replace

import numpy as np
import pytest

from gatesearch.methods import NetworkSpec, build_model
from gatesearch.results import Result
from gatesearch.search.predictions import draw_predictions
from gatesearch.store.predictions import read_predictions
from gatesearch.trials.context import open_context
from gatesearch.trials.kept_networks import keep_network
from tests.search.tiny import ignore, tiny


@pytest.fixture
def drawn(tmp_path, data):
    """(function that draws, the file)."""
    study = tiny(tmp_path)
    context = open_context(study, data=data, stored=None, emit=ignore)
    mtl = Result("mtl", 0)
    files = keep_network(build_model(study, "mtl"), NetworkSpec.of(mtl).folder(tmp_path))
    mtl = replace(mtl, files=files)

    def draw() -> None:
        draw_predictions([mtl], context, out=tmp_path)

    draw()
    return draw, tmp_path / "predictions.npz"


HARMS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "empty": lambda path: path.write_bytes(b""),
    "objects": lambda path: np.savez(path, image=np.array([print], object)),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
}


def flipped(data: bytes) -> bytes:
    """Change a compressed value of the first array."""
    return data[:300] + bytes([data[300] ^ 255]) + data[301:]


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_drawn_anew(drawn, harm) -> None:
    draw, path = drawn
    before = read_predictions(path)
    assert before.keys() == {
        "image", "seed", "truth.semseg", "truth.depth", "mtl.semseg", "mtl.depth",
    }  # fmt: skip
    HARMS[harm](path)
    draw()
    after = read_predictions(path)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_what_is_there_is_not_drawn_again(drawn, monkeypatch) -> None:
    draw, path = drawn
    monkeypatch.setattr("gatesearch.search.predictions.predict", lambda *a, **k: 1 / 0)
    draw()
    path.unlink()
    with pytest.raises(ZeroDivisionError):
        draw()
