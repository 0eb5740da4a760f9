"""Checkpoints survive what happens to disks and processes, and nothing on disk is believed."""

import errno
import json
import os
import resource
import struct
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save

from gatesearch.tensor_files import read_tensors
from gatesearch.training import Checkpoint, Checkpoints
from gatesearch.training.checkpoint import _digest


def checkpoint(number: int = 1) -> Checkpoint:
    g = torch.Generator().manual_seed(number)
    return Checkpoint(
        {"phase": "gates", "number": number, "nan": float("nan"), "deep": [{"ä": None}, 0.1 + 0.2]},
        {
            "weights": torch.randn(3, 4, generator=g),
            "half": torch.randn(5, generator=g).bfloat16(),
            "step": torch.tensor(float(number)),
            "bits": torch.tensor([True, False]),
            "none": torch.empty(0, 7),
            "bytes": torch.arange(9, dtype=torch.uint8).reshape(3, 3),
        },
    )


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def kept(tmp_path, told) -> Checkpoints:
    """Two checkpoints, numbers 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "trial", identity="study 1", tell=told.append)
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    return checkpoints


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def newest_file(checkpoints: Checkpoints):
    return checkpoints.folder / names(checkpoints)[-1]


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    assert json.dumps(one.state) == json.dumps(other.state)
    assert one.tensors.keys() == other.tensors.keys()
    return all(
        t.dtype == other.tensors[n].dtype and torch.equal(t, other.tensors[n])
        for n, t in one.tensors.items()
    )


def test_what_is_saved_comes_back_to_the_bit(kept, told) -> None:
    assert same(kept.newest(), checkpoint(2))
    again = Checkpoints(kept.folder, identity="study 1", tell=told.append)
    assert same(again.newest(), checkpoint(2))
    assert not told


def test_nothing_there(tmp_path, told) -> None:
    empty = Checkpoints(tmp_path / "none", identity="x", tell=told.append)
    assert empty.newest() is None
    empty.clear()
    assert not told
    assert not empty.folder.exists()


def test_two_are_kept_and_what_killed_writes_left_is_removed(kept) -> None:
    (kept.folder / ".checkpoint-3.safetensors.4711").write_bytes(b"cut")
    (kept.folder / "notes.txt").write_text("not ours")
    for number in range(3, 12):
        kept.save(checkpoint(number))
    assert names(kept) == ["checkpoint-10.safetensors", "checkpoint-11.safetensors", "notes.txt"]
    assert same(kept.newest(), checkpoint(11))  # 11 > 9, though "11" < "9"
    kept.clear()
    assert names(kept) == ["notes.txt"]


def test_clear_leaves_nothing(kept) -> None:
    kept.clear()
    assert not kept.folder.exists()


def harm_flip(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def harm_state(data: bytes) -> bytes:
    assert data.count(b"gates") == 1
    return data.replace(b"gates", b"gated")


def harm_name(data: bytes) -> bytes:
    return data.replace(b'"half"', b'"hale"')


def harm_shape(data: bytes) -> bytes:
    return data.replace(b"[3,4]", b"[4,3]")


def harm_enormous(data: bytes) -> bytes:
    return data.replace(b"[3,4]", b"[3,400000000000000]")


def harm_header(data: bytes) -> bytes:
    return struct.pack("<Q", 2**62) + data[8:]


HARMS = {
    "flipped": (harm_flip, "checksum"),
    "other state": (harm_state, "checksum"),
    "renamed": (harm_name, "checksum"),
    "reshaped": (harm_shape, "checksum"),
    "enormous": (harm_enormous, ""),
    "enormous header": (harm_header, ""),
    "cut": (lambda data: data[:-100], ""),
    "cut in the header": (lambda data: data[:50], ""),
    "empty": (lambda data: b"", ""),
    "garbage": (lambda data: os.urandom(1000), ""),
    "a pickle": (lambda data: b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR.", ""),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_one_falls_back_and_is_told(kept, told, harm) -> None:
    change, reason = HARMS[harm]
    path = newest_file(kept)
    path.write_bytes(change(path.read_bytes()))
    assert same(kept.newest(), checkpoint(1))
    (line,) = told
    assert str(path) in line
    assert reason in line
    assert line.endswith("going on from checkpoint-1.safetensors")
    # The whole one outlives the next, in place of the damaged.
    kept.save(checkpoint(3))
    assert names(kept) == ["checkpoint-1.safetensors", "checkpoint-3.safetensors"]


def test_no_byte_can_be_wrong(kept, told) -> None:
    path = newest_file(kept)
    data = path.read_bytes()
    kept.folder.joinpath("checkpoint-1.safetensors").unlink()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        found = kept.newest()
        # Some bytes say nothing, such as the blanks that pad the header.
        assert found is None or same(found, checkpoint(2))
    assert len(told) > 0.95 * len(data)


def test_all_damaged(kept, told) -> None:
    for path in kept.folder.iterdir():
        path.write_bytes(b"")
    assert kept.newest() is None
    assert [line.split("; ")[-1] for line in told] == ["there is no older one to go on from"] * 2


def test_what_is_no_file_is_passed_over(kept, told) -> None:
    (kept.folder / "checkpoint-3.safetensors").mkdir()
    os.mkfifo(kept.folder / "checkpoint-4.safetensors")  # reading it would never end
    (kept.folder / "checkpoint-5.safetensors").symlink_to("/dev/zero")
    assert same(kept.newest(), checkpoint(2))
    assert len(told) == 3
    kept.save(checkpoint(6))
    assert same(kept.newest(), checkpoint(6))


def test_a_link_to_a_whole_one_is_passed_over(kept, told, tmp_path) -> None:
    path = newest_file(kept)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert same(kept.newest(), checkpoint(1))
    (line,) = told
    assert "must be a regular file, found a symbolic link" in line


@pytest.mark.parametrize("state", ["[" * 100_000, "[]", "no JSON", "7"])
def test_a_state_that_is_no_object_is_passed_over(kept, told, state) -> None:
    path = newest_file(kept)
    tensors, metadata = read_tensors(path)
    sealed = {"identity": "study 1", "state": state, "sha256": _digest(state, tensors)}
    assert metadata.keys() == sealed.keys()
    path.write_bytes(save(tensors, sealed))
    assert same(kept.newest(), checkpoint(1))
    (line,) = told
    assert line.count("\n") == 0
    assert len(line) < 600


def test_those_of_another_training_are_not_read(kept, told) -> None:
    other = Checkpoints(kept.folder, identity="study 2", tell=told.append)
    assert other.newest() is None
    assert len(told) == 2
    assert "it is of 'study 1', not of 'study 2'" in told[0]
    other.save(checkpoint(3))
    assert same(other.newest(), checkpoint(3))


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_full_disk_leaves_the_earlier_ones(kept, monkeypatch, fails) -> None:
    def full(*args) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = names(kept)
    with monkeypatch.context() as patch:
        if fails == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="No space left"):
            kept.save(checkpoint(3))
    assert names(kept) == before
    assert same(kept.newest(), checkpoint(2))
    kept.save(checkpoint(3))
    assert same(kept.newest(), checkpoint(3))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files_leaves_the_earlier_ones(kept) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code = f"""
import torch
from pathlib import Path
from gatesearch.training import Checkpoint, Checkpoints
checkpoints = Checkpoints(Path({str(kept.folder)!r}), identity="study 1")
try:
    checkpoints.save(Checkpoint({{}}, {{"large": torch.zeros(100_000)}}))
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=True
    )
    assert done.stdout == "File too large\n"
    assert names(kept) == ["checkpoint-1.safetensors", "checkpoint-2.safetensors"]
    assert same(kept.newest(), checkpoint(2))


def test_due(tmp_path, monkeypatch) -> None:
    now, asked = 1000.0, False
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, identity="x", seconds=60, stop=lambda: asked)
    assert not checkpoints.due()
    now += 60
    assert checkpoints.due()
    checkpoints.save(checkpoint())
    assert not checkpoints.due()
    asked = True
    assert checkpoints.due()
    assert checkpoints.stopping()


def test_a_checkpoint_is_a_copy(kept) -> None:
    found = kept.newest()
    kept.clear()
    assert same(found, checkpoint(2))
