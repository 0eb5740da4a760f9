"""Safetensors files are read as they were written, and nothing of a damaged one is allocated."""

import os
import struct

import pytest
import torch
from safetensors.torch import save_file

from gatesearch.files import FileRefusedError
from gatesearch.tensor_files import read_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "e": torch.empty(0, 4)}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"identity": "i"})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("expected", [None, TENSORS])
def test_tensors_and_metadata_come_back(path, expected) -> None:
    tensors, metadata = read_tensors(path, expected)
    assert metadata == {"identity": "i"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@pytest.mark.parametrize(
    ("expected", "fault"),
    [
        ({**TENSORS, "b": torch.zeros(1)}, "must hold the tensor b, found none"),
        ({"a": TENSORS["a"], "n": TENSORS["n"]}, "holds the unknown tensor e"),
        (
            {**TENSORS, "a": torch.zeros(3, 2)},
            r"must hold a as torch.float32 of shape \(3, 2\), found torch.float32 of .*\(2, 3\)",
        ),
        (
            {**TENSORS, "a": TENSORS["a"].half()},
            r"must hold a as torch.float16 of shape \(2, 3\), found torch.float32 of",
        ),
        # A meta tensor of 4 exabytes takes no memory, and is refused before any is taken.
        ({**TENSORS, "a": torch.empty(2**60, device="meta")}, r"of shape \(1152921504606846976,\)"),
    ],
)
def test_other_tensors_than_expected_are_refused(path, expected, fault) -> None:
    with pytest.raises(FileRefusedError, match=fault):
        read_tensors(path, expected)


def enormous_shape(data: bytes) -> bytes:
    return data.replace(b"[2,3]", b"[9,9]")


HARMS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "pickle": lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n"),
    "header of 4 EiB": lambda path: path.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "deep": lambda path: path.write_bytes(struct.pack("<Q", 10**6) + b"[" * 10**6),
    "shape": lambda path: path.write_bytes(enormous_shape(path.read_bytes())),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "sparse": lambda path: os.truncate(path, 2**40),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_file_is_refused_in_one_line(path, harm) -> None:
    HARMS[harm](path)
    with pytest.raises(FileRefusedError, match=rf"^{path} (is damaged: |must )[^\n]+$"):
        read_tensors(path)


def test_a_missing_file_is_an_os_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "absent.safetensors")
