"""A dense task beside tasks of whole images, from a run to a table of predictions elsewhere."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from gatesearch.datasets import DATASETS, PackRequest
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.export import Shipped, read_model
from gatesearch.export.shipped import choose
from gatesearch.store.opening import read_store
from gatesearch.store.predictions import read_predictions
from gatesearch.study import Study, load_study
from gatesearch.tasks import build_tasks
from gatesearch.trials.kept_networks import as_compact, kept_network
from tests.end_to_end.conftest import CommandLine

pytestmark = pytest.mark.end_to_end

ROOMS = ("bath", "=bed", "living, dining")
TOML = """
name = "mixed"
methods = ["stl", "mtl"]
report_frames = 2
protocol = { name = "mixed-16", size = [16, 24] }
tasks.semseg = { kind = "semseg", classes = 13 }
tasks.age = { kind = "regression", unit = "years" }
tasks.room = { kind = "classification", class_names = ROOMS }
data = { dataset = "nyud", validation = 6 }
training = { epochs = 6, batch_size = 4, lr = 1e-2, precision = "fp32", memory_format = "nchw" }
search = { lambda_s = [0.1, 10.0], tau = [0.2, 0.8], startup = 1 }

[model]
backbone = "resnet18"
width = 0.05
output_stride = 32
head = "light"
head_channels = 4
""".replace("class_names = ROOMS", f"classes = 3, class_names = {json.dumps(ROOMS)}")


def frame(number: int) -> dict[str, np.ndarray]:
    """A room in a colour of its own; every fourth has no age."""
    rng = np.random.default_rng(number)
    room = number % 3
    image = rng.integers(0, 60, (16, 24, 3), np.uint8)
    image[..., room] += 150
    age = math.nan if number % 4 == 3 else 10.0 + number
    return {
        "image": image,
        "semseg": np.repeat(np.arange(16, dtype=np.uint8) // 6, 24).reshape(16, 24),
        "age": np.array([age], np.float32),
        "room": np.array(room, np.int16),
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory, environment):
    """(command line in a folder with a finished run, the store's folder)."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "mixed.toml").write_text(TOML)
    study = load_study(folder / "mixed.toml")
    write_pack(
        folder / "data" / DATASETS["nyud"].pack_name(PackRequest.of(study)),
        dataset="nyud",
        size=(16, 24),
        fields=build_tasks(study.tasks),
        splits={
            "train": SplitFrames([f"a{i}" for i in range(24)], map(frame, range(24))),
            "test": SplitFrames([f"b{i}" for i in range(8)], map(frame, range(100, 108))),
        },
        source="made up",
        emit=lambda event: None,
    )
    cli = CommandLine(folder, environment)
    done = cli("run", "--study", "mixed.toml", "--n-trials", 2, "--json")
    assert done.code == 0, done.stderr
    return cli, folder / "runs" / "mixed"


def photos_in(folder):
    """Images of several sizes, one of them named like a formula, and a file that is none."""
    folder.mkdir()
    for name, size in {"=a,b.png": (24, 16), "line\nbreak.png": (50, 31), "c.jpg": (7, 90)}.items():
        pixels = np.random.default_rng(len(name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "broken.png").write_text("no image")


def expected(network, card, path) -> dict[str, np.ndarray]:
    """What torch itself computes of an image file."""
    height, width = card["size"]
    with Image.open(path) as image:
        shown = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.asarray(shown, np.float32).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        outputs = Shipped(network, tuple(card["tasks"])).eval()(pixels)
    return dict(zip(card["tasks"], outputs, strict=True))


def test_the_store_says_what_is_labelled_and_measured(work) -> None:
    cli, store = work
    record = read_store(store)
    labelled = record.data["labelled"]
    assert labelled["train"]["age"] + labelled["validation"]["age"] == 18
    assert labelled["test"] == {"semseg": 8, "age": 6, "room": 8}
    train, validation = labelled["train"]["age"], labelled["validation"]["age"]
    line = f"labelled frames of age: train {train} of 18, validation {validation} of 6, test 6 of 8"
    assert (store / "log.jsonl").read_text().count(line) == 1
    stl = record.baselines[0]
    assert set(stl.details["test"]["room"]) >= {"macro F1", "accuracy =bed"}
    assert set(stl.details["test"]["age"]) == {"RMSE", "R2"}
    with (cli.folder / "reports" / "mixed.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert float(row["test.age.RMSE"]) == stl.details["test"]["age"]["RMSE"]


def test_the_report_shows_what_each_network_answers(work) -> None:
    _, store = work
    arrays = read_predictions(store / "predictions.npz")
    assert arrays["truth.room"].shape == (2, 1)
    assert arrays["truth.age"].dtype == np.float32
    record = read_store(store)
    stl = record.baselines[0]
    network = kept_network(stl, Study.from_definition(record.definition), out=store)
    images = torch.from_numpy(arrays["image"].transpose(0, 3, 1, 2).astype(np.float32))
    with torch.no_grad():
        _, age, room = Shipped(network, ("semseg", "age", "room")).eval()(images)
    options = record.tasks[1].options
    years = age * options["std"][0] + options["mean"][0]
    np.testing.assert_allclose(arrays["stl.age"], years.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(arrays["stl.room"], room.softmax(1).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["onnx", "safetensors"])
def test_a_table_of_predictions_is_what_torch_computes(work, tmp_path, form) -> None:
    cli, store = work
    file = tmp_path / f"best.{form}"
    done = cli("export", "--study", "mixed", "--to", file, "--json")
    assert done.code == 0, done.stderr
    card = done.json["card"]
    assert done.json["parity"] < 1e-4
    assert card["tasks"]["age"]["values"].endswith("is the value years")
    photos_in(tmp_path / "photos")
    done = cli("predict", "--model", file, "--image", tmp_path / "photos", "--to", tmp_path / "out")
    assert done.code == 3
    assert done.stderr.count("\n") == 1
    assert "broken.png must be an image" in done.stderr
    with (tmp_path / "out" / "predictions.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    heads = ["image", "age (years)", "room", *(f"room.{name}" for name in ROOMS)]
    assert list(rows[0]) == heads
    names = sorted(["=a,b.png", "line\nbreak.png", "c.jpg"])
    assert [row["image"] for row in rows] == [str(tmp_path / "photos" / name) for name in names]
    record = read_store(store)
    result = choose(record, "best")
    study = Study.from_definition(record.definition)
    network = as_compact(kept_network(result, study, out=store), result.method, study)
    images = np.random.default_rng(0).uniform(0, 255, (3, 3, 40, 56)).astype(np.float32)
    with torch.no_grad():
        wanted = Shipped(network, tuple(card["tasks"])).eval()(torch.from_numpy(images))
    for scores, exact in zip(read_model(file).run(images), wanted, strict=True):
        assert np.abs(scores - exact.numpy()).max() <= 1e-4 * exact.abs().max()
    assert [tuple(scores.shape) for scores in wanted] == [(3, 13, 40, 56), (3, 1), (3, 3)]
    options = record.tasks[1].options
    for name, row in zip(names, rows, strict=True):
        outputs = expected(network, card, tmp_path / "photos" / name)
        years = float(outputs["age"][0, 0]) * options["std"][0] + options["mean"][0]
        assert float(row["age (years)"]) == pytest.approx(years, rel=1e-4)
        chances = outputs["room"][0].softmax(0)
        told = [float(row[f"room.{room}"]) for room in ROOMS]
        assert told == pytest.approx(chances.tolist(), rel=1e-4)
        assert row["room"].removeprefix("'") == ROOMS[int(chances.argmax())]
        stem = name.rpartition(".")[0]
        with np.load(tmp_path / "out" / f"{stem}.values.npz") as kept:
            assert kept.files == ["semseg"]
            classes = outputs["semseg"][0].argmax(0).numpy()
            assert (kept["semseg"] == classes).mean() > 0.99
    written = {path.name for path in (tmp_path / "out").iterdir()}
    stems = [name.rpartition(".")[0] for name in names]
    files = {f"{s}.{end}" for s in stems for end in ("semseg.png", "values.npz")}
    assert written == files | {"predictions.csv"}


def test_other_commands_take_such_a_network(work, tmp_path) -> None:
    cli, _ = work
    file = tmp_path / "mtl.safetensors"
    done = cli("export", "--study", "mixed", "--trial", "mtl", "--to", file, "--json")
    assert done.json["parity"] < 1e-4
    assert set(done.json["card"]["tasks"]) == {"semseg", "age", "room"}
    done = cli(
        "bench", "--model", file, "--runtime", "eager,onnxruntime", "--seconds", 0.1, "--json"
    )
    assert [set(row) & {"error", "median_ms"} for row in done.json["rows"]] == [{"median_ms"}] * 2
    done = cli("select", "--study", "mixed", "--json")
    assert done.code == 0, done.stderr
    done = cli("status", "--study", "mixed", "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["study"] == "mixed"
    done = cli("report", "--study", "mixed", "--json")
    assert done.code == 0, done.stderr
    assert set(done.json["baselines"][0]["details"]["room"]) >= {"macro F1", "accuracy bath"}
