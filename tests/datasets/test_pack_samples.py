"""`gatesearch.pack`: torch Datasets, Hugging Face, WebDataset, iterables; every frame by value."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

import gatesearch as gs
from gatesearch.datasets import DATASETS, check_pack, ensure_pack
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks import TASKS
from gatesearch.tasks.labels import Storage
from gatesearch.tasks.task import Kind
from gatesearch.trials.context import open_data

SIZE = (4, 6)
CLASSES = 3
MASK = {"mask": {"kind": "semseg", "classes": CLASSES}}


def image_of(number):
    return np.random.default_rng(number).integers(0, 256, (*SIZE, 3), np.uint8)


def mask_of(number):
    return np.random.default_rng([1, number]).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)


class Photos(Dataset):
    """At the top of a module, so that other processes can be given it."""

    def __init__(self, count=6, *, start=0, broken=()):
        self.count, self.start, self.broken = count, start, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise OSError(f"no file {index}.jpg")
        number = self.start + index
        return {"image": image_of(number), "mask": mask_of(number)}


class Numbers(Kind):
    """A kind of two numbers per image, with a text for one that is not known."""

    storage: ClassVar[Storage] = Storage("<f4", (2,), dense=False)
    unknown_value: ClassVar[float] = float("nan")

    def encode(self, raw, *, size=None):
        if raw.dtype.kind in "US":
            raw = np.array([np.nan if text == "" else float(text) for text in raw])
        return raw.astype("<f4")


@pytest.fixture
def numbers(monkeypatch):
    monkeypatch.setitem(TASKS, "numbers", Numbers)


def images(pack, split):
    return np.asarray(pack.array(split, "image"))


def check_frames(pack, split, numbers, *, field="mask"):
    assert pack.frames(split) == len(numbers)
    for place, number in enumerate(numbers):
        np.testing.assert_array_equal(pack.array(split, "image")[place], image_of(number))
        np.testing.assert_array_equal(pack.array(split, field)[place], mask_of(number))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_torch_dataset_frame_by_frame(tmp_path):
    made = gs.pack(
        Photos(), MASK, to=tmp_path / "photos", test=Photos(2, start=10),
        validation=Photos(1, start=20),
    )  # fmt: skip
    check_frames(made, "train", range(6))
    check_frames(made, "test", (10, 11))
    check_frames(made, "validation", (20,))
    assert made.ids("train")[:2] == ("train-0", "train-1")
    assert made.fields["mask"].kind == "semseg"
    assert check_pack(tmp_path / "photos").digest == made.digest
    assert left_in(tmp_path) == ["photos"]


@pytest.mark.slow("processes")
def test_several_processes_give_the_same_bytes(tmp_path):
    one = gs.pack(Photos(), MASK, to=tmp_path / "one", test=0.4)
    two = gs.pack(Photos(), MASK, to=tmp_path / "two", test=0.4, processes=2)
    assert one.digest == two.digest


def test_what_cannot_be_given_to_processes_is_said(tmp_path):
    with pytest.raises(UsageError, match=r"picklable.*set processes=1"):
        gs.pack([{"image": lambda: 0}], MASK, to=tmp_path / "p", test=Photos(1), size=SIZE,
                processes=2)  # fmt: skip
    assert left_in(tmp_path) == []


def test_fractions_are_drawn_by_seed_alone_and_are_disjoint(tmp_path):
    parts = ("train", "validation", "test")
    packs = [
        gs.pack(Photos(10), MASK, to=tmp_path / f"p{i}", validation=0.2, test=0.3, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    ids = [{part: made.ids(part) for part in parts} for made in packs]
    assert [len(ids[0][part]) for part in parts] == [5, 2, 3]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(id_ for part in parts for id_ in ids[0][part]) == [str(i) for i in range(10)]
    for part in parts:
        check_frames(packs[0], part, [int(id_) for id_ in ids[0][part]])


def test_an_iterable_is_read_once(tmp_path):
    read = []

    def stream(count):
        for number in range(count):
            read.append(number)
            yield {"image": image_of(number), "mask": mask_of(number)}

    class Streamed(IterableDataset):
        def __iter__(self):
            return stream(4)

    made = gs.pack(stream(5), MASK, to=tmp_path / "p", test=Streamed())
    assert read == [*range(5), *range(4)]
    check_frames(made, "train", range(5))
    check_frames(made, "test", range(4))
    drawn = gs.pack(stream(5), MASK, to=tmp_path / "q", test=0.4)
    check_frames(drawn, "test", [int(id_) for id_ in drawn.ids("test")])
    assert sorted(drawn.ids("train") + drawn.ids("test")) == [str(i) for i in range(5)]
    assert left_in(tmp_path) == ["p", "q"]


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_hugging_face(tmp_path):
    hf = pytest.importorskip("datasets", reason="needs the extra huggingface")
    features = hf.Features({"picture": hf.Image(), "seg": hf.Image()})

    def table(numbers):
        rows = {
            "picture": [{"bytes": png(image_of(n))} for n in numbers],
            "seg": [{"bytes": png(mask_of(n))} for n in numbers],
        }
        return hf.Dataset.from_dict(rows, features=features)

    tasks = {"mask": {**MASK["mask"], "label": "seg"}}
    both = hf.DatasetDict(train=table(range(3)), test=table((7, 8)))
    made = gs.pack(both, tasks, to=tmp_path / "dict", image="picture")
    check_frames(made, "train", range(3))
    check_frames(made, "test", (7, 8))
    streamed = table(range(3)).to_iterable_dataset()
    again = gs.pack(streamed, tasks, to=tmp_path / "stream", test=both["test"], image="picture")
    tensors = {name: part.with_format("torch") for name, part in both.items()}
    third = gs.pack(tensors, tasks, to=tmp_path / "torch", image="picture")
    assert made.digest == again.digest == third.digest


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # of webdataset, which closes no shard
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("decoded", [False, True])
def test_webdataset(tmp_path, numbers, decoded):
    wds = pytest.importorskip("webdataset", reason="needs the extra webdataset")
    shard = tmp_path / "shard-0.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(4):
            parts = {
                "png": png(image_of(number)), "mask.png": png(mask_of(number)),
                "npy": _npy(np.array([number, 0.5])), "cls": b"%d" % number,
            }  # fmt: skip
            for name, data in parts.items():
                info = tarfile.TarInfo(f"photo{number}.{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    stream = wds.WebDataset(str(shard), shardshuffle=False)
    tasks = {"mask": {**MASK["mask"], "label": "mask.png"}}
    if decoded:
        stream = stream.decode(wds.imagehandler("rgb8", ["png"]))
        stream = stream.map(lambda sample: sample | {"mask.png": mask_of(sample["cls"])})
        tasks["pair"] = {"kind": "numbers", "label": "npy"}
    made = gs.pack(stream, tasks, to=tmp_path / "p", test=0.25, image="png")
    assert sorted(made.ids("train") + made.ids("test")) == [f"photo{i}" for i in range(4)]
    for part in ("train", "test"):
        check_frames(made, part, [int(id_[-1]) for id_ in made.ids(part)])
    if decoded:
        pairs = made.array("train", "pair")
        assert pairs.tolist() == [[int(id_[-1]), 0.5] for id_ in made.ids("train")]


def _npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GREY = image_of(0)[..., 0]
RGB = image_of(0)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (torch.from_numpy(RGB).movedim(-1, 0), RGB),
        (torch.from_numpy(RGB), RGB),
        (np.moveaxis(RGB, -1, 0), RGB),
        (torch.from_numpy(RGB).movedim(-1, 0) / 255, RGB),
        ((RGB / 255).astype(np.float16), RGB),
        (torch.from_numpy(RGB / 255).bfloat16(), None),
        (GREY, np.stack([GREY] * 3, -1)),
        (GREY[..., None], np.stack([GREY] * 3, -1)),
        (torch.from_numpy(GREY)[None], np.stack([GREY] * 3, -1)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), np.stack([GREY] * 3, -1)),
        (Image.fromarray(RGB).convert("CMYK"), RGB),
        (Image.fromarray(RGB).convert("RGBA"), RGB),
        (png(RGB), RGB),
        (bytearray(png(RGB)), RGB),
    ],
)
def test_images_of_every_form(tmp_path, image, expected):
    sample = {"image": image, "mask": mask_of(0)}
    made = gs.pack([sample], MASK, to=tmp_path / "p", test=[sample])
    if expected is None:  # rounded to 8 bits of mantissa
        assert np.abs(images(made, "train")[0].astype(int) - RGB).max() <= 1
    else:
        np.testing.assert_array_equal(images(made, "train")[0], expected)


def test_both_ends_of_a_shape_may_be_channels(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    samples = [{"image": values}, {"image": torch.from_numpy(values)}]
    parts = {}
    for name, sample in zip(("array", "tensor"), samples, strict=True):
        made = gs.pack([sample], MASK, to=tmp_path / name, test=[sample])
        parts[name] = images(made, "train")[0]
    np.testing.assert_array_equal(parts["array"], values)
    np.testing.assert_array_equal(parts["tensor"], values.transpose(1, 2, 0))


def test_the_content_of_a_photo_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG", exif=exif)
    sample = {"image": file.getvalue(), "mask": np.rot90(mask_of(0), -1)}
    made = gs.pack([sample], MASK, to=tmp_path / "p", test=[sample])
    np.testing.assert_array_equal(images(made, "train")[0], np.rot90(RGB, -1))


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0)), "floats in 0..1"),
        (RGB / 255 * np.nan, r"floats in 0\.\.1, found nan"),
        (RGB.astype(np.int64), "must be uint8, or floats in 0..1, found int64"),
        (RGB.astype(np.uint16) * 257, "found uint16"),
        (np.zeros((*SIZE, 4), np.uint8), r"1 or 3 channels, found the shape \(4, 6, 4\)"),
        (np.zeros((2, *SIZE, 3), np.uint8), r"found the shape \(2, 4, 6, 3\)"),
        (np.zeros((0, 6, 3), np.uint8), r"must have pixels, found the shape \(0, 6, 3\)"),
        (np.array([["a"]]), "plain numbers, found numpy.ndarray of <U1"),
        ("photos/1.jpg", "plain numbers, found str"),
        (None, "plain numbers, found NoneType"),
        (b"GIF89a", "must be an image in the format"),
        (png(RGB)[:-20], "cannot be read as an image"),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "8 bits a channel"),
    ],
)
def test_bad_images_are_named_by_sample_and_key(tmp_path, image, found):
    good = {"image": RGB, "mask": mask_of(0)}
    bad = {"image": image, "mask": mask_of(0)}
    with pytest.raises(DataError, match=rf"(?s)sample train-1: 'image' .*{found}") as error:
        gs.pack([good, bad], MASK, to=tmp_path / "p", test=[good])
    assert "\n" not in str(error.value)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "label",
    [
        mask_of(0),
        torch.from_numpy(mask_of(0)),
        torch.from_numpy(mask_of(0))[None].long(),
        mask_of(0)[..., None],
        Image.fromarray(mask_of(0)),
        Image.fromarray(mask_of(0), "P"),
        png(mask_of(0)),
        _npy(mask_of(0).astype(np.int64)),
        mask_of(0).tolist(),
    ],
)
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_labels_of_pixels_of_every_form(tmp_path, label):
    sample = {"image": RGB, "mask": label}
    made = gs.pack([sample], MASK, to=tmp_path / "p", test=[sample])
    np.testing.assert_array_equal(made.array("train", "mask")[0], mask_of(0))


@pytest.mark.parametrize(
    ("label", "found"),
    [
        (np.full(SIZE, 7), r"values must be 0 to 2.*found 7 \(24 pixels\)"),
        (np.zeros((6, 4), np.uint8), r"as large as its image, 4 x 6, found the shape \(6, 4\)"),
        (png(RGB), "one value per pixel"),
        ("masks/1.png", "plain numbers, found str"),
        (_npy(mask_of(0))[:-3], "is no whole .npy file"),
        (_npy(np.array([{}], object)), "is no whole .npy file"),
    ],
)
def test_bad_labels_are_named(tmp_path, label, found):
    good, bad = {"image": RGB}, {"image": RGB, "mask": label}
    with pytest.raises(DataError, match=rf"sample train-1: 'mask' .*{found}"):
        gs.pack([good, bad], MASK, to=tmp_path / "p", test=[good])
    assert left_in(tmp_path) == []


def test_a_label_in_a_lossy_file_is_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(mask_of(0)).save(file, "JPEG")
    for label in (file.getvalue(), Image.open(file)):
        sample = {"image": RGB, "mask": label}
        with pytest.raises(DataError, match=r"keeps? every number.*found JPEG"):
            gs.pack([sample], MASK, to=tmp_path / "p", test=[sample])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, 2.5], [1, 2.5]),
        ((True, False), [1, 0]),
        (np.array([3, 4]), [3, 4]),
        (torch.tensor([0.5, 0.25]).bfloat16(), [0.5, 0.25]),
        ([torch.tensor(1.0), np.float32(2)], [1, 2]),
        (["1", "2"], [1, 2]),
        ([None, 2], [np.nan, 2]),
        (None, [np.nan, np.nan]),
    ],
)
def test_labels_of_images_of_every_form(tmp_path, numbers, value, expected):
    sample = {"image": RGB, "pair": value}
    tasks = {"pair": {"kind": "numbers"}}
    made = gs.pack([sample], tasks, to=tmp_path / "p", test=[sample])
    np.testing.assert_array_equal(made.array("train", "pair")[0], np.float32(expected))
    labelled = made.labelled("train", "pair")
    assert (labelled is None) == (value is not None)


def test_labels_of_images_of_the_kinds_that_have_them(tmp_path):
    samples = [
        {
            "image": image_of(i), "cls": i % 3, "animal": ["cat", "dog"][i % 2], "age": 20.5 + i,
            "worn": [1, 0, None],
        }
        for i in range(6)
    ]  # fmt: skip
    tasks = {
        "number": {"kind": "classification", "classes": 3, "label": "cls"},
        "animal": {"kind": "classification", "classes": ["cat", "dog"]},
        "worn": {"kind": "attributes", "names": ["hat", "tie", "shoes"]},
        "age": {"kind": "regression"},
    }
    made = gs.pack(samples, tasks, to=tmp_path / "p", test=1 / 6)
    numbers = list(map(int, made.ids("train")))
    assert made.array("train", "number").tolist() == [i % 3 for i in numbers]
    assert made.array("train", "animal").tolist() == [i % 2 for i in numbers]
    assert made.array("train", "worn").tolist() == [[1, 0, 255]] * 5
    assert made.array("train", "age").reshape(-1).tolist() == [20.5 + i for i in numbers]
    assert made.fields["animal"].class_names == ("cat", "dog")
    assert made.fields["worn"].class_names == ("hat", "tie", "shoes")


def test_places_are_stored_relative_to_the_image(tmp_path):
    """Worked out by hand; centres of pixels are half a pixel away from the border."""
    large = np.zeros((2 * SIZE[0], 2 * SIZE[1], 3), np.uint8)
    places = np.array([1.0, 2.0, 4.5, 3.0])
    samples = [
        {"image": RGB, "points": places.tolist()},
        {"image": large, "points": 2 * places + 0.5},
    ]
    tasks = {"points": {"kind": "keypoints", "count": 2}}
    made = gs.pack(samples, tasks, to=tmp_path / "p", test=samples, size=SIZE)
    expected = [[-0.5, 0.25, 1], [2 / 3, 0.75, 1]]
    for label in made.array("train", "points"):
        np.testing.assert_allclose(label, expected, atol=1e-6)


def test_labels_may_be_missing(tmp_path):
    samples = [Photos()[0], {"image": image_of(1)}, {"image": image_of(2), "mask": None}]
    made = gs.pack(samples, MASK, to=tmp_path / "p", test=Photos(1))
    assert made.labelled("train", "mask").tolist() == [True, False, False]
    assert (made.array("train", "mask")[1:] == 255).all()
    assert made.manifest.splits["train"].labelled == {"mask": 1}


@pytest.mark.parametrize("streamed", [False, True])
def test_all_bad_samples_are_named_and_nothing_is_written(tmp_path, streamed):
    broken = Photos(12, broken=(0, 3, 11))
    samples = (broken[i] if i != 3 else {"image": 5} for i in (1, 3, 2, 3)) if streamed else broken
    with pytest.raises(DataError) as error:
        gs.pack(samples, MASK, to=tmp_path / "p", test=Photos(1))
    lines = str(error.value).splitlines()
    if streamed:
        assert lines[0] == "2 of 4 frames are faulty:"
        assert [line.split(":")[0] for line in lines[1:]] == [
            "  sample train-1",
            "  sample train-3",
        ]
    else:
        assert lines == [
            "3 of 13 frames are faulty:",
            *(f"  sample train-{i} cannot be read (OSError: no file {i}.jpg)" for i in (0, 3, 11)),
        ]
    assert left_in(tmp_path) == []


def test_faults_are_bounded(tmp_path):
    with pytest.raises(DataError) as error:
        gs.pack(Photos(500, broken=range(1, 500)), MASK, to=tmp_path / "p", test=Photos(1))
    lines = str(error.value).splitlines()
    assert lines[0] == "100 or more of 501 frames are faulty:"
    assert lines[-1] == "  and 80 more"
    assert len(lines) == 22


def test_sizes(tmp_path):
    small = {"image": np.zeros((2, 3, 3), np.uint8), "mask": np.zeros((2, 3), np.uint8)}
    with pytest.raises(DataError, match=r"sample train-1 is 2 x 3, the first one 4 x 6; give"):
        gs.pack([Photos()[0], small], MASK, to=tmp_path / "p", test=Photos(1))
    made = gs.pack([Photos()[0], small], MASK, to=tmp_path / "p", test=Photos(1), size=(4, 6))
    assert made.size == SIZE
    np.testing.assert_array_equal(images(made, "train")[0], image_of(0))
    for size in ((0, 4), (4,), (4, 4, 4)):
        with pytest.raises(UsageError, match="size must be height and width"):
            gs.pack(Photos(), MASK, to=tmp_path / "p", test=0.5, size=size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a pack needs a test part"),
        ({"test": 1.5}, "a fraction between 0 and 1 of the training part, found 1.5"),
        ({"test": 2}, "found 2"),
        ({"test": True}, "found True"),
        ({"test": "photos"}, "test must be a data set .* found str"),
        ({"test": 0.9, "validation": 0.5}, "must leave samples to train on: 8 of 6"),
        ({"test": []}, "the test part has no samples"),
        ({"test": 0.5, "tasks": {}}, "at least 1 item"),
        ({"test": 0.5, "tasks": {"a/b": {"kind": "semseg"}}}, "a task's name must be"),
        ({"test": 0.5, "tasks": {"a": {"kind": "semsg"}}}, "unknown kind of tasks.a 'semsg'"),
        ({"test": 0.5, "tasks": {"a": {"kind": "depth", "scael": 1}}}, "did you mean 'scale'"),
        ({"test": 0.5, "dataset": {"train": [], "dev": []}}, "unknown part 'dev'"),
        ({"test": 0.5, "dataset": {"test": []}}, "needs the key 'train'"),
        ({"test": 0.5, "dataset": {"train": [], "test": []}}, "by the mapping and by test="),
        ({"test": 0.5, "dataset": 5}, "train must be a data set .* found int"),
        ({"test": 0.5, "processes": 0}, "processes must be at least 1"),
    ],
)  # fmt: skip
def test_wrong_use(tmp_path, arguments, message):
    given = {"dataset": Photos(), "tasks": MASK, **arguments}
    with pytest.raises((UsageError, DataError), match=message):
        gs.pack(given.pop("dataset"), given.pop("tasks"), to=tmp_path / "p", **given)
    assert left_in(tmp_path) == []


def test_a_full_disk_while_an_iterable_is_read(tmp_path):
    from tests.datasets.test_pack_writer import files_of_at_most

    with files_of_at_most(100), pytest.raises(DataError, match="cannot write"):
        gs.pack(iter([Photos()[0]]), MASK, to=tmp_path / "p", test=Photos(1))
    assert left_in(tmp_path) == []


STUDY = """
name = "mine"
methods = ["stl", "mtl"]
report_frames = 1
[protocol]
name = "mine"
size = [32, 32]
[tasks.mask]
kind = "semseg"
classes = 3
[tasks.far]
kind = "depth"
[data]
dataset = "pack"
path = "PATH"
validation = 2
[model]
backbone = "resnet18"
width = 0.0625
output_stride = 32
head = "light"
head_channels = 8
[training]
epochs = 1
batch_size = 4
lr = 2e-3
memory_format = "nhwc"
precision = "fp32"
"""


def make_pack(folder):
    rng = np.random.default_rng(0)
    samples = [
        {
            "image": rng.integers(0, 256, (32, 32, 3), np.uint8),
            "mask": rng.integers(0, 3, (32, 32)),
            "far": rng.uniform(1, 5, (32, 32)) if i != 3 else None,
        }
        for i in range(12)
    ]
    tasks = {"mask": {"kind": "semseg", "classes": CLASSES}, "far": {"kind": "depth"}}
    return gs.pack(samples, tasks, to=folder, test=0.25)


def write_study(folder, path):
    folder.mkdir(exist_ok=True)
    (folder / "mine.toml").write_text(STUDY.replace("PATH", str(path)))
    return gs.load_study(folder / "mine.toml")


def test_a_study_names_a_pack_beside_its_file_or_in_the_data_folder(tmp_path):
    made = make_pack(tmp_path / "here" / "packs" / "mine")
    beside = write_study(tmp_path / "here", "packs/mine")
    away = write_study(tmp_path / "away", "mine")
    absolute = write_study(tmp_path / "other", tmp_path / "here" / "packs" / "mine")
    for study, data in ((beside, "none"), (away, "here/packs"), (absolute, "none")):
        opened = open_data(study, data=tmp_path / data, emit=lambda event: None)
        assert opened.description["sha256"] == made.digest
        assert (len(opened.train), len(opened.validation), len(opened.test)) == (7, 2, 3)
    with pytest.raises(DataError, match=r"no .*none/mine\.\nWrite a pack with Python: gatesearch"):
        ensure_pack(DATASETS["pack"], away, data=tmp_path / "none", emit=lambda event: None)
    nameless = gs.load_study(write_study(tmp_path / "no", "x").folder / "mine.toml")
    nameless.data.__pydantic_extra__.clear()
    with pytest.raises(UsageError, match="missing key 'path'"):
        ensure_pack(DATASETS["pack"], nameless, data=tmp_path, emit=lambda event: None)


@pytest.mark.slow("whole run")
def test_a_run_on_a_pack_beside_the_study(tmp_path):
    make_pack(tmp_path / "mine")
    write_study(tmp_path, "mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "gatesearch", "run", "--study", str(tmp_path / "mine.toml"),
         "--n-trials", "0", "--workers", "2", "--json"],
        cwd=elsewhere, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"method": "mtl"' in done.stdout


@pytest.mark.slow("processes")
def test_a_script_of_its_own_with_processes(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import gatesearch as gs
from tests.datasets.test_pack_samples import MASK, Photos

class Own(Photos):
    pass

def main():
    print(gs.pack(Own(), MASK, to="packed", test=0.5, processes=2).digest)

if __name__ == "__main__" or len(sys.argv) > 1:
    main()
""")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = gs.pack(Photos(), MASK, to=tmp_path / "one", test=0.5).digest
    assert done.stdout.strip() == expected
    unguarded = script.read_text().replace('if __name__ == "__main__" or', "if True or")
    script.write_text(unguarded)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert 'if __name__ == "__main__":' in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("size", [None, (8, 12)])
def test_places_of_points_are_in_pixels_of_the_sample(tmp_path, size):
    # The frame is 6 pixels wide and 4 high; centres of its pixels lie at (2 i + 1) / n - 1.
    points = [[0, 3], [5, 0]]
    samples = [{"image": image_of(i), "points": torch.tensor(points)} for i in range(3)]
    kind = {"points": {"kind": "keypoints", "count": 2}}
    made = gs.pack(samples, kind, to=tmp_path / "points", test=0.4, size=size)
    expected = [[1 / 6 - 1, 7 / 4 - 1, 1], [11 / 6 - 1, 1 / 4 - 1, 1]]
    for split in ("train", "test"):
        for found in made.array(split, "points"):
            np.testing.assert_allclose(found, expected, rtol=1e-6)
