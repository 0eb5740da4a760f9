"""`gs.save` and `gs.load`: compact networks with heads of any class, without pickle."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gatesearch as gs
from gatesearch.errors import DataError, UsageError
from gatesearch.files import FileRefusedError
from gatesearch.methods import build_model
from gatesearch.pruning import CompactNet
from tests.library.toys import Pooled, Sized, assert_same, heads, network, scatter, small
from tests.search.tiny import tiny

IMAGE = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(1))
CHANNELS = small().channels


@pytest.fixture(scope="module")
def compact() -> CompactNet:
    net = scatter(network())
    gs.project(net, "1.3xMTL", size=(48, 64))
    return gs.extract(net)


def test_saved_and_loaded_is_equal_to_the_bit(compact: CompactNet, tmp_path: Path) -> None:
    stem = tmp_path / "new" / "person-1.3xMTL"
    gs.save(compact, stem)
    names = ["person-1.3xMTL.json", "person-1.3xMTL.safetensors"]
    assert sorted(path.name for path in stem.parent.iterdir()) == names
    for given in (stem, str(stem), f"{stem}.safetensors", f"{stem}.json"):
        again = gs.load(given, heads=heads(CHANNELS))
        assert not again.training
        assert again.description == compact.description
        with torch.no_grad():
            ours, theirs = again(IMAGE), compact(IMAGE)
        assert torch.equal(ours["vector"], theirs["vector"])
        assert torch.equal(ours["picture"]["scores"], theirs["picture"]["scores"])


def test_stems_that_differ_behind_a_dot_are_different_files(compact, tmp_path: Path) -> None:
    gs.save(compact, tmp_path / "net-1.3xMTL")
    gs.save(compact, tmp_path / "net-1.5xMTL")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_study_s_heads_need_no_modules(tmp_path: Path) -> None:
    net = scatter(build_model(tiny(tmp_path), "interrogate"))
    small_net = gs.extract(net)
    gs.save(small_net, tmp_path / "net")
    assert_same(gs.load(tmp_path / "net")(IMAGE), small_net(IMAGE))
    with pytest.raises(UsageError, match="for no task, found heads for semseg"):
        gs.load(tmp_path / "net", heads={"semseg": Pooled(CHANNELS)})


def test_own_heads_stand_beside_a_study_s(tmp_path: Path) -> None:
    """The file says of each head whether it can be rebuilt."""
    description = json.loads(_description(tmp_path))
    assert {task: head["kind"] for task, head in description["heads"].items()} == {
        "vector": "own", "picture": "own",
    }  # fmt: skip
    assert description["heads"]["vector"]["outputs"] is None


def _description(folder: Path) -> str:
    gs.save(gs.extract(network()), folder / "net")
    return (folder / "net.json").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "has heads of its user's for vector, picture, found heads for none"),
        ({"vector": Pooled(CHANNELS)}, "found heads for vector"),
        ({**heads(CHANNELS), "more": Pooled(CHANNELS)}, "found heads for vector, picture, more"),
        ({"vector": Pooled, "picture": Sized(CHANNELS)}, "must be a module or a function"),
    ],
)
def test_other_tasks_than_the_saved_ones_are_refused(compact, tmp_path, given, said) -> None:
    gs.save(compact, tmp_path / "net")
    with pytest.raises(UsageError) as caught:
        gs.load(tmp_path / "net", heads=given)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "vector",
    [Pooled(CHANNELS, outputs=4), Pooled(CHANNELS).double(), nn.Conv2d(CHANNELS, 3, 1),
     lambda features: features.mean()],
)  # fmt: skip
def test_heads_with_other_weights_are_refused(compact, tmp_path, vector) -> None:
    gs.save(compact, tmp_path / "net")
    with pytest.raises(FileRefusedError, match=r"heads\.vector\."):
        gs.load(tmp_path / "net", heads={"vector": vector, "picture": Sized(CHANNELS)})


def test_a_missing_file_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing or cannot be read"):
        gs.load(tmp_path / "nothing")


def test_shared_heads_are_saved(tmp_path: Path) -> None:
    shared = Pooled(CHANNELS)
    net = scatter(gs.InterroGate(small(), {"a": shared, "b": shared}))
    compact = gs.extract(net)
    gs.save(compact, tmp_path / "net")
    tensors = load_file(tmp_path / "net.safetensors")
    assert torch.equal(tensors["heads.a.linear.weight"], tensors["heads.b.linear.weight"])
    again = Pooled(CHANNELS)
    loaded = gs.load(tmp_path / "net", heads={"a": again, "b": again})
    assert loaded.heads["a"] is loaded.heads["b"]
    assert_same(loaded(IMAGE), compact(IMAGE))


class Talking(nn.Module):
    """A head with a state that is no tensor, or one of a type that files do not hold."""

    def __init__(self, state: object) -> None:
        super().__init__()
        self.state = state
        if isinstance(state, Tensor):
            self.register_buffer("buffer", state)

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state

    def forward(self, features: Tensor) -> Tensor:
        return features.mean()


@pytest.mark.parametrize("state", [{"step": 3}, "word", torch.ones(2, dtype=torch.complex64),
                                   torch.eye(2).to_sparse()])  # fmt: skip
def test_a_state_that_no_file_holds_is_refused(state: object, tmp_path: Path) -> None:
    compact = gs.extract(gs.InterroGate(small(), {"a": Talking(state)}))
    with pytest.raises(UsageError, match=r"dense tensors.* found .* as heads\.a\."):
        gs.save(compact, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_a_data_error(compact: CompactNet, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for stem in (tmp_path / "file" / "net", tmp_path / "file" / "more" / "net"):
        with pytest.raises(DataError, match=r"net\.safetensors cannot be written \("):
            gs.save(compact, stem)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_compact_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"found InterroGate; cut one with gs\.extract"):
        gs.save(network(), tmp_path / "net")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_what_could_not_be_loaded_is_not_saved(compact, tmp_path: Path, dtype) -> None:
    with pytest.raises(UsageError, match=rf"in float32, found {dtype} as .*; save net.float\(\)"):
        gs.save(copy.deepcopy(compact).to(dtype), tmp_path / "net")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stem", ["", ".", 3, None, b"net"])
def test_a_stem_that_names_no_file_is_refused(compact, stem) -> None:
    for act in (lambda: gs.save(compact, stem), lambda: gs.load(stem)):
        with pytest.raises(UsageError, match="path without suffix, such as networks/best, found"):
            act()
