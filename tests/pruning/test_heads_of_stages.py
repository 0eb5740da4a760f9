"""Heads that read several stages: pruned they read what they did, at the cost that was computed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gatesearch.cost import PatternCost, count_macs, measure_layers
from gatesearch.errors import UsageError
from gatesearch.files import FileRefusedError
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.graph import Graph
from gatesearch.models.heads import HEADS, FunctionHead
from gatesearch.models.model_factory import HeadSpec, OwnHead, Parts, features_for
from gatesearch.models.nodes import INPUT, Conv
from gatesearch.pruning import (
    CompactNet,
    describe_compact,
    extract,
    load_compact,
    rebuild_compact,
    save_compact,
)
from gatesearch.pruning.description import Description, HeadDescription
from gatesearch.training import Runtime
from tests.pruning.test_extract import all_gates, conv_steps, gap, put, scattered

KINDS = ["fpn", "segformer", "dpt", "light", "pooled"]


def parts(graph: Graph, *kinds: str) -> Parts:
    heads = {
        task: HeadSpec(kind, graph.outputs, 4, 2, features_for(graph, HEADS[kind]))
        for task, kind in zip("abc", kinds, strict=False)
    }
    return Parts(graph, heads)


def supernet(backbone: str, *kinds: str, seed: int = 2, **options: str) -> GatedSupernet:
    graph = BACKBONES[backbone](output_stride=16, width=0.05)
    model = scattered(GatedSupernet(parts(graph, *kinds), **options), seed)
    put(model, np.random.default_rng(seed))
    return model


def test_a_pattern_is_cut_and_priced() -> None:
    check_a_pattern(supernet("resnet18", "fpn", "light"), torch.contiguous_format)


@pytest.mark.slow("many networks")
@settings(max_examples=8, deadline=None)
@given(
    backbone=st.sampled_from(["resnet18", "efficientnet_lite0"]),
    granularity=st.sampled_from(["conv", "block"]),
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    mix=st.sampled_from(["tasks", "shared"]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    seed=st.integers(0, 2**31),
)
def test_any_pattern_is_cut_and_priced(backbone, granularity, kinds, mix, layout, seed) -> None:
    model = supernet(backbone, *kinds, seed=seed, granularity=granularity, mix=mix)
    check_a_pattern(model, layout)


def check_a_pattern(model: GatedSupernet, layout: torch.memory_format) -> None:
    compact, cost = extract(model), PatternCost.of(model, (1, 3, 33, 50))
    counted = count_macs(compact, (1, 3, 33, 50), cross_check=False)
    assert int(cost.macs(model.hard_gates())) == counted.macs
    assert int(cost.params(model.hard_gates())) == counted.params
    image = torch.randn(2, 3, 33, 50).double().contiguous(memory_format=layout)
    compact.to(torch.float64, memory_format=layout)
    assert gap(compact, model.double(), image) < 1e-5


@pytest.mark.slow("traces eight networks")
@pytest.mark.parametrize("kinds", [("fpn", "light"), ("dpt", "segformer")])
def test_ends_cost_exactly_stl_and_mtl_and_compute_them(kinds: tuple[str, ...]) -> None:
    model = supernet("resnet18", *kinds)
    for on, method in ((True, SingleTaskNets), (False, MultiTaskNet)):
        plain = scattered(method(parts(model.graph, *kinds)), seed=4)
        (model.take_streams if on else model.clone_streams)(plain.state_dict())
        all_gates(model, on)
        compact = extract(model)
        ours, theirs = (count_macs(m, (1, 3, 33, 50)) for m in (compact, plain))
        assert ours == theirs
        assert not ours.uncounted
        assert not ours.disagreements
        image = torch.randn(2, 3, 33, 50)
        assert gap(compact, plain, image) < 1e-5
        with torch.no_grad():
            alone = model.plain(image, own=on)
            assert all(torch.equal(alone[task], y) for task, y in plain(image).items())


def sums(maps: list[Tensor]) -> Tensor:
    return torch.cat(maps, 1)


sums.reads_stages = True


def in_the_middle(head: OwnHead, second: str) -> GatedSupernet:
    """Two tasks over 1x1 convolutions `one`, `two`, `three`; the second head reads `three` alone.

    Args:
        head: That of the first task.
        second: What `two` reads: `one`, or the image, so that a head alone reads `one`.
    """
    nodes = (
        Conv("one", INPUT, 3, 2, 1),
        Conv("two", second, 3 if second == INPUT else 2, 3, 1),
        Conv("three", "two", 3, 2, 1),
    )
    graph = Graph(nodes, 1, ("one", "three"), (1, 1))
    heads = {"a": replace(head, features=features_for(graph, head.module)), "b": LAST}
    return scattered(GatedSupernet(Parts(graph, heads)))


ALL, LAST = OwnHead(FunctionHead(sums), 2), OwnHead(FunctionHead(lambda x: x), 2)


@pytest.mark.parametrize(
    ("head", "second", "steps", "macs"),
    [
        # a's own channel of `one` is live for its head; the shared one too, which a reads closed,
        # and which everything behind it reads. The shared `two` reads the mix, so that a's own
        # channel would be live for the last map too.
        (ALL, "one", {"one_a__shared": 3, "two__shared": 3, "three__shared": 2}, 9 + 6 + 6),
        (LAST, "one", {"one_a__shared": 3, "two__shared": 3, "three__shared": 2}, 9 + 6 + 6),
        # only a's head reads `one`: its own channel 1, and channel 0 of the shared one
        (ALL, INPUT, {"one_a__shared": 2, "two__shared": 3, "three__shared": 2}, 6 + 9 + 6),
        (LAST, INPUT, {"two__shared": 3, "three__shared": 2}, 9 + 6),
    ],
)
def test_a_feature_in_the_middle_by_hand(head, second, steps, macs) -> None:
    model = in_the_middle(head, second)
    closed = {name: torch.zeros_like(gates) for name, gates in model.hard_gates().items()}
    model.set_gates(closed | {"one": torch.tensor([[False, True], [False, False]])})
    compact, gates = extract(model), model.hard_gates()
    assert {name: outputs for name, (_, outputs) in conv_steps(compact).items()} == steps
    assert int(PatternCost.of(model, (1, 3, 4, 5)).macs(gates)) == 20 * macs
    assert count_macs(compact, (1, 3, 4, 5), cross_check=False).macs == 20 * macs
    assert gap(compact, model, torch.randn(1, 3, 4, 5)) < 1e-5


@pytest.mark.slow("latency")
def test_layers_of_heads_of_several_maps_are_measured() -> None:
    runtime = Runtime(device="cpu", precision="fp32", memory_format="nchw")
    table = measure_layers(in_the_middle(ALL, "one"), (1, 3, 8, 8), runtime)
    assert 0 < table.heads < sum(table.ends)


def test_a_single_map_is_described_as_before() -> None:
    compact = extract(supernet("resnet18", "light", "pooled"))
    for head in compact.description.model_dump(mode="json")["heads"].values():
        assert list(head) == ["source", "kind", "inputs", "channels", "outputs"]
    written = compact.description.model_dump_json()
    assert Description.model_validate_json(written) == compact.description
    assert "stride" not in json.dumps(json.loads(written)["heads"])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, CompactNet]:
    compact = extract(supernet("resnet18", "fpn", "dpt", "light"))
    stem = tmp_path_factory.mktemp("net") / "net"
    save_compact(compact, stem)
    return stem, compact


def test_it_is_saved_and_loaded_to_the_bit(saved: tuple[Path, CompactNet]) -> None:
    stem, compact = saved
    loaded, image = load_compact(stem), torch.randn(2, 3, 32, 32)
    assert loaded.description == compact.description
    assert rebuild_compact(describe_compact(compact)).description == compact.description
    assert [feature.stride for feature in loaded.description.heads["a"].features] == [4, 8, 16, 16]
    assert gap(loaded, compact, image) == 0


@pytest.mark.parametrize(
    ("task", "change", "fault"),
    [
        ("a", {"stride": 0}, "heads.a.stride: Input should be greater than or equal to 1"),
        ("a", {"stride": 10**9}, "heads.a.stride: Input should be less than or equal to 64"),
        ("a", {"earlier": []}, "net.safetensors (must hold|holds)"),
        ("a", {"stride": None}, "heads.a: a head of kind fpn must have a stride"),
        ("a", {"kind": "light"}, "heads.a: a head of kind light must have no stride"),
        ("c", {"kind": "segformer"}, "heads.c: a head of kind segformer must have a stride"),
        ("a", {"inputs": 1}, r"heads.a: must have \d+ inputs, found 1"),
        ("b", {"kind": "own", "stride": None}, "heads.b: must have a stride, as it reads several"),
    ],
)
def test_heads_that_cannot_be(saved, tmp_path, task, change, fault) -> None:
    stem, _ = saved
    description = json.loads(stem.with_suffix(".json").read_text())
    description["heads"][task] |= change
    (tmp_path / "net.json").write_text(json.dumps(description))
    (tmp_path / "net.safetensors").write_bytes(stem.with_suffix(".safetensors").read_bytes())
    with pytest.raises(FileRefusedError, match=rf"^[^\n]*{fault}[^\n]*$"):
        load_compact(tmp_path / "net")


def test_earlier_maps_are_checked_too(saved, tmp_path) -> None:
    stem, _ = saved
    for change, fault in (
        ({"inputs": 1}, r"heads.a: must have \d+ inputs, found 1"),
        ({"source": [{"tensor": 10**5, "stop": 1}]}, "heads.a: must read one of"),
        ({"code": "x"}, "heads.a.earlier.0.code: Extra inputs are not permitted"),
    ):
        description = json.loads(stem.with_suffix(".json").read_text())
        description["heads"]["a"]["earlier"][0] |= change
        (tmp_path / "net.json").write_text(json.dumps(description))
        with pytest.raises(FileRefusedError, match=fault):
            load_compact(tmp_path / "net")


class Pyramid(nn.Module):
    """A user's head of all maps."""

    reads_stages = True

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        means = [conv(x).mean((2, 3)) for conv, x in zip(self.convs, maps, strict=True)]
        return torch.cat(means, 1)


def test_a_users_head_may_read_all_maps(tmp_path: Path) -> None:
    import gatesearch as gs

    encoder = gs.encoder("resnet18", width=0.05, output_stride=32)
    channels = [feature.channels for feature in encoder.features]
    assert [feature.stride for feature in encoder.features] == [4, 8, 16, 32]
    heads = {"all": Pyramid(channels), "last": lambda x: x.mean((2, 3))}
    net = scattered(gs.InterroGate(encoder, heads, seed=1))
    put(net, np.random.default_rng(3))
    compact, image = gs.extract(net), torch.randn(2, 3, 64, 64)
    assert compact(image)["all"].shape == (2, 4)
    assert gap(compact, net, image) < 1e-5
    gs.save(compact, tmp_path / "net")
    again = gs.load(tmp_path / "net", heads={**heads, "all": Pyramid(channels)})
    assert gap(again, compact, image) == 0
    with pytest.raises(UsageError, match=r"the head of task all .* reads_stages = True"):
        gs.load(tmp_path / "net", heads={**heads, "all": heads["last"]})


def test_a_graph_states_its_features() -> None:
    nodes = (Conv("one", INPUT, 3, 2, 1), Conv("two", "one", 2, 3, 1))
    graph = Graph(nodes, 1)
    assert (graph.features, graph.strides) == (("two",), (1,))
    for features, strides in ((("two", "one"), (1, 1)), (("one", "two"), (1,))):
        with pytest.raises(ValueError, match="features must end with the last node, two"):
            Graph(nodes, 1, features, strides)


def test_a_description_is_of_a_head_and_what_it_reads() -> None:
    source = extract(supernet("resnet18", "light")).description.heads["a"].source
    made = HeadDescription.of(HeadSpec("light", 26, 4, 2), [source])
    assert (made.sources, made.widths, made.features) == ((source,), (26,), ())
