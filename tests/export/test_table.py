"""The table of predictions, by value: columns, cells, names that mean something to others."""

import csv
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gatesearch.cli.predict import predict
from gatesearch.errors import DataError, UsageError
from gatesearch.export import Card, Model
from gatesearch.export.table import PREDICTIONS, PredictionTable
from gatesearch.tasks import build_task

TASKS = {
    "room": build_task(
        "classification", {"classes": 3, "class_names": ["bath", "=bed", 'a "b", c']}, where="t"
    ),
    "face": build_task("attributes", {"names": ["Smiling", "Young"]}, where="t"),
    "bald": build_task("attributes", {}, where="t"),
    "age": build_task("regression", {"unit": "years"}, where="t"),
    "size": build_task("regression", {"names": ["w", "h"], "unit": "cm"}, where="t"),
    "plain": build_task("regression", {"count": 2}, where="t"),
    "pose": build_task("keypoints", {"names": ["nose"]}, where="t"),
    "depth": build_task("depth", {}, where="t"),
}  # fmt: skip
VALUES = {
    "room": [0.25, 0.5, 0.25],
    "face": [0.1, 0.9],
    "bald": [1 / 3],
    "age": [34.2],
    "size": [-1.5, np.nan],
    "plain": [1e20, 0.0],
    # x = 0 is the middle between pixels 3 and 4 of 8; y = -1 the upper border.
    "pose": [[0.0, -1.0, 0.75]],
    "depth": [[1.0]],
}
HEADS = [
    "image", "room", "room.bath", "room.=bed", 'room.a "b", c', "face.Smiling", "face.Young",
    "bald", "age (years)", "size.w (cm)", "size.h (cm)", "plain.0", "plain.1", "pose.nose.x",
    "pose.nose.y", "pose.nose.score",
]  # fmt: skip
ROW = [
    "'=bed", "0.25", "0.5", "0.25", "0.1", "0.9", "0.33333334", "34.2", "-1.5", "", "1e+20", "0.0",
    "3.5", "-0.5", "0.75",
]  # fmt: skip


def predicted() -> dict[str, np.ndarray]:
    return {name: np.array(values, np.float32) for name, values in VALUES.items()}


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_columns_and_cells(tmp_path) -> None:
    path = tmp_path / PREDICTIONS
    with PredictionTable(path, TASKS) as table:
        table.add(Path("a.png"), predicted(), (5, 8))
        assert not path.exists()
        assert table.close()
    assert read(path) == [HEADS, ["a.png", *ROW]]
    # Every cell gives the float32 back to the bit.
    cells = dict(zip(*read(path), strict=True))
    assert np.float32(cells["bald"]) == np.float32(1 / 3)
    assert path.read_bytes().count(b"\n") == 2
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS]


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("plain.jpg", "plain.jpg"), ("a,b.jpg", "a,b.jpg"), ('a"b.jpg', 'a"b.jpg'),
        ("a\nb\r.jpg", "a\nb\r.jpg"), ("=1+1.jpg", "./=1+1.jpg"), ("@x.jpg", "./@x.jpg"),
        ("-1.jpg", "./-1.jpg"), ("+1.jpg", "./+1.jpg"), ("\t=1.jpg", "./\t=1.jpg"),
        ("\n=1.jpg", "./\n=1.jpg"), ("\uff1d1.jpg", "./\uff1d1.jpg"),
        ("photos/=1.jpg", "photos/=1.jpg"), ("深度.jpg", "深度.jpg"), (" a.jpg", " a.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), "caf\\udce9.jpg"),
    ],
)  # fmt: skip
def test_names_of_images_are_kept_and_run_nothing(tmp_path, name, cell) -> None:
    path = tmp_path / PREDICTIONS
    with PredictionTable(path, {"age": TASKS["age"]}) as table:
        table.add(Path(name), predicted(), (1, 1))
        table.close()
    assert read(path) == [["image", "age (years)"], [cell, "34.2"]]


def test_numbers_below_zero_stay_numbers(tmp_path) -> None:
    with PredictionTable(tmp_path / PREDICTIONS, {"age": TASKS["age"]}) as table:
        table.add(Path("a"), {"age": np.array([-3.5], np.float32)}, (1, 1))
        table.close()
    assert read(tmp_path / PREDICTIONS)[1] == ["a", "-3.5"]


def test_a_task_named_like_a_formula(tmp_path) -> None:
    with PredictionTable(tmp_path / PREDICTIONS, {"-1": TASKS["age"]}) as table:
        table.add(Path("a"), {"-1": np.array([2], np.float32)}, (1, 1))
        table.close()
    assert read(tmp_path / PREDICTIONS)[0] == ["image", "'-1 (years)"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_earlier_table_stays_until_the_new_one_is_whole(tmp_path, error) -> None:
    path = tmp_path / PREDICTIONS
    path.write_text("earlier")

    def write() -> None:
        with PredictionTable(path, TASKS) as table:
            table.add(Path("a.png"), predicted(), (5, 8))
            assert path.read_text() == "earlier"
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == [PREDICTIONS]


def test_without_images_or_columns_there_is_no_table(tmp_path) -> None:
    with PredictionTable(tmp_path / PREDICTIONS, TASKS) as table:
        assert not table.close()
    with PredictionTable(tmp_path / PREDICTIONS, {"depth": TASKS["depth"]}) as table:
        table.add(Path("a.png"), predicted(), (5, 8))
        assert not table.close()
    assert list(tmp_path.iterdir()) == []


def test_many_images_need_no_more_memory(tmp_path) -> None:
    values = predicted()
    with PredictionTable(tmp_path / PREDICTIONS, TASKS) as table:
        table.add(Path("a.png"), values, (5, 8))
        tracemalloc.start()
        for i in range(5000):
            table.add(Path(f"{i}.png"), values, (5, 8))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        table.close()
    assert len(read(tmp_path / PREDICTIONS)) == 5002
    assert peak < 200_000  # the table is of 500,000 bytes
    assert (tmp_path / PREDICTIONS).stat().st_size > 400_000


class TestCommand:
    """`gatesearch predict` with a network whose outputs are known."""

    @pytest.fixture
    def photos(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        for name in ("a.png", "b.jpg"):
            Image.new("RGB", (8, 5), (90, 90, 90)).save(folder / name)
        return folder

    def network(self, monkeypatch, *names):
        outputs = {
            "age": [[2.0]],
            "pose": np.pad(np.ones((1, 1, 1, 1)), ((0, 0), (0, 0), (2, 2), (3, 4))),
        }
        scaled = {"mean": [30.0], "std": [2.5], "unit": "years"}
        cards = {
            "age": {"kind": "regression", "options": scaled},
            "pose": {"kind": "keypoints", "options": {"names": ["nose"]}},
        }  # fmt: skip
        about = {"classes": 1, "values": "x", "metric": "m", "measured": {}}
        card = Card(
            study="s", fingerprint="f", protocol="p", network="n", size=(5, 8), gflops=1.0,
            params_m=1.0, tasks={name: cards[name] | about for name in names},
        )  # fmt: skip
        model = Model(card, lambda image: [np.array(outputs[n], np.float32) for n in names])
        monkeypatch.setattr("gatesearch.export.read_model", lambda path: model)

    def test_values_are_told_in_their_unit(self, photos, tmp_path, monkeypatch, capsys) -> None:
        self.network(monkeypatch, "age", "pose")
        predict(Path("n.onnx"), photos, tmp_path / "out")
        rows = read(tmp_path / "out" / PREDICTIONS)
        heads = ["image", "age (years)", "pose.nose.x", "pose.nose.y", "pose.nose.score"]
        assert rows[0] == heads
        # 2 standard deviations of 2.5 years above 30; the highest pixel is at column 3, row 2.
        assert rows[1] == [str(photos / "a.png"), "35.0", "3.0", "2.0", "1.0"]
        assert [row[0] for row in rows[1:]] == [str(photos / "a.png"), str(photos / "b.jpg")]
        with Image.open(tmp_path / "out" / "a.pose.png") as picture:
            drawn = np.asarray(picture)
        assert drawn.shape == (5, 8, 3)
        assert tuple(drawn[2, 3]) != (90, 90, 90)
        names = {"a.pose.png", "b.pose.png", PREDICTIONS}
        assert {path.name for path in (tmp_path / "out").iterdir()} == names
        assert str(tmp_path / "out" / PREDICTIONS) in capsys.readouterr().out

    def test_broken_images_have_no_row_and_a_line_each(self, photos, tmp_path, monkeypatch) -> None:
        self.network(monkeypatch, "age")
        (photos / "c.png").write_text("no image")
        with pytest.raises(DataError, match=r"^[^\n]*c\.png must be an image[^\n]*$"):
            predict(Path("n.onnx"), photos, tmp_path / "out")
        assert len(read(tmp_path / "out" / PREDICTIONS)) == 3

    def test_an_earlier_table_stays_if_no_image_can_be_read(
        self, photos, tmp_path, monkeypatch
    ) -> None:
        self.network(monkeypatch, "age")
        predict(Path("n.onnx"), photos, tmp_path / "out")
        before = (tmp_path / "out" / PREDICTIONS).read_bytes()
        for path in photos.iterdir():
            path.write_text("no image")
        with pytest.raises(DataError):
            predict(Path("n.onnx"), photos, tmp_path / "out")
        assert (tmp_path / "out" / PREDICTIONS).read_bytes() == before

    def test_names_may_be_equal_but_for_the_ending_where_nothing_is_drawn(
        self, photos, tmp_path, monkeypatch
    ) -> None:
        Image.new("RGB", (8, 5)).save(photos / "a.jpg")
        self.network(monkeypatch, "age")
        predict(Path("n.onnx"), photos, tmp_path / "out")
        assert len(read(tmp_path / "out" / PREDICTIONS)) == 4
        self.network(monkeypatch, "pose")
        with pytest.raises(DataError, match="whose pictures would have the same name"):
            predict(Path("n.onnx"), photos, tmp_path / "out")

    def test_the_table_does_not_replace_an_image(self, tmp_path, monkeypatch) -> None:
        Image.new("RGB", (8, 5)).save(tmp_path / PREDICTIONS, "PNG")
        before = (tmp_path / PREDICTIONS).read_bytes()
        self.network(monkeypatch, "age")
        with pytest.raises(UsageError, match="the table must not replace an image"):
            predict(Path("n.onnx"), tmp_path / PREDICTIONS, tmp_path)
        assert (tmp_path / PREDICTIONS).read_bytes() == before

    def test_a_table_that_cannot_be_written_is_one_line(
        self, photos, tmp_path, monkeypatch
    ) -> None:
        self.network(monkeypatch, "age")
        (tmp_path / "out" / PREDICTIONS).mkdir(parents=True)
        with pytest.raises(DataError, match=r"^cannot write [^\n]*predictions\.csv: [^\n]*$"):
            predict(Path("n.onnx"), photos, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == [PREDICTIONS]
