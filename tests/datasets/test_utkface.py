"""UTKFace: labels in names, malformed ones too, a split that no copy changes, what is refused."""

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, check_pack
from gatesearch.datasets.utkface import is_test, labels_of
from gatesearch.errors import DataError
from gatesearch.trials.data import open_data
from tests.faces import UTKFACES, face, write_utkface
from tests.nyud_layouts import packed

UTKFACE = DATASETS["utkface"]


def prepare(data, source, *, size=(16, 12)):
    request = PackRequest(size)
    folder = UTKFACE.prepare(folder=data, source=source, request=request, emit=lambda event: None)
    return check_pack(folder)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("100_1_2_20170112213615815.jpg.chip.jpg", ("100", "1", "2")),
        ("100_1_2_20170112213615815.jpg", ("100", "1", "2")),
        ("1_0_4_20170112213615815.JPG", ("1", "0", "4")),
        ("1_0_4_20170112213615815.png", ("1", "0", "4")),
        # The five malformed names of the release.
        ("24_0_1_20170116220224657 .jpg.chip.jpg", ("24", "0", "1")),
        ("55_0_0_20170116232725357jpg.chip.jpg", ("55", "0", "0")),
        ("39_1_20170116174525125.jpg.chip.jpg", ("39", "", "")),
        ("61_1_20170109142408075.jpg.chip.jpg", ("61", "", "")),
        ("61_1_20170109150557335.jpg.chip.jpg", ("61", "", "")),
    ],
)
def test_labels_of_a_name(name, cells):
    assert tuple(labels_of(name).values()) == cells


@pytest.mark.parametrize(
    "name",
    [
        "photo.jpg", "2017011022340900.jpg", "30_2_1_20170112213615815.jpg",
        "30_1_5_20170112213615815.jpg", "-3_1_1_20170112213615815.jpg", "30_1_1_.jpg",
        "131_1_1_20170112213615815.jpg", "1000_1_1_20170112213615815.jpg", "30_1_1_2017/x.jpg",
        "３0_1_1_20170112213615815.jpg", "30_1_1_20170112213615815.jpg\n", "",
    ],
)  # fmt: skip
def test_names_without_labels(name):
    assert labels_of(name) is None


@pytest.mark.parametrize("shape", ["folder", "nested", "deeper", "tgz", "zip"])
def test_every_kind_of_source_gives_the_same_pack(tmp_path, shape):
    folder = write_utkface(tmp_path / "outer" / "data" / "UTKFace")
    sources = {"folder": folder, "nested": folder.parent, "deeper": folder.parents[1]}
    source = sources.get(shape) or packed(folder, tmp_path / f"faces.{shape}")
    pack = prepare(tmp_path / "data", source)
    assert pack.digest == prepare(tmp_path / "plain", folder).digest
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["utkface-aligned"]


def test_labels_by_value(tmp_path):
    pack = prepare(tmp_path / "data", write_utkface(tmp_path / "a"), size=None)
    assert pack.size == (200, 200)
    got = {}
    for split in ("train", "test"):
        arrays = [pack.array(split, field) for field in ("age", "gender", "race")]
        for at, name in enumerate(pack.ids(split)):
            got[name] = tuple(float(array[at].item()) for array in arrays)
    assert set(got) == set(UTKFACES)
    assert got["26_1_2_20170104023102422.jpg.chip.jpg"] == (26, 1, 2)
    assert got["110_1_4_20170110131953975.jpg"] == (110, 1, 4)
    assert got["61_1_20170109142408075.jpg.chip.jpg"] == (61, -1, -1)  # known only in part
    parts = pack.manifest.splits.values()
    labelled = sum((Counter(part.labelled) for part in parts), Counter())
    assert labelled == {"age": 10, "gender": 7, "race": 7}
    assert "10 of the 23708 faces of the release" in pack.manifest.notes
    colour = np.asarray(face(0))[0, 0].astype(int)
    split = "test" if is_test(UTKFACES[0]) else "train"
    image = pack.array(split, "image")[pack.ids(split).index(UTKFACES[0])]
    assert np.abs(image.astype(int) - colour).max() <= 3


def test_the_split_follows_from_the_numbers_in_a_name_alone(tmp_path):
    names = [f"{i % 100}_{i % 2}_{i % 5}_201701121236{i:05d}" for i in range(4000)]
    share = np.mean([is_test(f"{name}.jpg.chip.jpg") for name in names])
    assert 0.18 < share < 0.22
    assert [is_test(f"{n}.jpg.chip.jpg") for n in names] == [is_test(f"{n}.jpg") for n in names]
    # Neither that of other copies nor that of a part of one.
    whole = prepare(tmp_path / "data", write_utkface(tmp_path / "a"))
    less = prepare(tmp_path / "data", write_utkface(tmp_path / "b", UTKFACES[1:]))
    assert set(less.ids("test")) == set(whole.ids("test")) - {UTKFACES[0]}


def test_a_study_reads_the_pack(tmp_path):
    prepare(tmp_path / "data", write_utkface(tmp_path / "a"))
    study = load_study("utkface-small", ["data.validation=3", "training.batch_size=2"])
    opened = open_data(study, data=tmp_path / "data", emit=lambda event: None)
    assert opened.tasks["race"].class_names == ("White", "Black", "Asian", "Indian", "other")
    assert opened.tasks["age"].unit == "years"
    ages = [float(name.partition("_")[0]) for name in UTKFACES if not is_test(name)]
    # The mean is that of the frames to train on, which the validation part is taken from.
    trained = [float(opened.train.labels(i, "age")) for i in range(len(opened.train))]
    held_out = [float(opened.validation.labels(i, "age")) for i in range(3)]
    assert sorted(trained + held_out) == sorted(ages)
    assert opened.tasks["age"].mean == pytest.approx((np.mean(trained),))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda root: face(1).save(root / "holiday.jpg"), r"DATE, found 'holiday\.jpg'; rename"),
        (lambda root: [face(1).save(root / f"{i}.jpg") for i in (1, 2)], r"1\.jpg.* and 1 more"),
        (lambda root: (root / UTKFACES[2]).write_bytes(b"no image"), "26_1_2.* must be an image"),
        (lambda root: (root / UTKFACES[2]).write_bytes(b""), "26_1_2.*must be an image"),
        (lambda root: face(1, (9, 9)).save(root / UTKFACES[2]), "200 x 200, .* has 9 x 9"),
        (lambda root: [path.unlink() for path in root.iterdir()], "expected AGE_GENDER_RACE_DATE"),
        (lambda root: [path.unlink() for path in list(root.iterdir()) if is_test(path.name)],
         "faces for both parts, .* none for test"),
    ],
)  # fmt: skip
def test_a_bad_copy_is_named(tmp_path, damage, found):
    root = write_utkface(tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=found) as error:
        prepare(tmp_path / "data", root, size=None)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


def test_other_files_beside_the_faces_do_not_count(tmp_path):
    root = write_utkface(tmp_path / "a")
    digest = prepare(tmp_path / "data", root).digest
    (root / "README.txt").write_text("about")
    (root / ".DS_Store").write_bytes(b"\0")
    assert prepare(tmp_path / "data", root).digest == digest


@pytest.fixture
def real_faces():
    """The real faces; GATESEARCH_UTKFACE_SOURCE says where."""
    folder = Path(os.environ.get("GATESEARCH_UTKFACE_SOURCE", "absent"))
    if not folder.is_dir():
        pytest.skip("no UTKFace; name its folder with GATESEARCH_UTKFACE_SOURCE")
    return folder


@pytest.mark.data
def test_real_faces(tmp_path, real_faces):
    paths = [path for path in real_faces.rglob("*_*_*.jpg") if path.stat().st_size]
    some = sorted(paths)[:: max(1, len(paths) // 200)]
    (tmp_path / "some").mkdir()
    for path in some:
        shutil.copy(path, tmp_path / "some")
    pack = prepare(tmp_path / "data", tmp_path / "some", size=(32, 32))
    ages = np.concatenate([pack.array(split, "age") for split in ("train", "test")])
    assert 25 < ages.mean() < 45
    assert sum(pack.frames(split) for split in ("train", "test")) == len(some)
