"""Networks in their folders: written, copied, read again, refused where they are damaged."""

import pytest
import torch

from gatesearch.errors import StudyRefusedError, UsageError
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
    ("result", "files"),
    [(PLAIN, ["model.safetensors"]), (COMPACT, ["model.json", "model.safetensors"])],
)
def test_what_is_kept_is_read_again_and_copied_whole(study, tmp_path, result, files) -> None:
    network, folder = network_of(result, study), NetworkSpec.of(result).folder(tmp_path)
    keep_network(network, folder)
    assert sorted(path.name for path in folder.iterdir()) == files
    again = kept_network(result, study, out=tmp_path)
    assert type(again) is type(network)
    assert not again.training
    assert same(network, again)
    copy = tmp_path / "elsewhere"
    copy_network(folder, NetworkSpec.of(result).folder(copy))
    assert same(network, kept_network(result, study, out=copy))


@pytest.mark.parametrize("harm", ["gone", "cut short", "empty"])
def test_a_damaged_network_is_refused(study, tmp_path, harm) -> None:
    keep_network(network_of(PLAIN, study), NetworkSpec.of(PLAIN).folder(tmp_path))
    path = NetworkSpec.of(PLAIN).folder(tmp_path) / "model.safetensors"
    content = {"cut short": path.read_bytes()[:100], "empty": b""}.get(harm)
    path.unlink() if content is None else path.write_bytes(content)
    for read in (
        lambda: network_state(NetworkSpec.of(PLAIN), out=tmp_path),
        lambda: kept_network(PLAIN, study, out=tmp_path),
    ):
        with pytest.raises(StudyRefusedError, match=r"missing or damaged .*; put it back from a"):
            read()


def test_a_damaged_compact_network_is_refused(study, tmp_path) -> None:
    folder = NetworkSpec.of(COMPACT).folder(tmp_path)
    keep_network(network_of(COMPACT, study), folder)
    (folder / "model.json").unlink()
    with pytest.raises(UsageError, match="must be a compact network"):
        kept_network(COMPACT, study, out=tmp_path)


def test_a_network_that_has_no_compact_form_is_itself(study) -> None:
    network = build_model(study, "cross_stitch")
    assert as_compact(network, "cross_stitch", study) is network
    assert isinstance(as_compact(build_model(study, "mtl"), "mtl", study), CompactNet)
