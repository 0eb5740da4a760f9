"""Shipped files compute what PyTorch does, elsewhere too, and say what they are."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from gatesearch.checksums import checksum
from gatesearch.cli.predict import predict
from gatesearch.errors import DataError, UsageError
from gatesearch.export import (
    Card,
    Shipped,
    choose,
    cut_to_tasks,
    parity,
    read_model,
    ship,
    write_network,
)
from gatesearch.export.draw import draw_predictions, predict_file
from gatesearch.export.formats import OPSET
from gatesearch.export.seals import open_card, seal_onnx
from gatesearch.methods import build_model
from gatesearch.models import GatedSupernet
from gatesearch.pruning import CompactNet, extract
from gatesearch.pruning.mix import WholeMix
from gatesearch.results import Result, StudyRecord, TaskInfo
from gatesearch.trials.kept_networks import as_compact
from tests.pruning.test_extract import put, scattered
from tests.search.tiny import tiny

TASKS = ("semseg", "depth")


def card(network: str) -> Card:
    tasks = {
        "semseg": {"kind": "semseg", "classes": 8, "values": "scores", "metric": "mIoU %"},
        "depth": {"kind": "depth", "classes": 1, "values": "metres", "metric": "RMSE m"},
    }
    return Card(
        study="tiny", fingerprint="f", protocol="scenes-16", network=network, size=(96, 128),
        gflops=1.0, params_m=1.0, tasks={n: t | {"measured": {}} for n, t in tasks.items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Name -> network: compact ones with gates at random, and a multi-task one."""
    folder, found = tmp_path_factory.mktemp("study"), {}
    study = tiny(folder)
    mobile = tiny(folder, "model.backbone=efficientnet_lite0")
    for name, given in (("trial 1", study), ("mobile", mobile)):
        supernet = scattered(build_model(given, "interrogate"))
        assert isinstance(supernet, GatedSupernet)
        put(supernet, np.random.default_rng(5))
        if name == "mobile":  # own channels in its last two blocks: each layer takes long to export
            gates = supernet.hard_gates()
            closed = {node: torch.zeros_like(gates[node]) for node in supernet.gated[:-6]}
            supernet.set_gates({**gates, **closed})
        found[name] = extract(supernet)
    return {**found, "mtl": scattered(build_model(study, "mtl"))}


@pytest.fixture(scope="module")
def shipped(networks, tmp_path_factory):
    """(name, format) -> file, written when it is first asked for."""
    folder = tmp_path_factory.mktemp("shipped")

    class Files(dict[tuple[str, str], Path]):
        def __missing__(self, key: tuple[str, str]) -> Path:
            name, form = key
            path = self[key] = folder / f"{name.replace(' ', '')}.{form}"
            write_network(networks[name], card(name), path, form=form)
            return path

    return Files()


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0, 255, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mtl", "onnx"),
        ("trial 1", "safetensors"),
        ("mobile", "safetensors"),
        pytest.param("trial 1", "onnx", marks=pytest.mark.slow("exports")),
        pytest.param("mobile", "onnx", marks=pytest.mark.slow("exports")),
    ],
)
@pytest.mark.parametrize("shape", [(1, 3, 96, 128), (3, 3, 64, 160), (2, 3, 77, 91)])
def test_reads_as_it_was_at_any_size(networks, shipped, name, form, shape) -> None:
    model = read_model(shipped[name, form])
    assert model.card == card(name)
    with torch.no_grad():
        ours = Shipped(networks[name], TASKS)(torch.from_numpy(images(*shape)))
    for a, b in zip(ours, model.run(images(*shape)), strict=True):
        assert a.shape == b.shape == (shape[0], a.shape[1], *shape[2:])
        assert np.abs(a.numpy() - b).max() <= 1e-4 * np.abs(a.numpy()).max()


def test_normalisation_is_inside(networks) -> None:
    grey = torch.full((1, 3, 16, 16), 127.5)
    inside = Shipped(networks["mtl"], TASKS)(grey)
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    outside = networks["mtl"](((0.5 - mean) / std).expand(1, 3, 16, 16))
    assert all(torch.allclose(a, outside[t], atol=1e-4) for a, t in zip(inside, TASKS, strict=True))


# What a user's own process does: no gatesearch in it.
ELSEWHERE = """
import json, sys
import numpy as np
sys.modules["gatesearch"] = None
path, images, written = sys.argv[1:]
image = np.load(images)
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(None, {"image": image})
    stored = session.get_modelmeta().custom_metadata_map["gatesearch.json"]
else:
    import torch
    extra = {"gatesearch.json": ""}
    program = torch.export.load(path, extra_files=extra)
    outputs = [x.detach().numpy() for x in program.module()(torch.from_numpy(image))]
    stored = extra["gatesearch.json"]
    names = list(json.loads(stored)["tasks"])
np.savez(written, card=stored, names=names, **dict(zip(names, outputs)))
"""


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("mtl", "onnx"),
        pytest.param("trial 1", "onnx", marks=pytest.mark.slow("exports")),
        pytest.param("mtl", "pt2", marks=pytest.mark.slow("exports")),
        pytest.param("trial 1", "pt2", marks=pytest.mark.slow("exports")),
    ],
)
def test_loads_in_a_process_without_gatesearch(networks, shipped, tmp_path, name, form) -> None:
    np.save(tmp_path / "images.npy", images(3, 3, 80, 104))
    arguments = [shipped[name, form], tmp_path / "images.npy", tmp_path / "out.npz"]
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, *map(str, arguments)], check=True, cwd=tmp_path
    )
    with np.load(tmp_path / "out.npz") as out:
        assert open_card(str(out["card"]), tmp_path / "card") == (card(name), {})
        assert tuple(out["names"]) == TASKS
        with torch.no_grad():
            ours = Shipped(networks[name], TASKS)(torch.from_numpy(images(3, 3, 80, 104)))
        for task, expected in zip(TASKS, ours, strict=True):
            gap = np.abs(out[task] - expected.numpy()).max()
            assert gap <= 1e-4 * expected.abs().max()


def test_opset_and_names(shipped) -> None:
    import onnx

    model = onnx.load(shipped["mtl", "onnx"])
    assert [item.version for item in model.opset_import if item.domain == ""] == [OPSET]
    assert [item.name for item in model.graph.input] == ["image"]
    assert [item.name for item in model.graph.output] == list(TASKS)


@pytest.mark.parametrize("form", ["onnx", pytest.param("pt2", marks=pytest.mark.slow("exports"))])
def test_parity_finds_a_file_that_is_off(networks, shipped, form) -> None:
    path = shipped["mtl", form]
    assert parity(networks["mtl"], path, None) < 1e-4
    with pytest.raises(UsageError, match=r"must compute what PyTorch does to 0\.0001, found"):
        parity(networks["trial 1"], path, None)


def test_a_file_that_is_off_leaves_the_old_one(networks, tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.safetensors"
    ship(networks["trial 1"], card("trial 1"), path, form="safetensors", frames=None)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {"x.safetensors", "x.json", "x.card.json"}
    monkeypatch.setattr("gatesearch.export.reader.PARITY", -1.0)
    with pytest.raises(UsageError, match=r"x\.safetensors must compute"):
        ship(networks["trial 1"], card("trial 9"), path, form="safetensors", frames=None)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.slow("exports")
def test_exports_do_not_rest_on_weights_that_nobody_reads(networks, tmp_path) -> None:
    network = copy.deepcopy(networks["trial 1"])
    whole = [module for module in network.modules() if isinstance(module, WholeMix)]
    for mix, exported in zip(network.mixes.values(), whole, strict=True):
        with torch.no_grad():
            mix[exported.adds == 0] = 7.0
    assert ship(network, card("x"), tmp_path / "x.pt2", form="pt2", frames=None) < 1e-4


@pytest.mark.parametrize("method", ["mtl", "stl"])
def test_the_ends_ship_as_compact_networks(tmp_path, method) -> None:
    study = tiny(tmp_path)
    network = scattered(build_model(study, method))
    compact = as_compact(network, method, study)
    assert isinstance(compact, CompactNet)
    image = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        for task, expected in network(image).items():
            assert torch.allclose(compact(image)[task], expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in compact.parameters()) == sum(
        p.numel() for p in network.parameters()
    )


def test_what_cannot_be_written_is_refused(networks, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        write_network(networks["mtl"], card("mtl"), tmp_path / "x.pt2", form="onnx")
    with pytest.raises(UsageError, match="holds compact networks, found mtl"):
        write_network(networks["mtl"], card("mtl"), tmp_path / "x.safetensors", form="safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent.onnx", "no model .*absent.onnx; write one with `gatesearch export`"),
        ("cut.onnx", "ends in no checksum; write it again with `gatesearch export`"),
        ("foreign.onnx", "was not written by `gatesearch export`: it holds no gatesearch.json"),
        ("later.onnx", "is damaged: format: Input should be 2; write it again"),
        ("old.onnx", "holds a card without a checksum, as gatesearch 0.1.0 wrote; write it again"),
        ("changed.onnx", "holds a card that was changed: its checksum differs"),
        ("text.onnx", "is no ONNX model that can be read"),
        ("other.onnx", "must have the input image, of floats, found .*'picture'"),
        ("less.onnx", "must have the output edges of its card, found none"),
        ("lone.safetensors", "needs lone.card.json beside it"),
        ("program.pt2", "can hold pickles, which run code"),
    ],
)
def test_models_that_cannot_be_read(shipped, tmp_path, kind, message) -> None:
    path = tmp_path / kind
    whole = shipped["mtl", "onnx"].read_bytes()
    if kind == "cut.onnx":
        path.write_bytes(whole[:1000])
    elif kind == "text.onnx":
        path.write_bytes(seal_onnx(b"no model"))
    elif kind.endswith(".onnx") and kind != "absent.onnx":
        import onnx

        model = onnx.load(shipped["mtl", "onnx"])
        value = card("mtl").model_dump(mode="json")
        if kind == "later.onnx":
            value["format"] = 3
        elif kind == "less.onnx":
            value["tasks"]["edges"] = value["tasks"]["depth"] | {"kind": "edges"}
        elif kind == "other.onnx":
            for tensor in (*model.graph.input, *model.graph.node):
                for field in (tensor.input, tensor.output) if hasattr(tensor, "output") else ():
                    field[:] = ["picture" if name == "image" else name for name in field]
                tensor.name = "picture" if tensor.name == "image" else tensor.name
        sealed = value | {"sha256": checksum(value)}
        if kind == "old.onnx":
            del sealed["sha256"]
        elif kind == "changed.onnx":
            sealed["gflops"] = 2.0
        del model.metadata_props[:]
        if kind != "foreign.onnx":
            onnx.helper.set_model_props(model, {"gatesearch.json": json.dumps(sealed)})
        path.write_bytes(seal_onnx(model.SerializeToString()))
    elif kind != "absent.onnx":
        path.write_bytes(whole)
    with pytest.raises((DataError, UsageError), match=message):
        read_model(path)


def test_any_byte_of_an_onnx_file_is_verified(shipped, tmp_path) -> None:
    import onnx
    import onnxruntime

    path, whole = tmp_path / "x.onnx", shipped["mtl", "onnx"].read_bytes()
    # The checksum at the end is metadata to other programs.
    onnx.checker.check_model(onnx.load_from_string(whole), full_check=True)
    session = onnxruntime.InferenceSession(whole)
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata["gatesearch.sha256"] == hashlib.sha256(whole[:-87]).hexdigest()
    for place in [*range(0, len(whole), len(whole) // 40), *range(len(whole) - 100, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(UsageError, match=r"x\.onnx was (changed since|not written by this)"):
            read_model(path)


@pytest.fixture
def files(networks, tmp_path):
    """The three files of a network as safetensors."""
    write_network(
        networks["trial 1"], card("trial 1"), tmp_path / "x.safetensors", form="safetensors"
    )
    return {path.name: path for path in tmp_path.iterdir()}


def test_a_card_holds_the_checksums_of_the_files_beside_it(files) -> None:
    value = json.loads(files["x.card.json"].read_bytes())
    assert value["files"] == {
        suffix: hashlib.sha256(files[f"x{suffix}"].read_bytes()).hexdigest()
        for suffix in (".json", ".safetensors")
    }
    stated = value.pop("sha256")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert stated == hashlib.sha256(text.encode()).hexdigest()


def test_renamed_and_linked_files_are_still_read(files, networks, tmp_path) -> None:
    (tmp_path / "links").mkdir()
    for name, path in files.items():
        moved = path.rename(tmp_path / f"blob-{name.replace('.', '-')}")
        (tmp_path / "links" / name.replace("x", "renamed", 1)).symlink_to(moved)
    model = read_model(tmp_path / "links" / "renamed.safetensors")
    with torch.no_grad():
        expected = Shipped(networks["trial 1"], TASKS)(torch.from_numpy(images(1, 3, 96, 128)))
    assert all(
        np.array_equal(a.numpy(), b)
        for a, b in zip(expected, model.run(images(1, 3, 96, 128)), strict=True)
    )


def flip_last(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def relu_lost(path: Path) -> None:
    """Another network of the same shape, or another figure on the card."""
    text = path.read_text(encoding="utf-8")
    changed = text.replace('"relu":true', '"relu":false').replace('"relu": true', '"relu":false')
    changed = changed.replace('"gflops": 1.0', '"gflops": 9.0')
    assert changed != text
    path.write_text(changed, encoding="utf-8")


FILE_HARMS = {
    "flipped": flip_last,
    "changed": relu_lost,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "circle": lambda path: (path.unlink(), path.symlink_to(path)),
    "gone": lambda path: path.unlink(),
    "sparse": lambda path: os.truncate(path, 2**40),
}


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        (name, harm)
        for name in ("x.card.json", "x.json", "x.safetensors")
        for harm in FILE_HARMS
        if (name, harm) != ("x.safetensors", "changed")  # it is no text
    ],
)
def test_a_changed_file_is_refused_in_one_line(files, name, harm) -> None:
    FILE_HARMS[harm](files[name])
    absent = name == "x.safetensors" and harm in ("gone", "circle")
    with pytest.raises(
        DataError if absent else UsageError, match=rf"^[^\n]*{name}[^\n]*export`[^\n]*$"
    ):
        read_model(files["x.safetensors"])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"size": [0, 128]}, "size.0: Input should be greater than or equal to 1"),
        ({"size": [-1, 128]}, "size.0: Input should be greater than or equal to 1"),
        ({"size": [20000, 20000]}, "size must have at most 16,777,216 pixels, found"),
        ({"size": [96.5, 128]}, "size.0: Input should be a valid integer"),
        ({"size": ["96", 128]}, "size.0: Input should be a valid integer"),
        ({"gflops": float("nan")}, "gflops: Input should be"),
        ({"gflops": -1.0}, "gflops: Input should be greater"),
        ({"tasks": {}}, "tasks: Dictionary should have at least 1 item"),
        ({"tasks": 7}, "tasks: Input should be an object"),
        ({"tasks": {"semseg": {}}}, "tasks.semseg.kind: Field required"),
        ({"code": "x"}, "code: Extra inputs are not permitted"),
        ({"files": {".json": 7}}, r"\.json: Input should be a valid string"),
        ({"files": {}}, r"x\.json was changed since it was exported"),
        ({"kind": "smell"}, "tasks.semseg: unknown kind of task 'smell', which --plugin may add"),
        ({"classes": 0}, "tasks.semseg.classes: Input should be greater"),
        ({"classes": 10**9}, "tasks.semseg.classes: Input should be less"),
        ({"classes": True}, "tasks.semseg.classes: Input should be a valid integer"),
        ({"name": "../semseg"}, "tasks.../semseg.* should match pattern"),
        ({"name": "parts"}, r"x\.card\.json must describe the tasks semseg, depth, found others"),
    ],
)
def test_a_card_with_a_right_checksum_is_validated_all_the_same(files, change, fault) -> None:
    value = json.loads(files["x.card.json"].read_bytes())
    del value["sha256"]
    task = {key: change.pop(key) for key in ("kind", "classes") if key in change}
    value["tasks"]["semseg"].update(task)
    if name := change.pop("name", None):
        value["tasks"][name] = value["tasks"].pop("semseg")
    value |= change
    files["x.card.json"].write_text(json.dumps(value | {"sha256": checksum(value)}))
    with pytest.raises(UsageError, match=rf"^[^\n]*{fault}[^\n]*; write it again with [^\n]*$"):
        read_model(files["x.safetensors"])


def test_outputs_of_other_shapes_than_on_the_card_are_refused(files) -> None:
    value = json.loads(files["x.card.json"].read_bytes())
    del value["sha256"]
    value["tasks"]["semseg"]["classes"] = 9
    files["x.card.json"].write_text(json.dumps(value | {"sha256": checksum(value)}))
    model = read_model(files["x.safetensors"])
    with pytest.raises(UsageError, match=r"must compute semseg as float32 of shape \(1, 9, 8, 8\)"):
        model.run(images(1, 3, 8, 8))


def test_the_folder_of_the_file_is_made(networks, tmp_path) -> None:
    path = tmp_path / "not" / "there" / "x.safetensors"
    ship(networks["trial 1"], card("trial 1"), path, form="safetensors", frames=None)
    assert read_model(path).card.network == "trial 1"


@pytest.mark.slow("exports")
def test_a_program_has_its_checksum_beside_it(networks, tmp_path) -> None:
    ship(networks["mtl"], card("mtl"), tmp_path / "x.pt2", form="pt2", frames=None)
    digest = hashlib.sha256((tmp_path / "x.pt2").read_bytes()).hexdigest()
    assert (tmp_path / "x.pt2.sha256").read_text() == f"{digest}  x.pt2\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt2", "x.pt2.sha256"]


class TestPredictions:
    @pytest.mark.parametrize(
        ("mode", "size"), [("RGB", (64, 48)), ("L", (33, 17)), ("RGBA", (5, 7)), ("P", (16, 16))]
    )
    def test_any_image_is_drawn_at_its_own_size(self, shipped, tmp_path, mode, size) -> None:
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / "photo.png")
        model = read_model(shipped["mtl", "onnx"])
        written = [
            w.path
            for w in draw_predictions(
                model.card, predict_file(model, tmp_path / "photo.png"), tmp_path
            )
        ]
        names = ["photo.semseg.png", "photo.depth.png", "photo.values.npz"]
        assert [path.name for path in written] == names
        with Image.open(written[0]) as drawn:
            assert (drawn.size, drawn.mode) == (size, "RGB")
        with Image.open(written[1]) as drawn:  # with a colour bar below
            assert drawn.width >= size[0]
            assert drawn.height == size[1] + 33

    def test_a_turned_photo_is_drawn_upright(self, shipped, tmp_path) -> None:
        turned = Image.fromarray(images(48, 64, 3).astype(np.uint8))
        exif = turned.getexif()
        exif[ExifTags.Base.Orientation] = 6  # to be shown a quarter turn clockwise
        turned.save(tmp_path / "marked.png", exif=exif)
        turned.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
        model = read_model(shipped["mtl", "onnx"])
        marked, upright = (
            [
                w.path.read_bytes()
                for w in draw_predictions(
                    model.card, predict_file(model, tmp_path / name), tmp_path
                )
            ]
            for name in ("marked.png", "upright.png")
        )
        assert marked == upright

    def test_a_folder_is_drawn_but_for_what_cannot_be_read(self, shipped, tmp_path) -> None:
        photos, drawn = tmp_path / "photos", tmp_path / "drawn"
        photos.mkdir()
        (photos / "a.jpg").write_text("no image")
        Image.fromarray(images(9, 7, 3).astype(np.uint8)).save(photos / "b.png")
        with pytest.raises(DataError, match=r"a\.jpg must be an image in the format JPEG"):
            predict(shipped["mtl", "onnx"], photos, drawn)
        names = {"b.semseg.png", "b.depth.png", "b.values.npz"}
        assert {path.name for path in drawn.iterdir()} == names

    def test_every_image_whose_pixels_can_be_read_is_drawn(self, shipped, tmp_path) -> None:
        photos, drawn = tmp_path / "photos", tmp_path / "drawn"
        photos.mkdir()
        image = Image.fromarray(images(9, 7, 3).astype(np.uint8))
        texts = PngInfo()
        texts.add_text("note", "a" * 5_000_000, zip=True)
        for name, options in {
            "bad_exif.jpg": {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0"},
            "long_text.png": {"pnginfo": texts},
            "plain.tif": {},
        }.items():
            image.save(photos / name, **options)
        (photos / "link.png").symlink_to(photos / "long_text.png")
        whole = (photos / "long_text.png").read_bytes()
        unreadable = {
            "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0",
            "header.png": whole[:8] + b"\0\0\0\4IHDR" + whole[16:20] + bytes(4) + whole[33:],
            "large.png": whole[:16] + (12_000).to_bytes(4, "big") * 2 + whole[24:],
            "text.bmp": b"no image",
        }
        for name, data in unreadable.items():
            (photos / name).write_bytes(data)
        os.mkfifo(photos / "pipe.webp")
        (photos / "zfolder.png").mkdir()
        with pytest.raises(DataError) as raised:
            predict(shipped["mtl", "onnx"], photos, drawn)
        lines = str(raised.value).splitlines()
        expected = [*unreadable, "pipe.webp", "zfolder.png"]
        assert [line.split(" ")[0] for line in lines] == [
            str(photos / name) for name in sorted(expected)
        ]
        assert {path.name for path in drawn.iterdir()} == {
            f"{stem}.{ending}"
            for stem in ("bad_exif", "long_text", "plain", "link")
            for ending in ("semseg.png", "depth.png", "values.npz")
        }

    def test_an_image_whose_pictures_cannot_be_written_is_listed(self, shipped, tmp_path) -> None:
        photos, drawn = tmp_path / "photos", tmp_path / "drawn"
        photos.mkdir()
        image = Image.fromarray(images(9, 7, 3).astype(np.uint8))
        image.save(photos / "b.png")
        image.save(photos / f"{'a' * 250}.png")
        with pytest.raises(DataError, match=r"^cannot write the pictures of .*File name too long$"):
            predict(shipped["mtl", "onnx"], photos, drawn)
        assert {path.name for path in drawn.iterdir()} == {
            "b.semseg.png", "b.depth.png", "b.values.npz",
        }  # fmt: skip

    @pytest.mark.parametrize("to", ["photos", "link"])
    def test_pictures_do_not_replace_images(self, shipped, tmp_path, to) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        (tmp_path / "link").symlink_to(photos)
        image = Image.fromarray(images(9, 7, 3).astype(np.uint8))
        for name in ("a.jpg", "a.depth.png"):
            image.save(photos / name)
        before = {path.name: path.read_bytes() for path in photos.iterdir()}
        with pytest.raises(UsageError, match=r"that of depth on a\.jpg to be .*a\.depth\.png"):
            predict(shipped["mtl", "onnx"], photos, tmp_path / to)
        assert {path.name: path.read_bytes() for path in photos.iterdir()} == before
        # The picture of an image that is not drawn itself is replaced, as at every second call.
        predict(shipped["mtl", "onnx"], photos / "a.jpg", photos)
        assert (photos / "a.depth.png").read_bytes() != before["a.depth.png"]

    def test_a_folder_that_is_a_loop_of_links_is_an_error_of_the_system(
        self, shipped, tmp_path
    ) -> None:
        image = tmp_path / "a.png"
        Image.fromarray(images(9, 7, 3).astype(np.uint8)).save(image)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(OSError, match="exists"):  # which the command line shows in one line
            predict(shipped["mtl", "onnx"], image, tmp_path / "loop")

    def test_many_unreadable_images_fit_on_a_screen(self, shipped, tmp_path) -> None:
        for i in range(25):
            (tmp_path / f"{i}.jpg").write_text("no image")
        with pytest.raises(DataError, match="and 15 more") as raised:
            predict(shipped["mtl", "onnx"], tmp_path, tmp_path / "drawn")
        assert len(str(raised.value).splitlines()) == 11

    def test_pictures_of_the_same_name_are_refused(self, shipped, tmp_path) -> None:
        photos = tmp_path / "photos"
        photos.mkdir()
        for name in ("a.jpg", "a.b.jpg", "a.png"):
            Image.fromarray(images(9, 7, 3).astype(np.uint8)).save(photos / name)
        with pytest.raises(DataError, match=r"a\.jpg and a\.png, whose pictures"):
            predict(shipped["mtl", "onnx"], photos, tmp_path / "drawn")
        assert not (tmp_path / "drawn").exists()

    def test_classes_are_the_highest_scores(self, shipped) -> None:
        model = read_model(shipped["mtl", "onnx"])
        scores = model.run(images(2, 3, 96, 128))
        labels = model.predict(images(2, 3, 96, 128))
        assert np.array_equal(labels["semseg"], scores[0].argmax(1))
        assert np.array_equal(labels["depth"], scores[1][:, 0])

    @pytest.mark.parametrize("kind", ["text", "cut", "deep"])
    def test_images_that_cannot_be_read(self, shipped, tmp_path, kind) -> None:
        path = tmp_path / "photo.png"
        if kind == "text":
            path.write_text("no image")
        elif kind == "deep":
            Image.fromarray(np.zeros((8, 8), np.uint16)).save(path)
        else:
            Image.fromarray(images(64, 64, 3).astype(np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[:5000])
        message = r"photo\.png (cannot be read|must have 8 bits|must be an image)"
        with pytest.raises(DataError, match=message):
            predict_file(read_model(shipped["mtl", "onnx"]), path)
        assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def record(*trials: Result) -> StudyRecord:
    tasks = (TaskInfo("a", "mIoU", "%", True, "semseg", "classes"),)
    stl = Result("stl", 0, metrics={"validation": {"a": 10.0}}, gflops=3.0)
    return StudyRecord("s", "f", {}, "p", "", tasks, baselines=(stl,), trials=trials)


def trial(number: int, value: float, gflops: float, **options) -> Result:
    metrics = {"validation": {"a": value}}
    return Result("interrogate", 0, number, metrics=metrics, gflops=gflops, **options)


def test_choosing_a_network() -> None:
    kept = record(
        trial(0, 12.0, 2.0), trial(1, 11.0, 1.0, budget="9G"), trial(2, 9.0, 2.5),
        trial(3, 20.0, 1.0, state="failed"),
    )  # fmt: skip
    assert choose(kept, "best").trial == 0
    assert choose(kept, "best", budget="9G").trial == 1
    assert choose(kept, "2").trial == 2
    assert choose(kept, "stl").method == "stl"
    for name, budget in (("3", ""), ("best", "8G"), ("mtan", "")):
        with pytest.raises(UsageError, match=r"it has: (stl, 0|0, 1, 2, stl)"):
            choose(kept, name, budget=budget)
    with pytest.raises(UsageError, match="no finished network 'best'"):
        choose(record(), "best")


def test_export_writes_whole_files_or_none(networks, tmp_path: Path) -> None:
    missing = tmp_path / "absent" / "x.pt2"
    with pytest.raises(OSError, match="absent"):
        write_network(networks["mtl"], card("mtl"), missing, form="pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_part_is_named_once(networks) -> None:
    both = card("trial 1")
    one, own = cut_to_tasks(networks["trial 1"], both, ["depth", "semseg"])
    assert own.network == "trial 1: semseg, depth"
    again, last = cut_to_tasks(one, own, ["depth"])
    assert last.network == "trial 1: depth"
    assert list(again.heads) == list(last.tasks) == ["depth"]
    assert last.params_m * 1e6 == pytest.approx(sum(p.numel() for p in again.parameters()))


def test_a_plain_network_is_not_cut(networks) -> None:
    with pytest.raises(UsageError, match=r"cuts compact networks, .* mtl, a plain MultiTaskNet"):
        cut_to_tasks(networks["mtl"], card("mtl"), ["depth"])
