"""Networks in their folders: written, copied, read again, refused where they were changed."""

import hashlib
import os
from dataclasses import replace

import pytest
import torch

from gatesearch.errors import StudyRefusedError
from gatesearch.methods import NetworkSpec, build_model
from gatesearch.pruning import CompactNet, extract
from gatesearch.results import Result
from gatesearch.trials.kept_networks import (
    as_compact,
    copy_network,
    keep_network,
    kept_network,
    network_state,
)
from tests.search.tiny import tiny

PLAIN = Result("mtl", 0)
COMPACT = Result("interrogate", 0, 3)


def network_of(result: Result, study):
    supernet_or_plain = build_model(study, result.method)
    return supernet_or_plain if result.trial is None else extract(supernet_or_plain)


@pytest.fixture
def study(tmp_path):
    return tiny(tmp_path)


def same(one, other) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    ("result", "names"),
    [(PLAIN, ["model.safetensors"]), (COMPACT, ["model.json", "model.safetensors"])],
)
@pytest.mark.parametrize("verified", [True, False])
def test_what_is_kept_is_read_again_and_copied_whole(
    study, tmp_path, result, names, verified
) -> None:
    network, folder = network_of(result, study), NetworkSpec.of(result).folder(tmp_path)
    files = keep_network(network, folder)
    assert sorted(path.name for path in folder.iterdir()) == names
    assert files == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names
    }
    # Results of gatesearch 0.1.0 have no checksums.
    result = replace(result, files=files if verified else {})
    again = kept_network(result, study, out=tmp_path)
    assert type(again) is type(network)
    assert not again.training
    assert same(network, again)
    copy = NetworkSpec.of(result).folder(tmp_path / "elsewhere")
    copy_network(result, folder, copy)
    assert sorted(path.name for path in copy.iterdir()) == names
    assert same(network, kept_network(result, study, out=tmp_path / "elsewhere"))


def flip(data: bytes) -> bytes:
    """Change one bit of the last weight, or drop a ReLU from the description."""
    if data[:1] == b"{":
        assert b'"relu": true' in data
        return data.replace(b'"relu": true', b'"relu":false', 1)
    return data[:-1] + bytes([data[-1] ^ 1])


HARMS = {
    "gone": lambda path: path.unlink(),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "a bit flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to the same": lambda path: (
        path.rename(path.with_name("moved")), path.symlink_to(path.with_name("moved")),
    ),
    "sparse": lambda path: os.truncate(path, 2**40),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize(
    ("result", "name"),
    [(PLAIN, "model.safetensors"), (COMPACT, "model.safetensors"), (COMPACT, "model.json")],
)
def test_a_network_that_was_changed_is_refused(study, tmp_path, result, name, harm) -> None:
    folder = NetworkSpec.of(result).folder(tmp_path)
    result = replace(result, files=keep_network(network_of(result, study), folder))
    HARMS[harm](folder / name)
    for read in (
        lambda: network_state(result, out=tmp_path),
        lambda: kept_network(result, study, out=tmp_path),
        lambda: copy_network(result, folder, tmp_path / "copy"),
    ):
        with pytest.raises(
            StudyRefusedError, match=rf"^{folder / name} [^\n]*; put it back from a backup, [^\n]*$"
        ):
            read()
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("harm", sorted(HARMS.keys() - {"a bit flipped", "longer"}))
def test_without_checksums_what_cannot_be_read_is_refused(study, tmp_path, harm) -> None:
    folder = NetworkSpec.of(PLAIN).folder(tmp_path)
    keep_network(network_of(PLAIN, study), folder)
    HARMS[harm](folder / "model.safetensors")
    for read in (
        lambda: network_state(PLAIN, out=tmp_path),
        lambda: kept_network(PLAIN, study, out=tmp_path),
    ):
        with pytest.raises(StudyRefusedError, match=r"model\.safetensors [^\n]*; put it back from"):
            read()


@pytest.mark.parametrize("result", [PLAIN, COMPACT])
def test_without_checksums_another_network_is_refused(study, tmp_path, result) -> None:
    folder = NetworkSpec.of(result).folder(tmp_path)
    keep_network(network_of(result, study), folder)
    (tmp_path / "wider").mkdir()
    other = network_of(PLAIN, tiny(tmp_path / "wider", "model.width=0.1"))
    state = keep_network(other, tmp_path / "other")
    assert list(state) == ["model.safetensors"]
    (tmp_path / "other" / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(StudyRefusedError, match=r"model\.safetensors (must hold|holds)"):
        kept_network(result, study, out=tmp_path)


def test_a_network_that_has_no_compact_form_is_itself(study) -> None:
    network = build_model(study, "cross_stitch")
    assert as_compact(network, "cross_stitch", study) is network
    assert isinstance(as_compact(build_model(study, "mtl"), "mtl", study), CompactNet)
