"""Networks of timm and torchvision: pruned they compute the same, at the cost by formula.

`python -m benchmarks.imported` proves them at full width, with many patterns, and exports each.
"""

import pytest
import torch
from torch import Tensor

from benchmarks.imported import (
    ERROR,
    LEAST,
    NETWORKS,
    SHAPE,
    SIZE,
    budget_shares,
    by_formula,
    counted,
    ends_equal,
    exported,
    granularities,
    largest_gap,
    parts_of_graph,
    patterns,
    scatter,
)
from gatesearch.cost import PatternCost, count_macs, macs_of_tasks
from gatesearch.models import GatedSupernet
from gatesearch.models.encoder import Encoder
from gatesearch.models.graph import Graph
from gatesearch.models.imported import import_backbone
from gatesearch.pruning import extract, subnetwork

pytest.importorskip("timm", reason="networks of timm need pip install 'gatesearch[timm]'")

QUICK = ("timm:mobilenetv3_small_100", "timm:convnext_atto")
ATTENDING = "timm:vit_tiny_patch16_224"
many = pytest.mark.slow("many networks")
# Networks of the same kinds of nodes as others; `python -m benchmarks.imported` proves all.
ALIKE = (
    "timm:deit_tiny_patch16_224", "torchvision:resnet50", "torchvision:convnext_tiny",
    "torchvision:swin_t", "torchvision:vit_b_16",
)  # fmt: skip
EVERY = [
    *QUICK,
    *(pytest.param(name, marks=many) for name in NETWORKS if name not in (*QUICK, *ALIKE)),
]


def narrow(name: str) -> Graph:
    """The network at a quarter of its width, where it can be had at another than its own."""
    graph = import_backbone(name, SIZE).graph
    routed = any(node.routes is not None for node in graph)
    return graph if routed else graph.scaled(0.25)


def supernet(graph: Graph, kind: str) -> tuple[GatedSupernet, Tensor]:
    """A supernet in evaluation mode, and the images that its batch norms know."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, *SIZE)
    model = GatedSupernet(parts_of_graph(graph), granularity=kind)
    scatter(model, image)
    return model, image


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("name", EVERY)
def test_a_pattern_is_cut_and_priced(name: str) -> None:
    graph = narrow(name)
    model, image = supernet(graph, granularities(graph)[-1])
    pattern = next(patterns(model, 1))
    assert largest_gap(model, [pattern], image, torch.float64) < ERROR
    found = counted(model, pattern)
    task, *_ = model.tasks
    cost = PatternCost.of(model, SHAPE, tasks=[task])
    assert by_formula(cost, pattern) == (found.macs, found.params)
    assert not found.uncounted
    whole = extract(model)
    own = macs_of_tasks(whole, SHAPE, whole=found.macs)[task]
    assert own == int(cost.alone[task].macs(pattern))
    with torch.no_grad():
        expected, alone = whole.double()(image.double()), subnetwork(whole, [task])(image.double())
    assert largest_difference(alone[task], expected[task]) < 1e-6


@pytest.mark.slow("traces many networks")
@pytest.mark.parametrize(
    ("name", "kind"), [(QUICK[0], "conv"), (QUICK[1], "block"), (ATTENDING, "conv")]
)
def test_ends_budgets_and_counters(name: str, kind: str) -> None:
    graph = narrow(name)
    model, _ = supernet(graph, kind)
    cost = PatternCost.of(model, SHAPE)
    assert ends_equal(model, cost)
    least, most = budget_shares(model, cost)
    assert LEAST <= least <= most <= 1
    for found in (
        count_macs(Encoder(graph), SHAPE),
        counted(model, next(patterns(model, 0)), cross_check=True),
    ):
        assert found.disagreements == ()
        assert not found.uncounted


@pytest.mark.slow("exports")
def test_exports_take_other_batches() -> None:
    model, _ = supernet(narrow(QUICK[1]), "conv")
    # Tasks own channels of the last layers alone: an export takes time for every layer of a stream.
    gates = {name: torch.zeros_like(gate) for name, gate in model.hard_gates().items()}
    for name in model.gated[-4:]:
        gates[name][:, ::2] = True
    model.set_gates(gates)
    difference = exported(extract(model), "onnx")
    assert isinstance(difference, float), difference


@pytest.mark.slow("counts a large network")
def test_attention_is_counted_as_published() -> None:
    """By hand: patches, 12 blocks of 197 tokens of 768 channels, the classifier.

    The 17.58 GMACs of other tables count 25 layer norms too, as fvcore does: 5 for each entry.
    """
    from torchvision.models import ViT_B_16_Weights, vit_b_16

    tokens, width = 197, 768
    block = tokens * 12 * width**2 + 2 * tokens**2 * width
    by_hand = 196 * 3 * 16**2 * width + 12 * block + width * 1000
    with torch.device("meta"):
        found = count_macs(vit_b_16(), (1, 3, 224, 224))
    assert found.macs == by_hand
    unseen = 12 * tokens * 4 * width**2  # thop does not see the projections of torch's attention
    (line,) = found.disagreements
    assert line.startswith("thop counts ")
    products = 12 * 2 * tokens**2 * width
    assert f"counts {by_hand - products - unseen:,} " in line
    assert round(found.macs / 1e9, 3) == ViT_B_16_Weights.IMAGENET1K_V1.meta["_ops"] == 17.564
    assert round((found.macs + 25 * 5 * tokens * width) / 1e9, 2) == 17.58
