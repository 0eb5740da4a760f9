"""Frames of a folder, where their labels lie, in which part they are, without opening an image."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gatesearch.datasets.folder.listing import list_frames
from gatesearch.datasets.folder.options import FolderOptions, FolderSource
from gatesearch.errors import DataError, UsageError
from gatesearch.tasks.labels import Storage

DENSE = SimpleNamespace(storage=Storage("|u1"))
ROW = SimpleNamespace(storage=Storage("<f4", (1,), dense=False))
EVEN = {"train": 0.6, "validation": 0.2, "test": 0.2}


def make(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def source(root, *, labels, rows=(), validation=0, **options):
    options.setdefault("images", "photos/*.jpg")
    return FolderSource(
        name="own", root=root, options=FolderOptions(**options), validation=validation,
        tasks={name: ROW if name in rows else DENSE for name in labels}, labels=labels,
        size=(4, 4),
    )  # fmt: skip


def folder(root, count=10):
    names = [f"f{i}" for i in range(count)]
    make(root, *(f"photos/{n}.jpg" for n in names), *(f"masks/{n}.png" for n in names))
    return root


def ids(listing, part):
    return [frame.id for frame in listing.frames[part]]


def faults(listing):
    return {(fault.kind, fault.count) for fault in listing.faults if not fault.is_warning}


def warnings(listing):
    return {(fault.kind, fault.count) for fault in listing.faults if fault.is_warning}


def test_labels_beside_the_images_do_not_count_as_images_nor_images_as_labels(tmp_path):
    make(tmp_path, *(f"d/f{i}.png" for i in range(6)), *(f"d/f{i}_mask.png" for i in range(6)))
    listing = list_frames(source(tmp_path, labels={"a": "d/{id}_mask.png"}, images="d/f?.png"))
    assert not listing.faults
    assert {f.labels["a"].name for f in listing.all_frames()} == {
        f"f{i}_mask.png" for i in range(6)
    }
    listing = list_frames(source(tmp_path, labels={"a": "d/{id}.png"}, images="d/{id}_mask.png"))
    assert not listing.faults


def test_images_in_folders_have_labels_in_folders(tmp_path):
    names = [f"{scene}/{i}" for scene in ("x", "y/z") for i in range(4)]
    make(tmp_path, *(f"rgb/{n}.JPG" for n in names), *(f"seg/{n}.PNG" for n in names))
    listing = list_frames(source(tmp_path, labels={"a": "seg/{id}.png"}, images="rgb/**/*.jpg"))
    assert not listing.faults
    assert {frame.id for frame in listing.all_frames()} == set(names)


def test_missing_labels_and_missing_images_are_counted_by_name(tmp_path):
    folder(tmp_path, 12)
    for i in range(7):
        (tmp_path / f"photos/f{i}.jpg").unlink()
    (tmp_path / "masks/f11.png").unlink()
    listing = list_frames(source(tmp_path, labels={"a": "masks/{id}.png"}))
    assert faults(listing) == {("labels with no image", 7)}
    assert warnings(listing) == {("images with no label", 1), ("images without this label", 1)}
    text = next(f.found for f in listing.faults if f.kind == "labels with no image")
    assert text == "no image has the id f0, f1, f2, f3, f4 and 2 more"
    assert listing.is_faulty


def test_columns_are_labels_and_an_empty_cell_is_none(tmp_path):
    folder(tmp_path, 10)
    rows = [f"f{i}.jpg,{i % 2},{'' if i < 2 else i}" for i in range(10)] + ["nobody,1,1"]
    (tmp_path / "t.csv").write_text("\n".join(["file,a,b", *rows]))
    labels = {"m": "masks/{id}.png", "b": "t.csv:b", "all": "t.csv:*"}
    listing = list_frames(source(tmp_path, labels=labels, rows=("b", "all")))
    assert not listing.is_faulty
    assert warnings(listing) == {("rows with no image", 1), ("images without this label", 2)}
    by_id = {frame.id: frame.labels for frame in listing.all_frames()}
    assert by_id["f3"]["b"] == ("3",)
    assert by_id["f3"]["all"] == ("1", "3")
    assert by_id["f0"]["all"] == ("0", "")
    assert "b" not in by_id["f0"]


def test_a_column_of_paths_names_files_of_labels(tmp_path):
    folder(tmp_path, 6)
    rows = [f"f{i},../masks/f{i}.png" for i in range(6)]
    make(tmp_path, "lists/t.csv")
    (tmp_path / "lists/t.csv").write_text("\n".join(["id,mask", *rows]))
    listing = list_frames(source(tmp_path, labels={"a": "lists/t.csv:mask"}))
    assert not listing.faults
    assert {f.labels["a"] for f in listing.all_frames()} == set((tmp_path / "masks").iterdir())
    (tmp_path / "masks/f1.png").unlink()
    listing = list_frames(source(tmp_path, labels={"a": "lists/t.csv:mask"}))
    assert faults(listing) == {("missing label", 1)}


def test_a_table_lists_the_frames(tmp_path):
    folder(tmp_path, 8)
    (tmp_path / "t.csv").write_text("id,x\n" + "\n".join(f"f{i},1" for i in (1, 3, 4, 6)))
    listing = list_frames(source(tmp_path, labels={"a": "t.csv:x"}, rows=("a",), table="t.csv"))
    assert not listing.faults
    assert {frame.id for frame in listing.all_frames()} == {"f1", "f3", "f4", "f6"}
    (tmp_path / "t.csv").write_text("id,x\nf1,1\nq,1\nf1,1\nf2,1\nf3,2")
    listing = list_frames(source(tmp_path, labels={"a": "t.csv:x"}, rows=("a",), table="t.csv"))
    assert {kind for kind, _ in faults(listing)} >= {"unknown image", "id twice"}


def test_a_table_of_paths_needs_no_pattern(tmp_path):
    make(tmp_path, *(f"a/b/{i}.jpg" for i in range(3)), "a/c/9.png")
    text = "image,x\na/b/0.jpg,1\na/b/1.jpg,1\n./a/b/2.jpg,0\na/c/9.png,2\na/b/0.jpg,1\na/q.jpg,1"
    (tmp_path / "t.csv").write_text(text)
    listing = list_frames(
        source(tmp_path, labels={"a": "t.csv:x"}, rows=("a",), images="", table="t.csv")
    )
    assert faults(listing) == {("id twice", 1), ("missing image", 1)}
    assert {frame.id for frame in listing.all_frames()} == {"b/0", "b/1", "b/2", "c/9"}


@pytest.mark.parametrize("order", [1, -1])
def test_parts_do_not_depend_on_the_order_of_the_files_on_disk(tmp_path, monkeypatch, order):
    folder(tmp_path, 30)
    expected = list_frames(source(tmp_path, labels={"a": "masks/{id}.png"}))
    real = os.scandir

    class Reordered:
        def __init__(self, path):
            with real(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=order < 0)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *rest):
            return None

    monkeypatch.setattr(os, "scandir", Reordered)
    assert list_frames(source(tmp_path, labels={"a": "masks/{id}.png"})) == expected
    assert [len(expected.frames[p]) for p in ("train", "validation", "test")] == [21, 3, 6]
    reseeded = source(tmp_path, labels={"a": "masks/{id}.png"}, split_seed=1)
    assert list_frames(reseeded).frames != expected.frames


def test_rare_classes_of_a_table_are_in_every_part(tmp_path):
    folder(tmp_path, 40)
    rows = [f"f{i},{'rare' if i in (5, 6, 7) else 'often'}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["id,c", *rows]))
    listing = list_frames(source(tmp_path, labels={"c": "t.csv:c"}, rows=("c",)))
    for part in EVEN:
        assert ("rare",) in {frame.labels["c"] for frame in listing.frames[part]}


def test_disjoint_labels_are_in_every_part(tmp_path):
    make(tmp_path, *(f"photos/f{i}.jpg" for i in range(12)), *(f"m/f{i}.png" for i in range(6)),
         *(f"n/f{i}.png" for i in range(6, 12)))  # fmt: skip
    listing = list_frames(source(tmp_path, labels={"m": "m/{id}.png", "n": "n/{id}.png"}))
    assert not listing.is_faulty
    for part in EVEN:
        assert {task for frame in listing.frames[part] for task in frame.labels} == {"m", "n"}


def test_lists_leave_the_rest_to_the_parts_without_one(tmp_path):
    folder(tmp_path, 10)
    (tmp_path / "test.txt").write_text("f0\nf1\n")
    (tmp_path / "train.txt").write_text("f2\nf3\nf4\nf5\nf6\nf7\n")
    labels = {"a": "masks/{id}.png"}
    only_test = list_frames(source(tmp_path, labels=labels, test="test.txt"))
    assert ids(only_test, "test") == ["f0", "f1"]
    assert len(ids(only_test, "train")) == 7
    both = list_frames(source(tmp_path, labels=labels, test="test.txt", train="train.txt"))
    assert sorted(ids(both, "train") + ids(both, "validation")) == [f"f{i}" for i in range(2, 8)]
    assert len(ids(both, "validation")) == 1
    assert warnings(both) == {("images in no list", 2)}
    only_train = list_frames(source(tmp_path, labels=labels, train="train.txt"))
    assert ids(only_train, "test") == ["f0", "f1", "f8", "f9"]
    number = list_frames(source(tmp_path, labels=labels, test="test.txt", validation=3))
    assert (len(ids(number, "train")), ids(number, "validation")) == (8, [])


def test_a_group_in_two_lists_is_told(tmp_path):
    folder(tmp_path, 10)
    (tmp_path / "test.txt").write_text("f0\nf1\n")
    (tmp_path / "g.csv").write_text("id,g\n" + "\n".join(f"f{i},g{i // 3}" for i in range(10)))
    given = source(tmp_path, labels={"a": "masks/{id}.png"}, test="test.txt", group="g.csv:g")
    assert ("group in several parts", 1) in warnings(list_frames(given))
    drawn = list_frames(replace(given, options=given.options.model_copy(update={"test": ""})))
    group_of = {f"f{i}": i // 3 for i in range(10)}
    by_part = [{group_of[i] for i in ids(drawn, part)} for part in EVEN]
    assert sum(map(len, by_part)) == 4


def test_the_digest_changes_with_any_file(tmp_path):
    folder(tmp_path, 5)
    (tmp_path / "t.csv").write_text("id,x\n" + "\n".join(f"f{i},{i}" for i in range(5)))
    (tmp_path / "test.txt").write_text("f0\n")
    own = source(tmp_path, labels={"a": "masks/{id}.png", "b": "t.csv:x"}, rows=("b",),
                 test="test.txt")  # fmt: skip
    seen = {list_frames(own).digest}
    assert seen == {list_frames(own).digest}
    for name in ("photos/f1.jpg", "masks/f2.png", "t.csv", "test.txt"):
        os.utime(tmp_path / name, ns=(1, 1))
        seen.add(list_frames(own).digest)
    make(tmp_path, "photos/f9.jpg")
    seen.add(list_frames(own).digest)
    assert len(seen) == 6


def test_files_are_no_labels_of_a_kind_with_cells(tmp_path):
    folder(tmp_path, 3)
    with pytest.raises(UsageError, match="not a file per image; name columns"):
        list_frames(source(tmp_path, labels={"a": "masks/{id}.png"}, rows=("a",)))


def test_a_number_of_validation_frames_leaves_frames_to_train_on(tmp_path):
    folder(tmp_path, 10)
    labels = {"a": "masks/{id}.png"}
    assert not list_frames(source(tmp_path, labels=labels, validation=7)).faults
    listing = list_frames(source(tmp_path, labels=labels, validation=8))
    assert [(f.kind, f.found) for f in listing.faults] == [
        ("empty part", "must leave frames to train on, found 8 of 8")]  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "options", "error", "said"),
    [
        ({"a": "t.csv:y"}, {}, DataError, "has no column 'y'"),
        ({"a": "no.csv:y"}, {}, DataError, "no.csv cannot be read"),
        ({"a": "masks/{id}.png"}, {"table": "t.csv", "images": ""}, DataError, "no column 'id'"),
        ({"a": "masks/{id}.png"}, {"group": "t.csv:g"}, DataError, "no column 'g'"),
        ({"a": "masks/{id}.png"}, {"group": "t.csv:n,x"}, UsageError, "one column, found 2"),
        ({"a": "t.csv:n,x"}, {}, UsageError, "need one column of their paths"),
    ],
)
def test_what_cannot_be_read_at_all_is_an_error(tmp_path, labels, options, error, said):
    folder(tmp_path, 3)
    (tmp_path / "t.csv").write_text("n,x\nf0,1\nf1,1\nf2,1")
    with pytest.raises(error) as raised:
        list_frames(source(tmp_path, labels=labels, **options))
    assert said in str(raised.value)
