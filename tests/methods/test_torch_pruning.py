"""Torch-Pruning as a baseline: its pruned network is the one that gatesearch cuts."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.torch_pruning import L2, TAYLOR, gather_gradients, open_pruner, prune
from gatesearch.cost import count_macs
from gatesearch.cost.narrowing import NarrowCost
from gatesearch.errors import UsageError
from gatesearch.events import Log
from gatesearch.methods import METHODS, NetworkSpec, TrainingRequest, check_study
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, features_of
from gatesearch.models.narrowing import narrowed_multi_task_state, narrowed_parts
from gatesearch.store.opening import read_store
from gatesearch.trials.context import open_context
from gatesearch.trials.kept_networks import kept_network
from gatesearch.trials.phase_training import phases_of
from tests.end_to_end.conftest import TINY, CommandLine
from tests.forks import ROOT
from tests.methods.toys import assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import ignore, tiny

SIZE = (32, 32)
SHAPE = (1, 3, *SIZE)
PLUGIN = ROOT / "benchmarks" / "torch_pruning.py"


@pytest.fixture
def known(monkeypatch) -> None:
    """Both methods are among those of the package."""
    for method in (L2, TAYLOR):
        monkeypatch.setitem(METHODS, method.name, method)


def small(backbone: str, head: str) -> Parts:
    graph = BACKBONES[backbone](output_stride=32, width=0.125)
    features = features_of(graph) if head == "fpn" else ()
    heads = {t: HeadSpec(head, graph.outputs, 4, n, features) for t, n in {"a": 3, "b": 1}.items()}
    return Parts(graph, heads)


def gradients_of(network: MultiTaskNet) -> dict[str, torch.Tensor]:
    """Of any loss, in evaluation mode."""
    outputs = network(random_image(32))
    torch.autograd.backward(sum(y.square().mean() for y in outputs.values()))
    return {name: p.grad.clone() for name, p in network.named_parameters()}


@pytest.mark.parametrize("criterion", ["l2", "taylor"])
@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize(("backbone", "head"), [("cnn8", "fpn"), ("resnet18", "light")])
def test_what_torch_pruning_leaves_is_what_gatesearch_cuts(
    backbone, head, global_pruning, criterion
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
    assert 0.45 < taken <= 0.5
