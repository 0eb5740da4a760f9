"""Branching: every cut point of every backbone is a plain network that computes the pattern's."""

import dataclasses
import itertools

import pytest
import torch

from gatesearch.cost import Budget, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import NetworkSpec, Stopwatch, TrainingRequest, build_model
from gatesearch.methods.branch import (
    BranchOptions,
    affordable,
    branched,
    build,
    chosen,
    cut_points,
    pattern_at,
)
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.models import GatedSupernet
from gatesearch.models.backbones import BACKBONES
from gatesearch.pruning import extract
from gatesearch.search.setup import ExecutionOptions, check_run
from gatesearch.training import TrainingError
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from tests.methods.toys import assert_same_outputs, ends_of, parts, random_image, scattered
from tests.search.tiny import tiny


def supernet_at(last: str, graph=None, *, seed: int = 0) -> GatedSupernet:
    made = parts(graph, seed=seed)
    supernet = GatedSupernet(made)
    supernet.set_gates(pattern_at(made.graph, last, tasks=2))
    return supernet


def test_cut_points_by_hand() -> None:
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert cut_points(BACKBONES["resnet18"]()) == ("image", "conv1", *blocks)
    assert len(cut_points(BACKBONES["resnet50"]())) == 2 + 3 + 4 + 6 + 3
    assert len(cut_points(BACKBONES["efficientnet_lite0"]())) == 2 + 16


def test_each_cut_point_has_an_equal_part_of_the_range() -> None:
    points = cut_points(BACKBONES["resnet18"]())
    assert [chosen((i + 0.5) / 10, points) for i in range(10)] == list(points)
    assert (chosen(0.0, points), chosen(1.0, points)) == ("image", "layer4.1")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_cut_computes_what_the_pattern_of_the_supernet_does(backbone) -> None:
    graph = BACKBONES[backbone](output_stride=32, width=0.05)
    points = cut_points(graph)
    # Ends, a middle, and the cuts around the first blocks.
    for last in {points[0], points[1], points[2], points[len(points) // 2], points[-1]}:
        supernet = scattered(supernet_at(last, graph))
        assert_same_outputs(extract(supernet), supernet, random_image(32))


def test_a_step_of_training_is_that_of_the_supernet_pattern() -> None:
    """Gradients of the shared stem and of a task's own last convolution, in training mode."""
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    supernet = supernet_at("layer2.0", graph)
    compact = branched(parts(graph), pattern_at(graph, "layer2.0", tasks=2))
    for network in (supernet, compact):
        outputs = network.train()(random_image())
        sum(prediction.square().mean() for prediction in outputs.values()).backward()
    stem = supernet.streams["_shared"].layers["conv1"].conv.weight.grad
    torch.testing.assert_close(compact.convs["conv1__shared"].conv.weight.grad, stem)
    for task in ("a", "b"):
        theirs = supernet.streams[task].layers["layer4_1_conv2"].conv.weight.grad
        ours = compact.convs[f"layer4_1_conv2_{task}"].conv.weight.grad
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_its_ends_are_the_single_task_and_the_multi_task_network() -> None:
    for cut, other in ((0.0, SingleTaskNets), (1.0, MultiTaskNet)):
        ours, theirs = build(parts(seed=4), BranchOptions(cut=cut)), other(parts(seed=4))
        assert_same_outputs(ours, theirs, random_image())
        counted = [count_macs(n, (1, 3, 64, 64), cross_check=False) for n in (ours, theirs)]
        assert counted[0].macs == counted[1].macs
        assert counted[0].params == counted[1].params


def test_a_later_cut_has_fewer_parameters() -> None:
    networks = [build(parts(), BranchOptions(cut=i / 9)) for i in range(10)]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert all(before > after for before, after in itertools.pairwise(counts))


@pytest.mark.slow("counts costs")
@pytest.mark.parametrize("measure", ["macs", "params"])
def test_within_a_budget_every_cut_keeps_to_it(tmp_path, data, measure) -> None:
    study = tiny(tmp_path)
    ends = ends_of(study)
    mtl, stl = (getattr(ends[name], measure) for name in ("mtl", "stl"))
    context = open_context(study, data=data, stored=None, emit=lambda event: None)
    budget = Budget("b", measure, mtl + 0.9 * (stl - mtl))
    found = set()
    for cut in (0.0, 0.3, 0.6, 1.0):
        spec = NetworkSpec("branch", 0, 0, {"cut": cut}, (budget,))
        (phase,) = phases_of(TrainingRequest(spec, context, None, lambda event: None))
        network = phase.begin(None).module
        cost = count_macs(network, context.input_shape, cross_check=False)
        assert budget.share(cost) <= 1
        found.add(getattr(cost, measure))
        rebuilt = phase.rebuild(phase.describe(network))
        assert rebuilt.state_dict().keys() == network.state_dict().keys()
    assert len(found) > 1
    assert min(found) == mtl, "the whole encoder is shared at 1"


def test_a_budget_of_latency_keeps_the_networks_measured_within_it(
    tmp_path, data, monkeypatch
) -> None:
    context = open_context(tiny(tmp_path), data=data, stored=None, emit=lambda event: None)
    context = dataclasses.replace(context, stopwatch=Stopwatch(context.runtime, None))
    made = parts()

    def clock(network, shape, runtime) -> float:
        return 1e-9 * sum(p.numel() for p in network.parameters())

    def within(ms: float) -> tuple[str, ...]:
        budgets = (Budget(f"{ms}ms", "latency", 1e-3 * ms),)
        spec = NetworkSpec("branch", 0, 0, {"cut": 0.5}, budgets)
        return affordable(made, TrainingRequest(spec, context, None, lambda event: None))

    monkeypatch.setattr("gatesearch.methods.branch.median_latency", clock)
    sizes = [sum(p.numel() for p in build(made, BranchOptions(cut=c)).parameters()) for c in (0, 1)]
    assert within(1e-6 * sizes[0]) == cut_points(made.graph)
    assert within(1e-6 * sizes[1]) == ("layer4.1",)
    with pytest.raises(TrainingError, match=r"must be possible, found .* for the fastest"):
        within(0.9e-6 * sizes[1])


def test_a_budget_below_the_cheapest_is_refused(tmp_path) -> None:
    study = tiny(tmp_path).model_copy(update={"tune": ("branch",), "methods": ("mtl",)})
    with pytest.raises(UsageError, match=r"budget 0.9xMTL .* out of reach: .* \(mtl\) to .*\(stl"):
        check_run(study, ["0.9xMTL"], ExecutionOptions())


def test_the_option_moves_the_cut(tmp_path) -> None:
    study = tiny(tmp_path, "options.branch.cut=0.25")
    assert any(name.endswith("_semseg_depth") for name in build_model(study, "branch").convs)
    with pytest.raises(UsageError, match="cut"):
        build_model(tiny(tmp_path, "options.branch.cut=1.5"), "branch")
