"""Packs: whole or absent, checked on the way in, never a way out of their folder."""

import hashlib
import json
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest

from gatesearch.datasets.pack import (
    SplitFrames,
    annotate,
    aside,
    check_pack,
    open_pack,
    write_pack,
)
from gatesearch.errors import DataError

SIZE = (3, 4)


def frame(number):
    rng = np.random.default_rng(number)
    normals = rng.standard_normal((*SIZE, 3))
    return {
        "image": rng.integers(0, 256, (*SIZE, 3), np.uint8),
        "semseg": rng.integers(0, 5, SIZE, np.uint8),
        "depth": rng.uniform(0, 5, SIZE).astype(np.float32),
        "normals": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
    }


def write(folder, *, frames=frame, train=3, emit=lambda event: None, notes=()):
    return write_pack(
        folder,
        dataset="toy",
        size=SIZE,
        classes={"semseg": 5},
        splits={
            "train": SplitFrames(
                [f"a{i}" for i in range(train)], (frames(i) for i in range(train))
            ),
            "test": SplitFrames(["b0"], iter([frame(100)])),
        },
        source="made up",
        notes=notes,
        emit=emit,
    )


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "toy-5")


def test_round_trip(tmp_path):
    events = []
    pack = open_pack(write(tmp_path / "toy-5", emit=events.append, notes=["a note"]))
    assert (pack.name, pack.size, pack.classes) == ("toy-5", SIZE, {"semseg": 5})
    assert pack.fields == ("image", "semseg", "depth", "normals")
    assert (pack.frames("train"), pack.frames("test")) == (3, 1)
    assert pack.ids("train") == ("a0", "a1", "a2")
    assert pack.manifest.notes == ("a note",)
    assert [(event["done"], event["total"]) for event in events] == [(i, 4) for i in (1, 2, 3, 4)]
    for number in range(3):
        for field, array in frame(number).items():
            stored = pack.array("train", field)[number]
            assert stored.dtype == {"depth": "f4", "normals": "f2"}.get(field, "u1")
            np.testing.assert_array_equal(stored, array.astype(stored.dtype))
    assert not pack.array("train", "image").flags.writeable
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy-5"]
    assert check_pack(pack.folder) == pack


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
        (change("format", to=2), "format: Input should be 1"),
        (change("extra", to=1), "extra: Extra inputs are not permitted"),
        (change("size", to=[3]), "size"),
        (change("size", to=[30, 40]), "train/image must be"),
        (change("splits", "test", to=None), "splits must be"),
        (change("splits", "train", "frames", to=-1), "frames"),
        (change("splits", "train", "ids", to=["a0"]), "3 frames but 1 ids"),
        (change("splits", "train", "files", "image", to=None), "same fields"),
        (change("splits", "train", "files", "image", "dtype", to="|O"), "must be"),
        (change("splits", "train", "files", "image", "sha256", to="../x"), "sha256"),
        (rename("splits", "train", "files", "image", to="../../secret"), "secret"),
        (rename("splits", "train", "files", "image", to="/etc/passwd"), "passwd"),
        (rename("splits", "train", to="../train"), "train"),
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


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1}', b"[" * 10**5])
def test_what_is_no_manifest_is_refused(folder, data):
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_pack(folder)


def test_no_pack(tmp_path):
    with pytest.raises(DataError, match=r"no pack at .*gatesearch data prepare"):
        open_pack(tmp_path / "nothing")


class StoppedError(Exception):
    """Stands for whatever stops a preparation half way."""


def test_the_old_pack_stays_until_the_new_one_is_whole(folder):
    before = open_pack(folder).digest

    def stops(number):
        if number == 2:
            raise StoppedError
        return frame(number + 50)

    with pytest.raises(StoppedError):
        write(folder, frames=stops)
    assert check_pack(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["toy-5"]
    write(folder, frames=lambda number: frame(number + 50))
    assert check_pack(folder).digest != before
    assert [path.name for path in folder.parent.iterdir()] == ["toy-5"]


def test_frames_must_match_what_was_announced(tmp_path):
    with pytest.raises(ValueError, match=r"depth must be \(3, 4\), found \(4, 3\)"):
        write(tmp_path / "p", frames=lambda i: frame(i) | {"depth": np.zeros((4, 3), "f4")})
    with pytest.raises(ValueError, match="every frame must have"):
        write(tmp_path / "p", frames=lambda i: {"image": frame(i)["image"]} if i else frame(i))
    assert list(tmp_path.iterdir()) == []


@contextmanager
def files_of_at_most(limit):
    """No file may grow beyond `limit` bytes, as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    with (
        files_of_at_most(200),
        pytest.raises(DataError, match=r"cannot write .*toy-5: .*free space"),
    ):
        write(tmp_path / "toy-5")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "data").write_text("a file, not a folder")
    with pytest.raises(DataError, match=r"cannot write .*another folder with --data"):
        write(tmp_path / "data" / "toy-5")


def test_what_is_no_pack_is_not_replaced(tmp_path):
    (tmp_path / "toy-5").mkdir()
    (tmp_path / "toy-5" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds something else"):
        write(tmp_path / "toy-5")
    assert (tmp_path / "toy-5" / "thesis.tex").read_text() == "years of work"


def test_leftovers_of_killed_runs_go_after_a_day(tmp_path):
    day_old, fresh = tmp_path / ".toy-5.partial-1", tmp_path / ".toy-5.partial-2"
    for leftover in (day_old, fresh):
        leftover.mkdir()
    os.utime(day_old, (0, 0))
    with aside(tmp_path / "toy-5") as partial:
        assert partial.name == f".toy-5.partial-{os.getpid()}"
        assert not day_old.exists()
        assert fresh.exists()
    assert not partial.exists()


@pytest.mark.parametrize("used", [False, True])
def test_folders_made_for_nothing_go(tmp_path, used) -> None:
    with aside(folder := tmp_path / "a" / "b" / "toy"):
        if used:
            folder.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == (["a", "b", "toy"] if used else [])


def test_notes_are_added_and_nothing_else_changes(folder):
    before = check_pack(folder)
    annotate(folder, ["normals are pseudo-labels"])
    after = check_pack(folder)
    assert after.manifest.notes == (*before.manifest.notes, "normals are pseudo-labels")
    assert after.digest == before.digest
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "test", "train"]
