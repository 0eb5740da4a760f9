"""CelebA: all forms in which it circulates, attributes by value and in groups, what is refused."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest, archives, check_pack
from gatesearch.datasets.celeba import ATTRIBUTES, read_attributes, read_partition
from gatesearch.errors import DataError, UsageError
from gatesearch.trials.data import open_data
from tests.faces import PARTITION, attributes_of, celeba_lists, face, write_celeba
from tests.nyud_layouts import packed

CELEBA = DATASETS["celeba"]


def prepare(data, source, *, size=(16, 12), train=0, test=0):
    request = PackRequest(size, train, test)
    folder = CELEBA.prepare(folder=data, source=source, request=request, emit=lambda event: None)
    return check_pack(folder)


def zip_images(root):
    """Put the images into an archive beside the lists, as the publisher has them."""
    images = root / "img_align_celeba"
    packed(images, root / "img_align_celeba.zip")
    shutil.rmtree(images)
    return root


def copies(tmp_path, form):
    outer = tmp_path / "outer"
    if form == "publisher":
        root = write_celeba(outer, images="Img/img_align_celeba", anno="Anno")
        (root / "Eval").mkdir()
        shutil.move(root / "Anno" / "list_eval_partition.txt", root / "Eval")
        images = packed(root / "Img" / "img_align_celeba", root / "Img" / "img_align_celeba.zip")
        assert images.is_file()
        shutil.rmtree(root / "Img" / "img_align_celeba")
        return root
    if form == "kaggle":
        return write_celeba(outer, csv=True, images="img_align_celeba/img_align_celeba")
    root = write_celeba(outer / "celeba")
    forms = {
        "folder": lambda: root,
        "nested": lambda: outer,
        "zip of images": lambda: zip_images(root),
        "zip of all": lambda: packed(root, tmp_path / "all.zip"),
        "zip of zip": lambda: packed(zip_images(root), tmp_path / "all.zip"),
        "tgz": lambda: packed(root, tmp_path / "all.tgz"),
    }
    return forms[form]()


FORMS = (
    "publisher",
    "kaggle",
    "folder",
    "nested",
    "zip of images",
    "zip of all",
    "zip of zip",
    "tgz",
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_pack(tmp_path, form):
    pack = prepare(tmp_path / "data", copies(tmp_path, form))
    assert pack.digest == prepare(tmp_path / "plain", write_celeba(tmp_path / "b")).digest
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["celeba-aligned"]


def test_the_official_partition_and_attributes_by_value(tmp_path):
    pack = prepare(tmp_path / "data", write_celeba(tmp_path / "a"), size=None)
    assert pack.size == (218, 178)
    assert pack.splits == ("train", "test", "validation")
    assert pack.ids("train") == ("000001", "000002", "000003")
    assert (pack.ids("validation"), pack.ids("test")) == (("000004",), ("000005",))
    for split, names in (("train", ("000001", "000002", "000003")), ("test", ("000005",))):
        expected = np.array([attributes_of(name) == 1 for name in names])
        np.testing.assert_array_equal(pack.array(split, "attributes"), expected)
    colour = np.asarray(face(2))[0, 0].astype(int)
    assert np.abs(pack.array("train", "image")[1].astype(int) - colour).max() <= 3
    assert "validation: 1 of the 19867 official frames" in pack.manifest.notes


def test_columns_of_the_attributes(tmp_path):
    pack = prepare(tmp_path / "data", write_celeba(tmp_path / "a"))
    whole = pack.array("train", "attributes")
    some = pack.array("train", "attributes:Young,Male")
    np.testing.assert_array_equal(some, whole[:, [39, 20]])
    assert pack.entry("attributes:Young,Male").shape == (2,)
    assert pack.entry("attributes:Young,Male").class_names == ("Young", "Male")
    with pytest.raises(
        UsageError, match=r"unknown column of attributes .*'Smilling'; did you mean 'Sm"
    ):
        pack.entry("attributes:Smilling")
    with pytest.raises(UsageError, match="must be named once each, found 'Male,Male'"):
        pack.array("train", "attributes:Male,Male")
    with pytest.raises(UsageError, match="image has no named columns"):
        pack.array("train", "image:Male")


EIGHT = {
    "whole": "Attractive Blurry Chubby Double_Chin Heavy_Makeup Male Oval_Face Pale_Skin Young",
    "eyes": "Bags_Under_Eyes Eyeglasses Narrow_Eyes Arched_Eyebrows Bushy_Eyebrows",
    "hair": "Bald Bangs Black_Hair Blond_Hair Brown_Hair Gray_Hair Receding_Hairline Straight_Hair "
    "Wavy_Hair",
    "mouth": "Big_Lips Mouth_Slightly_Open Smiling Wearing_Lipstick",
    "nose": "Big_Nose Pointy_Nose",
    "beard": "5_o_Clock_Shadow Goatee Mustache No_Beard Sideburns",
    "cheeks": "High_Cheekbones Rosy_Cheeks",
    "worn": "Wearing_Earrings Wearing_Hat Wearing_Necklace Wearing_Necktie",
}


def study_of(tmp_path, tasks):
    """The study celeba-small with other tasks, name -> lines of its table."""
    lines = Path("studies/celeba-small.toml").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("[tasks."))
    end = lines.index("[data]")
    tables = [f'[tasks.{name}]\nkind = "attributes"\n{options}' for name, options in tasks.items()]
    path = tmp_path / "study.toml"
    path.write_text("\n".join([*lines[:start], *tables, *lines[end:]]))
    small = ["training.batch_size=2", "data.train_frames=0"]
    return load_study(path, small)


@pytest.mark.parametrize("form", ["one", "one by label", "eight", "forty", "three"])
def test_forms_of_tasks(tmp_path, form):
    tasks = {
        "one": {"all": "count = 40\n"},
        "one by label": {"two": 'label = "attributes:Male,Young"\ncount = 2\n'},
        "eight": {name: f"names = {names.split()}\n" for name, names in EIGHT.items()},
        "forty": {name: f'names = ["{name}"]\n' for name in ATTRIBUTES},
        "three": {},
    }[form]
    study = study_of(tmp_path, tasks) if tasks else load_study(
        "celeba-small", ["training.batch_size=2", "data.train_frames=0"]
    )  # fmt: skip
    root = write_celeba(tmp_path / "a")
    prepare(tmp_path / "data", root)
    opened = open_data(study, data=tmp_path / "data", emit=lambda event: None)
    assert (len(opened.train), len(opened.validation), len(opened.test)) == (3, 1, 1)
    batch = next(opened.train.in_order(3))
    columns = {"all": ATTRIBUTES, "two": ("Male", "Young")}
    for name, task in opened.tasks.items():
        chosen = columns.get(name) or task.names
        places = [ATTRIBUTES.index(attribute) for attribute in chosen]
        expected = np.array([(attributes_of(f"00000{i}") == 1)[places] for i in (1, 2, 3)])
        np.testing.assert_array_equal(batch[name].numpy(), expected)


def test_the_eight_groups_hold_every_attribute_once():
    assert sorted(" ".join(EIGHT.values()).split()) == sorted(ATTRIBUTES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ('names = ["Smilling"]\n', "unknown column of attributes .*did you mean 'Smiling'"),
        ("count = 3\n", r"labels of \|u1 \(40,\) .* asks for \|u1 \(3,\)"),
        ('label = "attribute"\ncount = 40\n', "did you mean 'attributes'"),
    ],
)
def test_tasks_that_the_attributes_do_not_fit(tmp_path, options, message):
    prepare(tmp_path / "data", write_celeba(tmp_path / "a"))
    study = study_of(tmp_path, {"face": options})
    with pytest.raises((UsageError, DataError), match=message):
        open_data(study, data=tmp_path / "data", emit=lambda event: None)


ATTR, PARTS = "list_attr_celeba.txt", "list_eval_partition.txt"


def edit(name, old, new, count=1):
    def damage(root):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, count))

    return damage


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (edit(ATTR, "5\n", "202599\n"), "a line for each of its 202599 images, found 5"),
        (edit(ATTR, "Smiling", "Smirking"), "name the 40 attributes, Smiling is not once there"),
        (edit(ATTR, "Smiling", "Male"), "name the 40 attributes, Smiling is not once there"),
        (edit(ATTR, "000003.jpg ", "000003.jpg 1 "), "line 5 must have 40 values, found 41"),
        (edit(ATTR, "000002.jpg", "000001.jpg"), r"each image once, found 000001\.jpg twice"),
        (edit(ATTR, "000002.jpg ", "000002.jpg  2 "), "line 4 must have 40 values, found 41"),
        (lambda root: (root / ATTR).write_text(""), "name the 40 attributes, 5_o_Clock_Shadow"),
        (lambda root: (root / ATTR).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (edit(PARTS, "000002.jpg 0", "000002.jpg 3"), "line 2 must be an image and 0, 1 or 2"),
        (edit(PARTS, "000002.jpg 0", "000002.jpg"), "line 2 must be an image and 0, 1 or 2"),
        (edit(PARTS, "000002.jpg 0\n", ""), r"partition\.txt: must list .* lacks 000002\.jpg"),
        (edit(PARTS, "000005.jpg 2", "000005.jpg 0"), r"images of test \(2\), found none"),
        (edit(PARTS, "000002.jpg", "../../2.jpg"), r"begin with a file, .*, found '\.\./"),
        (edit(PARTS, "000003.jpg 0", "000003.jpg 0\n000009.jpg 0"), "attr.*lacks 000009"),
        (lambda root: (root / PARTS).unlink(), "expected list_eval_partition.txt or"),
        (lambda root: shutil.rmtree(root / "img_align_celeba"), "expected img_align_celeba/ or"),
        (lambda root: (root / "img_align_celeba/000003.jpg").unlink(), r"missing .*000003\.jpg"),
        (lambda root: face(1, (9, 9)).save(root / "img_align_celeba/000003.jpg"),
         "000001.jpg has 218 x 178, 000003.jpg has 9 x 9"),
    ],
)  # fmt: skip
def test_a_bad_copy_is_named(tmp_path, damage, found):
    root = write_celeba(tmp_path / "a")
    damage(root)
    with pytest.raises(DataError, match=found) as error:
        prepare(tmp_path / "data", root, size=None)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "data").glob("*"))


def test_a_bad_value_is_named(tmp_path):
    text = (
        celeba_lists()[0]
        .replace("000004.jpg  1", "000004.jpg  7")
        .replace("000004.jpg -1", "000004.jpg  7")
    )
    path = tmp_path / ATTR
    path.write_text(text)
    with pytest.raises(DataError, match="line 6 must have the values 1 and -1, found '7'"):
        read_attributes(path)


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("negative", ["-1", "0"])
def test_spellings_of_csv(tmp_path, ending, delimiter, start, negative):
    attributes, parts = celeba_lists(csv=True)
    attributes = attributes.replace("-1", negative)
    for name, text in (("a.csv", attributes), ("b.csv", parts)):
        text = start + text.replace(",", delimiter).replace("\n", ending)
        (tmp_path / name).write_bytes(text.encode())
    read = read_attributes(tmp_path / "a.csv")
    assert {name: list(row) for name, row in read.items()} == {
        name: (attributes_of(name) == 1).tolist() for name in PARTITION
    }
    assert list(read_partition(tmp_path / "b.csv").values()) == ["train"] * 3 + [
        "validation",
        "test",
    ]


def test_columns_in_another_order(tmp_path):
    path = tmp_path / "a.csv"
    names = sorted(ATTRIBUTES)
    values = ["1" if name in ("Male", "Young") else "-1" for name in names]
    path.write_text("image_id," + ",".join(names) + "\n000001.jpg," + ",".join(values) + "\n")
    row = read_attributes(path)["000001.jpg"]
    assert [ATTRIBUTES[i] for i, value in enumerate(row) if value] == ["Male", "Young"]


def test_the_archive_of_the_release_has_not_too_many_members():
    assert archives.MAX_MEMBERS >= 202_599 + 10


@pytest.mark.slow("many frames")
def test_an_archive_of_many_members(tmp_path):
    path = tmp_path / "img_align_celeba.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        for number in range(1, 20_260):
            zipped.writestr(f"img_align_celeba/img_align_celeba/{number:06d}.jpg", b"")
    archives.unpack(path, tmp_path, emit=lambda event: None)
    assert (tmp_path / "img_align_celeba/img_align_celeba/020259.jpg").is_file()


@pytest.fixture
def real_faces():
    """Real images and lists; GATESEARCH_CELEBA_SOURCE says where."""
    folder = Path(os.environ.get("GATESEARCH_CELEBA_SOURCE", "absent"))
    if not (folder / "img_align_celeba").is_dir():
        pytest.skip("no CelebA; name a folder of it with GATESEARCH_CELEBA_SOURCE")
    return folder


@pytest.mark.data
def test_real_faces(tmp_path, real_faces):
    """Works on the whole release and on any part of it whose lists fit."""
    pack = prepare(tmp_path / "data", real_faces, size=(64, 64), train=200, test=100)
    male = pack.array("train", "attributes:Male")
    assert set(np.unique(male)) <= {0, 1}
    assert 40 < pack.array("train", "image").mean() < 200
    bald = pack.array("train", "attributes:Bald").mean()
    assert bald < 0.3
