"""A compact network's description is refused, in one line, before anything is built from it."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gatesearch.files import FileRefusedError
from gatesearch.models import GatedSupernet
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, Parts
from gatesearch.pruning import extract, load_compact, save_compact
from tests.pruning.test_extract import put, scattered

SLICE = {"tensor": 1, "start": 0, "stop": 1, "channels": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A network of two tasks with a mix, an addition, a pooling and convolutions."""
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    heads = {task: HeadSpec("light", 26, 4, 2) for task in ("a", "b")}
    supernet = scattered(GatedSupernet(Parts(graph, heads)))
    put(supernet, np.random.default_rng(2))
    stem = tmp_path_factory.mktemp("net") / "net"
    save_compact(extract(supernet), stem)
    return stem


def place(description: dict, op: str) -> tuple[int, dict]:
    """First step of a kind, with its number."""
    return next((i, step) for i, step in enumerate(description["steps"]) if step["op"] == op)


def load(saved: Path, description: object, folder: Path) -> None:
    text = description if isinstance(description, str) else json.dumps(description)
    (folder / "net.json").write_text(text)
    (folder / "net.safetensors").write_bytes(saved.with_suffix(".safetensors").read_bytes())
    load_compact(folder / "net")


@pytest.mark.parametrize(
    ("op", "change", "fault"),
    [
        ("conv", {"stride": 0}, "stride: Input should be greater than or equal to 1"),
        ("conv", {"stride": True}, "stride: Input should be a valid integer"),
        ("conv", {"stride": 10**30}, "stride: Input should be less than or equal to 16"),
        ("conv", {"kernel": 0}, "kernel[^:]*: Input should be greater than or equal to 1"),
        ("conv", {"kernel": 10**9}, "kernel[^:]*: Input should be less than or equal to 127"),
        ("conv", {"dilation": 10**9}, "dilation: Input should be less than or equal to 64"),
        ("conv", {"inputs": 1e30}, "inputs: Input should be a valid integer"),
        ("conv", {"inputs": 10**30}, "inputs: Input should be less than or equal to 131072"),
        ("conv", {"inputs": -3}, "inputs: Input should be greater than or equal to 1"),
        ("conv", {"inputs": 4}, "steps.0: must have 3 inputs, found 4"),
        ("conv", {"inputs": "3"}, "inputs: Input should be a valid integer"),
        ("conv", {"outputs": 131_072}, r"net.safetensors must hold convs.\w+.conv.weight as .*"),
        ("conv", {"depthwise": True, "outputs": 7}, "convolution must have 3 outputs, found 7"),
        ("conv", {"ceiling": float("nan")}, "ceiling: Input should be"),
        ("conv", {"ceiling": -1.0}, "ceiling: Input should be greater than 0"),
        ("conv", {"name": ""}, "name: String should have at least 1 character"),
        ("conv", {"name": "a.b"}, "describes an impossible network: "),
        ("conv", {"name": "forward\n"}, r"net.safetensors (must|holds)"),
        ("conv", {"op": "exec"}, "Input tag 'exec' found"),
        ("conv", {"source": []}, "must read channels, found no slice"),
        (
            "conv",
            {"source": [SLICE | {"tensor": 99_999}]},
            "of the 1 tensors before it, found 99999",
        ),
        ("conv", {"source": [SLICE]}, "steps.0: must read one of the 1 tensors before it, found 1"),
        ("conv", {"source": [SLICE | {"stop": 3 * 10**9}]}, "stop: Input should be less than"),
        (
            "conv",
            {"source": [SLICE | {"tensor": 0, "stop": 4}]},
            "steps.0: must read channels of the 3 of tensor 0, found 0 to 4",
        ),
        (
            "conv",
            {"source": [SLICE | {"tensor": 0, "start": 2, "stop": 2}]},
            "steps.0: must read channels of the 3 of tensor 0, found 2 to 2",
        ),
        (
            "conv",
            {"source": [SLICE | {"tensor": 0, "channels": [0, 1, 3]}]},
            "steps.0: must read channels of the 3 of tensor 0, found a list up to 3",
        ),
        ("conv", {"source": [SLICE | {"tensor": 0, "channels": []}]}, "found a list up to 0"),
        ("conv", {"source": [SLICE | {"channels": [-1]}]}, "channels.0: Input should be greater"),
        ("add", {"left": [SLICE]}, r"must add as many channels on both sides, found 1 and \d+"),
        ("add", {"name": "x"}, "Extra inputs are not permitted"),
        ("mix", {"tasks": 0}, "tasks: Input should be greater than or equal to 1"),
        ("mix", {"tasks": 10**9}, "tasks: Input should be less than or equal to 256"),
        ("mix", {"tasks": 1}, r"terms.\d+: must be of 1 tasks, found 1"),
        ("mix", {"channels": 1}, r"terms.\d+: must add \d+ of 1 channels, found"),
        ("mix", {"channels": 100}, "terms.0: must cover all 100 channels"),
        ("mix", {"terms": []}, "terms: Tuple should have at least 1 item"),
        ("maxpool", {"source": [SLICE | {"stop": 10**4}]}, "must read channels of the"),
    ],
)
def test_steps_that_cannot_be(saved, tmp_path, op, change, fault) -> None:
    description = json.loads(saved.with_suffix(".json").read_text())
    _, step = place(description, op)
    step |= change
    with pytest.raises(FileRefusedError, match=rf"^[^\n]*{fault}[^\n]*$"):
        load(saved, description, tmp_path)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"kind": "lihgt"}, "describes an impossible network: 'lihgt'"),
        ({"inputs": 1}, r"heads.a: must have \d+ inputs, found 1"),
        ({"channels": 10**9}, "heads.a.channels: Input should be less than or equal to 131072"),
        ({"outputs": 0}, "heads.a.outputs: Input should be greater than or equal to 1"),
        ({"outputs": 100_000}, "net.safetensors must hold heads.a.layers.1.weight as .*100000"),
        ({"source": [SLICE | {"tensor": 10**5}]}, r"heads.a: must read one of the \d+ tensors"),
    ],
)
def test_heads_that_cannot_be(saved, tmp_path, change, fault) -> None:
    description = json.loads(saved.with_suffix(".json").read_text())
    description["heads"]["a"] |= change
    with pytest.raises(FileRefusedError, match=rf"^[^\n]*{fault}[^\n]*$"):
        load(saved, description, tmp_path)


def later(description: dict) -> object:
    """A step that reads its own result."""
    number, step = place(description, "maxpool")
    step["source"] = [SLICE | {"tensor": number + 1}]
    return description


def twice(description: dict) -> object:
    """Two steps of the same name: they would share weights."""
    first, second = [step for step in description["steps"] if step["op"] == "conv"][:2]
    second["name"] = first["name"]
    return description


def without_head(description: dict) -> object:
    del description["heads"]["b"]
    return description


def wide(description: dict) -> object:
    """Steps that read the same channels again and again, each twice as many."""
    tensor, width = 0, 3
    steps = []
    for _ in range(15):
        steps.append({"op": "maxpool", "source": [{"tensor": tensor, "stop": width}] * 2})
        tensor, width = tensor + 1, 2 * width
    repeated = {"op": "maxpool", "source": [{"tensor": tensor, "stop": width}]}
    description["steps"] = steps + [repeated] * 1000
    return description


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (later, r"steps.\d+: must read one of the \d+ tensors before it"),
        (twice, r"steps.\d+: names must be unique, found \w+ again"),
        (without_head, r"net.safetensors holds the unknown tensor heads.b"),
        (wide, "must read at most 8,388,608 channels, found "),
        (lambda d: d | {"heads": {}}, "heads: Dictionary should have at least 1 item"),
        (lambda d: d | {"heads": 7}, "heads: Input should be an object"),
        (lambda d: d | {"steps": [{}]}, "steps.0: Unable to extract tag"),
        (lambda d: d | {"steps": d["steps"][:1]}, "heads.a: must read one of the 2 tensors"),
        (
            lambda d: d | {"steps": d["steps"] * 500},
            "steps: Tuple should have at most 20000 items",
        ),
        (lambda d: d | {"format": 2}, "format: Input should be 1"),
        (lambda d: d | {"code": "x"}, "code: Extra inputs are not permitted"),
        (lambda d: [d], "Input should be an object"),
        (lambda d: "[" * 10**6, "Invalid JSON: recursion limit exceeded"),
        (lambda d: '{"steps": ' * 10**5, "Invalid JSON: recursion limit exceeded"),
        (lambda d: "", "Invalid JSON: EOF while parsing"),
        (lambda d: "null", "Input should be an object"),
    ],
)
def test_descriptions_that_cannot_be(saved, tmp_path, change, fault) -> None:
    description = json.loads(saved.with_suffix(".json").read_text())
    text = json.dumps(changed) if not isinstance(changed := change(description), str) else changed
    start = time.process_time()
    with pytest.raises(FileRefusedError, match=rf"^[^\n]*{fault}[^\n]*$"):
        load(saved, text, tmp_path)
    assert time.process_time() - start < 20


def test_loading_draws_as_many_random_numbers_as_before(saved) -> None:
    # Comparing the description with the weights builds it once more, which must draw nothing.
    torch.manual_seed(0)
    network = load_compact(saved)
    after = torch.rand(3)
    torch.manual_seed(0)
    type(network)(network.description)
    assert torch.equal(torch.rand(3), after)
