"""Packs: checked on the way in, never a way out of their folder."""

import hashlib
import json
import os

import numpy as np
import pytest

from gatesearch.datasets.pack_reader import check_pack, open_pack
from gatesearch.errors import DataError
from gatesearch.tasks import TASKS
from gatesearch.tasks.depth import Depth
from gatesearch.tasks.labels import Storage
from tests.datasets.toys import SIZE, frame, write


def test_round_trip(tmp_path):
    events = []
    pack = open_pack(write(tmp_path / "toy-5", emit=events.append, notes=["a note"]))
    assert (pack.name, pack.size, pack.fields["semseg"].classes) == ("toy-5", SIZE, 5)
    assert [*pack.fields] == ["image", "semseg", "depth", "normals"]
    assert (pack.frames("train"), pack.frames("test")) == (3, 1)
    assert pack.ids("train") == ("a0", "a1", "a2")
    assert pack.manifest.notes == ("a note",)
    assert [(event.done, event.total) for event in events] == [(i, 4) for i in (1, 2, 3, 4)]
    for number in range(3):
        for field, array in frame(number).items():
            stored = pack.array("train", field)[number]
            assert stored.dtype == {"depth": "f4", "normals": "f2"}.get(field, "u1")
            np.testing.assert_array_equal(stored, array.astype(stored.dtype))
    assert not pack.array("train", "image").flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy-5"]
    assert check_pack(pack.folder) == pack


def test_any_kind_of_task_has_its_labels_stored_as_it_says(tmp_path, monkeypatch):
    class Height(Depth):
        storage = Storage("<f8", (2,))

    monkeypatch.setitem(TASKS, "height", Height)
    rng = np.random.default_rng(0)
    labels = {
        "saliency": rng.integers(0, 2, SIZE).astype("u1"),
        "height": rng.uniform(size=(*SIZE, 2)),
    }
    pack = open_pack(write(tmp_path / "toy-5", frames=lambda i: frame(i) | labels, test=labels))
    assert [*pack.fields] == ["image", "semseg", "depth", "normals", "saliency", "height"]
    for name, array in labels.items():
        assert pack.array("train", name).dtype == array.dtype
        np.testing.assert_array_equal(pack.array("train", name)[0], array)
    assert (pack.fields["height"].kind, pack.fields["height"].shape) == ("height", (2,))


def test_sums_are_those_of_the_files_and_the_digest_is_of_the_sums(folder):
    pack = open_pack(folder)
    lines = []
    for split in ("test", "train"):
        for field in ("depth", "image", "normals", "semseg"):
            found = hashlib.sha256((folder / split / f"{field}.npy").read_bytes()).hexdigest()
            assert pack.manifest.splits[split].files[field].sha256 == found
            lines.append(f"{split}/{field} {found}\n")
    assert pack.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_equal_frames_have_equal_digests(tmp_path, folder):
    assert open_pack(write(tmp_path / "other")).digest == open_pack(folder).digest
    assert open_pack(write(tmp_path / "fewer", train=2)).digest != open_pack(folder).digest


def test_one_changed_bit_is_found_and_named(folder):
    path = folder / "train" / "depth.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_pack(folder)
    with pytest.raises(DataError, match=r"train/depth\.npy was changed .*gatesearch data prepare"):
        check_pack(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"test/image\.npy is missing or is no whole array"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            r"test/image\.npy is missing or is no",
        ),
        (lambda path: path.write_bytes(b""), r"test/image\.npy is missing or is no whole array"),
        (lambda path: np.save(path, np.zeros((1, 3, 4, 3))), r"must hold \|u1 \(1, 3, 4, 3\).*<f8"),
        (lambda path: np.save(path, np.zeros((2, 3, 4, 3), "u1")), r"found \|u1 \(2, 3, 4, 3\)"),
        (
            lambda path: np.save(path, np.array([{}]), allow_pickle=True),
            r"test/image\.npy is missing or is no whole .*Python objects",
        ),
    ],
    ids=["absent", "short", "empty", "type", "shape", "pickle"],
)
def test_a_damaged_file_is_named_at_opening(folder, damage, message):
    damage(folder / "test" / "image.npy")
    with pytest.raises(DataError, match=message):
        open_pack(folder)


def change(*keys, to):
    def edit(manifest):
        part = manifest
        for key in keys[:-1]:
            part = part[key]
        if to is None:
            del part[keys[-1]]
        else:
            part[keys[-1]] = to

    return edit


def rename(*keys, to):
    def edit(manifest):
        part = manifest
        for key in keys[:-1]:
            part = part[key]
        part[to] = part.pop(keys[-1])

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("format", to=3), "format: Input should be 1 or 2"),
        (change("extra", to=1), "extra: Extra inputs are not permitted"),
        (change("size", to=[3]), "size"),
        (change("size", to=[3.0, 4]), "size"),
        (change("size", to=["3", 4]), "size"),
        (change("size", to=[0, 4]), "size.0: Input should be greater than or equal to 1"),
        (change("size", to=[10**30, 4]), "size|train/image must be"),
        (change("fields", "semseg", "classes", to=0), "semseg.classes: Input should be greater"),
        (change("fields", "semseg", "classes", to=2**15), "semseg.classes: Input should be less"),
        (change("fields", "semseg", "classes", to=True), "classes: Input should be a valid int"),
        (change("fields", "semseg", "dtype", to="|O"), "semseg.dtype: Input should be"),
        (change("fields", "semseg", "shape", to=[10**9]), "semseg.shape.0: Input should be less"),
        (change("fields", "image", "shape", to=[4]), "image, of three bytes per pixel"),
        (change("notes", to="text"), "notes"),
        (change("splits", "train", "ids", to=["a" * 1001] * 3), "splits.train.ids.0"),
        (change("size", to=[30, 40]), "train/image must be"),
        (change("splits", "test", to=None), "splits must have train and test"),
        (change("splits", "train", "frames", to=-1), "frames"),
        (change("splits", "train", "ids", to=["a0"]), "3 frames but 1 ids"),
        (change("splits", "train", "files", "image", to=None), "must have the fields"),
        (change("splits", "train", "files", "image", "dtype", to="|O"), "must be"),
        (change("splits", "train", "files", "image", "sha256", to="../x"), "sha256"),
        (rename("splits", "train", "files", "image", to="../../secret"), "secret"),
        (rename("splits", "train", "files", "image", to="/etc/passwd"), "passwd"),
        (rename("splits", "train", to="../train"), "train"),
        (rename("fields", "semseg", to="parts"), "train must have the fields"),
        (rename("fields", "semseg", to="../parts"), "parts"),
    ],
)
def test_a_false_manifest_is_refused(folder, edit, message):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message) as caught:
        open_pack(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["named pipe", "folder", "symbolic link", "device"])
@pytest.mark.parametrize("name", ["manifest.json", "train/image.npy"])
def test_what_is_no_file_is_refused_without_waiting(folder, tmp_path, kind, name):
    """Files of a pack are written by gatesearch, which makes no links."""
    path = folder / name
    path.rename(tmp_path / "real")
    if kind == "named pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "real" if kind == "symbolic link" else "/dev/zero")
    found = "symbolic link" if kind == "device" else kind
    for open_it in (open_pack, check_pack):
        with pytest.raises(DataError, match=f"{name} must be a regular file, found a {found}") as e:
            open_it(folder)
        assert "\n" not in str(e.value)


def test_a_manifest_of_gigabytes_is_refused_before_it_is_read(folder):
    os.truncate(folder / "manifest.json", 2**33)
    with pytest.raises(DataError, match=r"manifest\.json must have at most 256 MiB, found more"):
        open_pack(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b"[" * 10**5])
def test_what_is_no_manifest_is_refused(folder, data):
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_pack(folder)


def as_first_format(folder):
    """Write the manifest as gatesearch 0.1.0 did."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["origin"]
    for split in manifest["splits"].values():
        del split["labelled"], split["presence"]
    fields = manifest.pop("fields")
    manifest |= {"format": 1, "classes": {"semseg": fields["semseg"]["classes"]}}
    path.write_text(json.dumps(manifest))
    return manifest


def test_a_pack_of_the_first_format_is_the_same_pack(folder):
    now = check_pack(folder)
    as_first_format(folder)
    before = check_pack(folder)
    assert (before.digest, before.fields, before.splits) == (now.digest, now.fields, now.splits)
    assert before.labelled("train", "depth") is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("classes", "semseg", to=0), "classes.semseg: Input should be greater"),
        (rename("classes", "semseg", to="parts"), "classes.parts"),
        (change("splits", "train", to=None), "splits must have train and test"),
        (change("splits", "train", "files", "image", "dtype", to="|O"), "train/image must be"),
        (change("splits", "train", "ids", to=["a0"]), "3 frames but 1 ids"),
    ],
)
def test_a_false_manifest_of_the_first_format_is_refused(folder, edit, message):
    manifest = as_first_format(folder)
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message) as caught:
        open_pack(folder)
    assert "\n" not in str(caught.value)


def test_frames_without_labels_are_counted_and_named(tmp_path):
    def frames(number):
        made = dict(frame(number))
        if number == 1:
            made["depth"] = np.zeros_like(made["depth"])
        return made

    pack = check_pack(write(tmp_path / "toy-5", frames=frames))
    assert pack.labelled("train", "depth").tolist() == [True, False, True]
    assert pack.labelled("train", "semseg").tolist() == [True] * 3
    assert pack.labelled("test", "depth") is None
    assert pack.manifest.splits["train"].labelled == {"semseg": 3, "depth": 2, "normals": 3}
    path = pack.path("train", ".labelled")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"labelled\.npy was changed since it was written"):
        check_pack(pack.folder)


def test_no_pack(tmp_path):
    command = f"gatesearch data prepare nyud --data '{tmp_path}/my data'"
    with pytest.raises(DataError, match=f"no pack at .*; make it with: {command}$"):
        open_pack(tmp_path / "my data" / "nyud-480x640")
