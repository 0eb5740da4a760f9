"""A module that is kept whole is one node in every network."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gatesearch.cost import PatternCost, count_macs
from gatesearch.errors import UsageError
from gatesearch.models.encoder import Encoder
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.imported import import_module, opaque
from gatesearch.models.nodes import Opaque
from gatesearch.models.nodes.opaque import MODULES, OpaqueStep
from gatesearch.pruning import extract
from tests.pruning.test_extract import gap, parts, put, scattered


class Sorted(nn.Module):
    """A layer of tokens that no kind of node computes: its tokens are sorted."""

    def __init__(self, times: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        height, width = size
        assert x.shape[1] == height * width
        return self.linear(x).sort(1).values


class Network(nn.Module):
    """Convolutions, then tokens through a module that is kept whole, then a map again."""

    def __init__(self, *, whole: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6))
        self.part = opaque(Sorted()) if whole else Sorted()
        self.last = nn.Conv2d(4, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        height, width = x.shape[-2:]
        x = self.part(x.flatten(2).transpose(1, 2), (height, width))
        return self.last(x.transpose(1, 2).unflatten(2, (height, width)))


def test_it_computes_what_the_module_does() -> None:
    imported = import_module("own", Network, (8, 8))
    (node,) = (node for node in imported.graph if isinstance(node, Opaque))
    assert (node.name, node.module, node.arguments) == ("part", "own/part", ((4, 4),))
    module = Network().eval()
    encoder = Encoder(imported.graph).eval()
    encoder.load_state_dict(imported.encoder_state(module.state_dict()))
    image = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(encoder(image), module(image))
    with pytest.raises(UsageError, match=r"found model\.width = 0\.5 at part; leave it at 1"):
        imported.graph.scaled(0.5)


def test_without_the_mark_it_is_refused_with_this_cure() -> None:
    with pytest.raises(
        UsageError, match=r"sort in part .* keep it whole with gs\.opaque\(module\)"
    ):
        import_module("own", lambda: Network(whole=False), (8, 8))
    with pytest.raises(UsageError, match="takes a torch module, found int"):
        opaque(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
def test_it_is_gated_priced_and_extracted_whole(seed: int) -> None:
    graph = import_module("own", Network, (8, 8)).graph
    model = scattered(GatedSupernet(parts(graph, 2)), seed)
    put(model, np.random.default_rng(seed))
    compact, cost = extract(model), PatternCost.of(model, (1, 3, 8, 8))
    counted = count_macs(compact, (1, 3, 8, 8), cross_check=False)
    assert float(cost.macs(model.hard_gates())) == pytest.approx(counted.macs, abs=1e-6)
    assert float(cost.params(model.hard_gates())) == pytest.approx(counted.params, abs=1e-6)
    assert gap(compact, model, torch.randn(1, 3, 8, 8)) < 1e-5
    kept = [step for step in compact.description.steps if isinstance(step, OpaqueStep)]
    assert kept
    assert all(step.outputs == 4 for step in kept)


def test_a_saved_network_needs_its_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = import_module("own", Network, (8, 8)).graph
    description = extract(scattered(GatedSupernet(parts(graph, 1)))).description
    again = type(description).model_validate_json(description.model_dump_json())
    again.check()
    monkeypatch.delitem(MODULES, "own/part")
    with pytest.raises(
        ValueError, match="the module part of own whole; import this backbone first"
    ):
        again.check()
