"""Dense and image-level tasks in one study: trained by every method, reported, exported."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gatesearch.cost import count_macs
from gatesearch.datasets import DATASETS, Dataset, open_pack
from gatesearch.datasets.pack_writer import SplitFrames, write_pack
from gatesearch.datasets.scenes import CLASSES, render
from gatesearch.errors import UsageError
from gatesearch.export import card_of, read_model, ship
from gatesearch.methods import build_model
from gatesearch.models import parts_of
from gatesearch.report.results_csv import results_table
from gatesearch.results import StudyRecord
from gatesearch.search.run import run
from gatesearch.store.opening import read_store
from gatesearch.study import Study, load_study
from gatesearch.tasks import build_task, build_tasks, named_classes
from gatesearch.trials.data import open_data
from gatesearch.trials.kept_networks import as_compact, kept_network

SIZE = (16, 24)
TOML = """
name = "rooms"
methods = ["stl", "mtl", "cross_stitch", "mtan"]
tune = ["interrogate", "one_shot"]
report_frames = 1
protocol = { name = "rooms", size = [16, 24] }
tasks.room = { kind = "semseg", classes = 8, label = "semseg" }
tasks.light = { kind = "regression", unit = "lx" }
tasks.time = { kind = "classification", classes = ["day", "night", "never"] }
tasks.flags = { kind = "attributes", names = ["dark", "wide"] }
tasks.points = { kind = "keypoints", count = 12, flip_pairs = [[0, 1]] }
data = { dataset = "rooms", validation = 8 }
model.backbone = "resnet18"
model.width = 0.05
model.output_stride = 16
model.head = "light"
model.head_channels = 4
training = { epochs = 2, batch_size = 4, lr = 1e-2, precision = "fp32", memory_format = "nchw" }
search = { lambda_s = [0.1, 10.0], tau = [0.2, 0.8], startup = 1 }
one_shot = { warmup = 0.25, finetune = 0.25, statistics = 4, patterns = 4 }
interrogate = { warmup = 0.25, finetune = 0.25 }
"""
PER_IMAGE = ("light", "time", "flags")


def _frames(study: Study, split: str, count: int) -> Iterator[dict[str, np.ndarray]]:
    tasks = build_tasks(study.tasks)
    for index in range(count):
        frame = render(index, split=split, size=SIZE)
        grey = frame["image"].mean(-1)
        # So many places that no network finds none: against a figure of 0, no gain is defined.
        places = np.random.default_rng(index).integers(0, SIZE[::-1], (12, 2))
        raw = {
            "light": [10 * grey.mean()],
            "time": ["" if index % 3 == 2 else "night" if index == 0 else "day"],
            "flags": [grey.mean() < 128, "" if index == 1 else index % 2 == 0],
            "points": places.reshape(-1),
        }
        labels = {name: tasks[name].encode(np.array(row, object), size=SIZE)
                  for name, row in raw.items()}  # fmt: skip
        yield {"image": frame["image"], "semseg": frame["semseg"], **labels}


def _prepare(*, folder: Path, source, request, emit) -> Path:
    tasks = build_tasks(request.study.tasks)
    room = build_task("semseg", named_classes(CLASSES), where="rooms")
    return write_pack(
        folder / "rooms",
        dataset="rooms",
        size=SIZE,
        fields={"semseg": room, **{n: t for n, t in tasks.items() if n != "room"}},
        splits={
            split: SplitFrames([f"{split}{i}" for i in range(n)], _frames(request.study, split, n))
            for split, n in (("train", 20), ("test", 6))
        },
        source="rendered",
        emit=emit,
    )


ROOMS = Dataset(
    name="rooms", summary="", automatic=True, info=lambda: "", pack_name=lambda request: "rooms",
    prepare=_prepare,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def rooms() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "rooms", ROOMS)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return study_in(tmp_path_factory.mktemp("study"))


def study_in(folder: Path, *overrides: str) -> Study:
    path = folder / "rooms.toml"
    path.write_text(TOML)
    return load_study(path, overrides)


@pytest.fixture(scope="module")
def finished(study, tmp_path_factory) -> tuple[Path, Path, StudyRecord]:
    folder = tmp_path_factory.mktemp("rooms")
    record = run(
        study, n_trials=1, out=folder / "out", data=folder / "data", emit=lambda event: None
    )
    return folder / "out", folder / "data", record


@pytest.mark.parametrize("name", ["stl", "mtl", "cross_stitch", "mtan", "interrogate", "one_shot"])
def test_cost_of_pooled_heads_is_counted_to_the_last_multiply_add(study, name) -> None:
    with torch.device("meta"):
        model = build_model(study, name, pretrained=False)
    cost = count_macs(model, (1, 3, *SIZE))
    assert (cost.disagreements, cost.uncounted) == ((), {})
    features = parts_of(study, pretrained=False).graph.outputs
    alone = replace_tasks(study, ("room", "points"))
    with torch.device("meta"):
        dense = count_macs(build_model(alone, name, pretrained=False), (1, 3, *SIZE))
    heads = cost.macs - cost.backbone_macs - (dense.macs - dense.backbone_macs)
    assert heads == features * (1 + 3 + 2)


def replace_tasks(study: Study, names: tuple[str, ...]) -> Study:
    return study.model_copy(update={"tasks": {name: study.tasks[name] for name in names}})


def test_a_head_must_fit_its_task(tmp_path) -> None:
    for override, message in [
        ("tasks.light.head=light", r"task light of kind 'regression' needs a head of one "
         r"prediction per image \(pooled\), found tasks.light.head = 'light'"),
        ("tasks.room.head=pooled", r"task room of kind 'semseg' needs a head of values per pixel "
         r"\(deeplabv3, light, fpn, segformer, dpt\), found tasks.room.head = 'pooled'"),
        ("model.head=pooled", r"found model.head = 'pooled'; set tasks.room.head"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=message):
            parts_of(study_in(tmp_path, override))


@pytest.mark.slow("whole run")
def test_every_method_trains_and_is_measured(finished, study) -> None:
    out, data, record = finished
    assert read_store(out) == record
    assert [r.method for r in record.baselines] == ["stl", "mtl", "cross_stitch", "mtan"]
    assert [(r.method, r.state) for r in record.trials] == [
        ("interrogate", "complete"), ("one_shot", "complete"),
    ]  # fmt: skip
    pack = open_pack(data / "rooms")
    assert pack.manifest.splits["train"].labelled["time"] == 14
    for result in (*record.baselines, *record.trials):
        assert set(result.metrics["validation"]) == set(study.tasks)
        assert all(map(math.isfinite, result.metrics["validation"].values()))
        told = result.details["validation"]
        assert set(told["room"]) == {f"IoU {name}" for name in CLASSES}
        assert set(told["light"]) == {"RMSE", "R2"}
        assert set(told["time"]) == {
            "balanced accuracy", "macro F1", "accuracy day", "accuracy night", "accuracy never",
        }  # fmt: skip
        assert set(told["flags"]) == {"balanced accuracy", "F1", "accuracy dark", "accuracy wide"}
        assert set(told["points"]) == {
            "PCK@0.05", "mean distance in pixels", *(f"PCK@0.1 {index}" for index in range(12)),
        }  # fmt: skip
        assert result.details.get("test", {}).keys() == result.metrics.get("test", {}).keys()
    assert "test" in record.baselines[0].details
    assert "test" in record.front[0].details
    table = results_table(record)
    assert table["validation.light.RMSE"].tolist() == [
        r.details["validation"]["light"]["RMSE"] for r in (*record.baselines, *record.trials)
    ]
    assert not pd.isna(table.loc[0, "test.points.PCK@0.05"])


@pytest.mark.slow("whole run")
def test_what_a_task_learned_is_kept_with_it(finished, study) -> None:
    _, data, record = finished
    train = open_data(study, data=data, emit=lambda event: None).train
    light = next(info for info in record.tasks if info.name == "light")
    values = train.batch(torch.arange(len(train)))["light"][:, 0].double().numpy()
    assert light.options["unit"] == light.unit == "lx"
    assert light.options["mean"] == pytest.approx([values.mean()])
    assert light.options["std"] == pytest.approx([values.std()])
    (time,) = [info for info in record.tasks if info.name == "time"]
    assert time.class_names == ("day", "night", "never")


@pytest.mark.slow("whole run")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mtl", "safetensors"), ("mtl", "pt2"), ("mtl", "onnx"), ("stl", "safetensors"),
        ("0", "safetensors"), ("mtan", "safetensors"),
    ],
)  # fmt: skip
def test_networks_ship_with_outputs_of_both_kinds(finished, tmp_path, name, form) -> None:
    out, _, record = finished
    result = next(
        r for r in (*record.baselines, *record.trials) if name in (str(r.trial), r.method)
    )
    definition = Study.from_definition(record.definition)
    network = as_compact(kept_network(result, definition, out=out), result.method, definition)
    card = card_of(record, result)
    file = tmp_path / f"x.{form}"
    if form == "safetensors" and name == "mtan":
        with pytest.raises(UsageError, match="compact networks"):
            ship(network, card, file, form=form, frames=None)
        return
    assert ship(network, card, file, form=form, frames=None) < 1e-4
    if form == "pt2":
        return
    model = read_model(file)
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (3, 3, 32, 40)).astype(np.float32)  # of another size
    found = model.predict(image)
    shapes = {name: labels.shape for name, labels in found.items()}
    assert shapes == {
        "room": (3, 32, 40), "light": (3, 1), "time": (3, 3), "flags": (3, 2), "points": (3, 12, 3),
    }  # fmt: skip
    task = build_tasks(definition.tasks)["light"]
    scale = next(info for info in record.tasks if info.name == "light").options
    raw = dict(zip(card.tasks, model.run(image), strict=True))["light"]
    expected = raw * scale["std"][0] + scale["mean"][0]
    np.testing.assert_allclose(found["light"], expected, rtol=1e-5)
    assert card.tasks["light"].task == task.fitted(
        {"mean.0": scale["mean"][0], "std.0": scale["std"][0]}
    )
    assert card.tasks["time"].options == {"class_names": ["day", "night", "never"]}


@pytest.mark.slow("whole run")
def test_a_card_without_options_is_still_read(finished) -> None:
    _, _, record = finished
    card = card_of(record, record.baselines[0])
    stored = json.loads(card.model_dump_json())
    for task in stored["tasks"].values():
        del task["options"]
    again = type(card).model_validate(stored)
    assert again.tasks["room"].task.classes == 8
    assert again.tasks["light"].options == {}
    light = stored["tasks"]["light"] | {"options": {"unit": 3}}
    with pytest.raises(ValueError, match="unit: Input should be a valid string"):
        type(card).model_validate({**stored, "tasks": {"light": light}})
