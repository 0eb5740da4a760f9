"""A user's own files from `new` to a report: the commands of docs/own-data.md, as they stand."""

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.end_to_end

PAGE = ROOT / "docs" / "own-data.md"
COLOURS = ("red", "green", "blue")


def make_files(folder: Path) -> None:
    """Make what the page describes: coloured squares, their masks, and a table."""
    rng = np.random.default_rng(0)
    for name in ("photos", "masks"):
        (folder / name).mkdir()
    rows = []
    for i in range(60):
        colour = i % 3
        image = rng.integers(0, 80, (48, 64, 3), np.uint8)
        classes = np.zeros((48, 64), np.uint8)
        y, x, side = rng.integers(5, 30), rng.integers(5, 40), rng.integers(6, 16)
        image[y : y + side, x : x + side, colour] += 150
        classes[y : y + side, x : x + side] = colour + 1
        classes[:2] = 255
        Image.fromarray(image).save(folder / f"photos/im{i:03}.jpg")
        Image.fromarray(classes).save(folder / f"masks/im{i:03}.png")
        rows.append((f"im{i:03}.jpg", COLOURS[colour], side * 1.5 + i / 100))
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "colour", "size"), *rows])


def test_the_commands_of_the_page(cli, tmp_path):
    make_files(tmp_path)
    blocks = re.findall(r"```(sh|text)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    printed = ""
    ran = []
    for language, block in blocks[1:]:  # the first lists the files
        if language == "text":
            for line in block.splitlines():
                assert line in printed
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            assert program == "gatesearch"
            if words[0] == "run":
                words += ["--json", "--methods", "stl,mtl"]
            done = cli(*words)
            assert done.code == 0, done.stderr
            printed = done.stdout
            ran.append(words[0])
            if words[0] == "run":
                told = done.json
    assert ran == ["new", "data", "run", "data", "data"]
    assert told["trials"]["complete"] == 1
    assert {row["method"] for row in told["baselines"]} == {"stl", "mtl"}
    assert set(told["baselines"][0]["metrics"]) == {"shape", "colour", "size"}
    assert (tmp_path / told["report"]).is_file()
