"""Multi-Fashion: pairs by value, every form of the files, what is refused, the real release."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, check_pack
from gatesearch.datasets.multi_fashion import OFFICIAL, overlap, pairs, read_idx
from gatesearch.errors import DataError
from gatesearch.methods import build_model
from gatesearch.trials.data import open_data
from tests.nyud_layouts import packed

MULTI_FASHION = DATASETS["multi-fashion"]
COUNTS = {"train": 12, "t10k": 5}


def idx(values):
    """Bytes of an IDX file, written out apart from the reader."""
    shape = b"".join(length.to_bytes(4, "big") for length in values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()


def garments(prefix):
    """Images (N, 28, 28), each of one brightness, and their classes (N,)."""
    count = COUNTS[prefix]
    values = np.arange(1, count + 1, dtype=np.uint8) * (20 if prefix == "train" else 40)
    return np.broadcast_to(values[:, None, None], (count, 28, 28)), np.arange(count) % 10


def write_fashion(root, *, compressed=True):
    root.mkdir(parents=True)
    for prefix in COUNTS:
        for kind, values in zip(("images-idx3", "labels-idx1"), garments(prefix), strict=True):
            data = idx(values)
            name = f"{prefix}-{kind}-ubyte" + (".gz" if compressed else "")
            (root / name).write_bytes(gzip.compress(data) if compressed else data)
    return root


def prepare(data, source, **asked):
    folder = MULTI_FASHION.prepare(
        folder=data, source=source, request=PackRequest(**asked), emit=lambda event: None
    )
    return check_pack(folder)


def test_a_pixel_has_the_brighter_of_both():
    first, second = np.zeros((28, 28), np.uint8), np.full((28, 28), 7, np.uint8)
    first[0, 0], first[8, 8], first[27, 27] = 50, 60, 5
    image = overlap(first, second)
    assert image.shape == (36, 36, 3)
    assert (image[..., 0] == image[..., 2]).all()
    assert (image[0, 0, 0], image[8, 8, 0], image[27, 27, 0]) == (50, 60, 7)
    assert (image[35, 35, 0], image[0, 35, 0], image[7, 9, 0], image[8, 28, 0]) == (7, 0, 0, 7)


def test_pairs_by_value(tmp_path):
    pack = prepare(tmp_path / "data", write_fashion(tmp_path / "fashion"))
    assert (pack.frames("train"), pack.frames("test"), pack.size) == (12, 5, (36, 36))
    partners = pairs(12, "train")
    assert sorted(partners) == list(range(12))
    for index, partner in enumerate(partners):
        image = pack.array("train", "image")[index]
        assert image[0, 0].tolist() == [20 * (index + 1)] * 3
        assert image[35, 35, 0] == 20 * (partner + 1)
        assert image[18, 18, 0] == 20 * (max(index, partner) + 1)
        assert pack.array("train", "upper_left")[index] == index % 10
        assert pack.array("train", "lower_right")[index] == partner % 10
    assert pack.manifest.notes == (
        "train: 12 of the 60000 official frames", "test: 5 of the 10000 official frames"
    )  # fmt: skip


def test_pairs_of_a_part_are_those_of_the_whole(tmp_path):
    source = write_fashion(tmp_path / "fashion")
    whole, part = prepare(tmp_path / "a", source), prepare(tmp_path / "b", source, train_frames=4)
    np.testing.assert_array_equal(part.array("train", "image"), whole.array("train", "image")[::3])
    assert part.ids("train") == whole.ids("train")[::3]
    assert prepare(tmp_path / "c", source, size=(18, 18)).array("test", "image").shape[1] == 18


@pytest.mark.parametrize("shape", ["plain", "nested", "tgz", "zip"])
def test_every_kind_of_source_gives_the_same_pack(tmp_path, shape):
    folder = write_fashion(tmp_path / "outer" / "fashion", compressed=shape != "plain")
    sources = {"plain": folder, "nested": folder.parent}
    source = sources.get(shape) or packed(folder, tmp_path / f"fashion.{shape}")
    other = write_fashion(tmp_path / "other")
    assert prepare(tmp_path / "a", source).digest == prepare(tmp_path / "b", other).digest


@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        ("train-images-idx3", lambda data: None, "holds no Fashion-MNIST layout"),
        ("train-images-idx3", lambda data: data[:-1], "must be an IDX file of bytes with 3 axes"),
        ("train-images-idx3", lambda data: b"", "0 bytes that begin with nothing"),
        ("train-labels-idx1", lambda data: data[:6], "with 1 axes"),
        ("t10k-labels-idx1", lambda data: data[:-1] + b"\x0a", "class from 0 to 9 .* up to 10"),
        ("t10k-labels-idx1", lambda data: idx(np.zeros(4)), "each of 5 images, found 4"),
        ("t10k-images-idx3", lambda data: idx(np.zeros((5, 8, 8))), r"28 x 28, found \(5, 8, 8\)"),
        ("t10k-images-idx3", lambda data: idx(np.zeros((0, 28, 28))), r"found \(0, 28, 28\)"),
        ("t10k-images-idx3", lambda data: gzip.compress(data)[:-9], "is damaged"),
        ("t10k-images-idx3", lambda data: b"\x1f\x8bnothing", "is damaged"),
    ],
)
def test_a_bad_copy_is_named(tmp_path, name, change, found):
    root = write_fashion(tmp_path / "fashion", compressed=False)
    path = root / f"{name}-ubyte"
    changed = change(path.read_bytes())
    path.unlink() if changed is None else path.write_bytes(changed)
    with pytest.raises(DataError, match=found) as error:
        prepare(tmp_path / "data", root)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


@pytest.fixture
def real_garments():
    """The real files, in `../shared` or where GATESEARCH_FASHION_SOURCE says."""
    beside = Path(__file__).parents[3] / "shared" / "data" / "fashion-mnist"
    folder = Path(os.environ.get("GATESEARCH_FASHION_SOURCE", beside))
    if not folder.is_dir():
        pytest.skip("no Fashion-MNIST; name its folder with GATESEARCH_FASHION_SOURCE")
    return folder


@pytest.mark.data
def test_real_garments(tmp_path, real_garments):
    labels = read_idx(real_garments / "t10k-labels-idx1-ubyte.gz", axes=1)
    assert np.bincount(labels).tolist() == [1000] * 10
    pack = prepare(tmp_path / "data", real_garments, train_frames=600, test_frames=500)
    assert pack.manifest.notes == ()
    assert (pack.frames("train"), pack.frames("test")) == (600, 500)
    assert pack.entry("upper_left").class_names[9] == "ankle boot"
    # every twentieth image of the test part, beside its partner
    chosen, partners = np.arange(0, 10_000, 20), pairs(OFFICIAL["test"], "test")
    np.testing.assert_array_equal(pack.array("test", "upper_left"), labels[chosen])
    np.testing.assert_array_equal(pack.array("test", "lower_right"), labels[partners[chosen]])
    bright = pack.array("test", "image")[..., 0].mean((1, 2))
    assert 40 < bright.mean() < 90  # of garments of 73 on average that cover 28 x 28 of 36 x 36


def test_a_step_of_the_study_lowers_the_loss_of_both_tasks(tmp_path):
    torch.manual_seed(0)
    small = ["data.train_frames=0", "data.validation=2", "training.batch_size=2"]
    study = load_study("multi-fashion", small)
    source = write_fashion(tmp_path / "fashion")
    MULTI_FASHION.prepare(
        folder=tmp_path / "data",
        source=source,
        request=PackRequest(study.protocol.size),
        emit=lambda event: None,
    )
    opened = open_data(study, data=tmp_path / "data", emit=lambda event: None)
    batch = next(opened.train.in_order(len(opened.train)))
    network = build_model(study, "mtl")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    history = []
    for _ in range(10):
        predictions = network(batch["image"].float() / 255)
        losses = {
            name: task.loss(predictions[name], batch[name]) for name, task in opened.tasks.items()
        }
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert all(history[-1][task] < history[0][task] for task in ("upper_left", "lower_right"))
