"""Torch-Pruning as a baseline: its pruned network is the one that gatesearch cuts."""

import json
import sys
from collections.abc import Iterator

import pytest
import torch

from benchmarks.torch_pruning import gather_gradients, open_pruner, prune
from gatesearch import plugins
from gatesearch.cost import count_macs
from gatesearch.cost.narrowing import NarrowCost
from gatesearch.errors import UsageError
from gatesearch.events import Event, Log
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    TrainedNetwork,
    TrainingRequest,
    build_model,
    check_study,
)
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, features_of
from gatesearch.models.narrowing import narrowed_multi_task_state, narrowed_parts
from gatesearch.plugins import load_plugins
from gatesearch.pruning import CompactNet
from gatesearch.search.run import run
from gatesearch.training.split_data import normalize
from gatesearch.trials.context import open_context
from gatesearch.trials.kept_networks import kept_network
from gatesearch.trials.phase_training import phases_of
from tests.forks import ROOT
from tests.methods.test_every_method import check_resumes
from tests.methods.toys import (
    DEEP,
    assert_same_outputs,
    count_steps,
    parts,
    random_image,
    scattered,
)
from tests.search.tiny import epochs_of, ignore, interrupted_at, tiny

SIZE = (32, 32)
SHAPE = (1, 3, *SIZE)
NAMES = ("torch_pruning_l2", "torch_pruning_taylor")


@pytest.fixture
def known() -> Iterator[None]:
    """The plugin is loaded, as `--plugin` does."""
    tables: list[dict] = [METHODS, plugins._loaded, plugins._origins]
    before = [set(table) for table in tables]
    load_plugins([str(ROOT / "benchmarks" / "torch_pruning.py")], installed=False)
    yield
    for table, names in zip(tables, before, strict=True):
        for name in set(table) - names:
            del table[name]
    del sys.modules["gatesearch_plugin_torch_pruning"]


def small(backbone: str, head: str) -> Parts:
    graph = BACKBONES[backbone](output_stride=32, width=0.0625)
    features = features_of(graph) if head == "fpn" else ()
    heads = {t: HeadSpec(head, graph.outputs, 4, n, features) for t, n in {"a": 3, "b": 1}.items()}
    return Parts(graph, heads)


def gradients_of(network: MultiTaskNet) -> dict[str, torch.Tensor]:
    """Of any loss, in evaluation mode."""
    outputs = network(random_image(32))
    torch.autograd.backward(sum(y.square().mean() for y in outputs.values()))
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize(
    ("backbone", "head", "criterion", "global_pruning"),
    [
        ("cnn8", "fpn", "l2", False),
        ("cnn8", "fpn", "taylor", True),
        ("resnet18", "light", "taylor", False),
        ("resnet18", "light", "l2", True),
    ],
)
def test_what_torch_pruning_leaves_is_what_gatesearch_cuts(
    backbone, head, criterion, global_pruning
) -> None:
    whole = small(backbone, head)
    network = scattered(MultiTaskNet(whole)).eval()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    cost = NarrowCost(whole, SIZE)
    gradients = gradients_of(network) if criterion == "taylor" else None
    opened = open_pruner(network, cost, gradients, global_pruning=global_pruning)
    kept, taken = prune(opened, cost, share=0.5)
    ours = MultiTaskNet(narrowed_parts(whole, cost.groups, kept))
    ours.load_state_dict(narrowed_multi_task_state(whole, state, cost.groups, kept))
    assert_same_outputs(ours, network, random_image(32))
    counted = [count_macs(net, SHAPE, cross_check=False).macs for net in (ours, network)]
    full = count_macs(MultiTaskNet(whole), SHAPE, cross_check=False).macs
    assert counted[0] == counted[1] == pytest.approx(taken * full)
    assert 0.4 < taken <= 0.5


def test_by_default_all_layers_are_narrowed_by_one_factor() -> None:
    whole = small("cnn8", "light")
    cost = NarrowCost(whole, SIZE)
    opened = open_pruner(MultiTaskNet(whole).eval(), cost, None, global_pruning=False)
    kept, _ = prune(opened, cost, share=0.5)
    narrow = narrowed_parts(whole, cost.groups, kept).graph
    shares = [after.outputs / node.outputs for after, node in zip(narrow, whole.graph, strict=True)]
    # A layer of four channels is narrowed by quarters.
    assert max(shares) - min(shares) <= 0.25


def test_the_largest_weights_stay() -> None:
    """Every second channel of the last layer is made small, in all weights that it counts."""
    whole = small("cnn8", "light")
    cost, network = NarrowCost(whole, SIZE), MultiTaskNet(whole).eval()
    last = network.encoder.layer("stage3.1")
    readers = [network.heads[task].layers[0].conv.weight for task in whole.tasks]
    with torch.no_grad():
        for weight in (last.conv.weight, *(r.transpose(0, 1) for r in readers)):
            weight[::2] *= 0.01
    opened = open_pruner(network, cost, None, global_pruning=False)
    kept, _ = prune(opened, cost, share=0.5)
    left = set(cost.groups.channels(kept)["stage3.1"].tolist())
    assert set(range(1, 32, 2)) < left < set(range(32))


def test_a_backbone_whose_channels_it_couples_otherwise_is_refused() -> None:
    """Dilated depthwise convolutions are computed without a call of their module."""
    whole = parts(BACKBONES["efficientnet_lite0"](width=0.1, output_stride=16))
    cost = NarrowCost(whole, (64, 64))
    with pytest.raises(UsageError, match=r"found others at blocks\.12\.depthwise of this"):
        open_pruner(MultiTaskNet(whole).eval(), cost, None, global_pruning=False)


# -- the methods --------------------------------------------------------------


def request_of(name: str, tmp_path, data, *overrides: str, emit=ignore) -> TrainingRequest:
    study = check_study(tiny(tmp_path, "training.epochs=4", *DEEP, *overrides))
    context = open_context(study, data=data, stored=None, emit=ignore)
    return TrainingRequest(NetworkSpec(name, 0), context, None, emit)


@pytest.mark.parametrize("name", NAMES)
def test_the_second_phase_is_within_the_share_and_says_what_it_took(
    name, tmp_path, data, known
) -> None:
    heard: list[Log] = []
    share = f"options.{name}.share=0.6"
    first, second = phases_of(request_of(name, tmp_path, data, share, emit=heard.append))
    assert (first.span, second.span) == ((0, 2), (2, 4))
    network = scattered(first.begin(None).module)
    shape = (1, 3, 16, 16)
    whole = count_macs(network, shape, cross_check=False)
    found = second.begin(TrainedNetwork(network)).module
    cost = count_macs(found, shape, cross_check=False)
    assert 0.55 < cost.macs / whole.macs <= 0.6
    (log,) = heard
    assert log.message.startswith(f"{name}: Torch-Pruning keeps ")
    assert f"take {cost.macs / whole.macs:.2%} of the multi-task network's FLOPs" in log.message
    rebuilt = second.rebuild(second.describe(found))
    rebuilt.load_state_dict(found.state_dict())
    assert_same_outputs(rebuilt, found, random_image(16))
    # Three batches of three frames are gathered for the 18 frames of two epochs.
    gathered = whole.gflops * 9 / 18 if name == NAMES[1] else 0.0
    assert second.forward_gflops(found) == pytest.approx(cost.gflops + gathered)


@pytest.mark.parametrize("name", NAMES)
def test_epochs_follow_from_the_training_cost(name, tmp_path, data, known) -> None:
    pflops = 3e-4
    share = f"options.{name}.share=0.6"
    request = request_of(name, tmp_path, data, f"options.{name}.pflops={pflops}", share)
    first, second = phases_of(request)
    network = first.begin(None).module
    whole = count_macs(network, request.context.input_shape, cross_check=False).gflops
    pruned = second.forward_gflops(second.begin(TrainedNetwork(network)).module)
    middle, last = second.span
    assert first.training.epochs == second.training.epochs == last > 4
    images = len(request.context.train) // 3 * 3
    spent = 3 * images * (whole * middle + pruned * (last - middle)) / 1e6
    # Less by what pruning takes below the share, and to half an epoch.
    assert spent == pytest.approx(pflops, abs=3 * images * whole * 0.75 / 1e6 + 0.03 * pflops)


def test_gradients_are_those_of_the_weighted_sum_of_losses(tmp_path, data, known) -> None:
    request = request_of(NAMES[1], tmp_path, data, "tasks.depth.weight=3")
    network = build_model(request.study, "mtl").train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frames = torch.tensor([[0, 1, 2], [5, 4, 3]])
    found = gather_gradients(request, network, frames)
    assert all(torch.equal(state[name], t) for name, t in network.state_dict().items())
    context = request.context
    network.zero_grad()
    for row in frames:
        batch = context.train.batch(row)
        outputs = network.eval()(normalize(batch["image"]))
        losses = {t: task.loss(outputs[t], batch[t]) for t, task in context.tasks.items()}
        torch.autograd.backward(losses["semseg"] + 3 * losses["depth"])
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("share=0.05", r"share must be at least 0\.\d+, which Torch-Pruning leaves .* raise it"),
        ("share=1", "share: .*less than 1, found 1"),
        ("pruned_after=0", "pruned_after: .*greater than 0, found 0"),
        ("pflops=-1", "pflops: .*greater than 0, found -1"),
        ("batches=3", r"unknown key 'batches'"),
        ("shar=0.5", "'shar'; did you mean 'share'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(
    option, message, tmp_path, known
) -> None:
    with pytest.raises(UsageError, match=message):
        check_study(tiny(tmp_path, f"options.torch_pruning_l2.{option}"))


def test_without_the_package_its_install_command_is_said(tmp_path, known, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(UsageError, match=r"pip install 'torch-pruning>=1\.6'"):
        check_study(tiny(tmp_path, "options.torch_pruning_l2.share=0.6"))


@pytest.mark.slow("trains")
def test_it_resumes_to_the_bit_inside_each_phase(tmp_path, data, known, monkeypatch) -> None:
    request = request_of(NAMES[1], tmp_path, data)
    steps = count_steps(monkeypatch)
    check_resumes(NAMES[1], request.study, request.context, tmp_path, steps)


@pytest.mark.slow("trains")
def test_an_interrupted_run_goes_on_with_what_is_left(tmp_path, data, known) -> None:
    methods = ("stl", "mtl", *NAMES)
    study = tiny(tmp_path, *DEEP, f"methods={json.dumps(methods)}", "training.epochs=3")
    own = {"n_trials": 0, "out": tmp_path / "out", "data": data}
    with pytest.raises(KeyboardInterrupt):
        run(study, **own, emit=interrupted_at(NAMES[1], 2))
    events: list[Event] = []
    record = run(study, **own, emit=events.append)
    assert epochs_of(events) == [(NAMES[1], epoch) for epoch in (1, 2, 3)]
    results = {result.method: result for result in record.baselines}
    assert set(results) == set(methods)
    for name in NAMES:
        assert results[name].state == "complete"
        assert results[name].gflops <= 0.5 * results["mtl"].gflops
        assert isinstance(kept_network(results[name], study, out=tmp_path / "out"), CompactNet)
    assert results[NAMES[0]].train_pflops < results["mtl"].train_pflops
    assert "torch_pruning" in (tmp_path / "out" / "plugins.json").read_text()
