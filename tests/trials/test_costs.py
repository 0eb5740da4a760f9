"""Costs of methods before any training."""

import pytest

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import build_model
from gatesearch.trials.costs import costs
from tests.search.tiny import tiny


def test_costs_are_those_of_the_networks_in_the_order_asked_for(tmp_path) -> None:
    study = tiny(tmp_path)
    counted = costs(study, ("mtl", "stl"))
    assert list(counted) == ["mtl", "stl"]
    for name, cost in counted.items():
        network = build_model(study, name)
        assert cost.macs == count_macs(network, (1, 3, 16, 16), cross_check=False).macs
        assert cost.params == sum(p.numel() for p in network.parameters())


def test_the_studys_own_methods_by_default(tmp_path) -> None:
    assert list(costs(tiny(tmp_path, 'methods=["mtl"]'))) == ["mtl"]


def test_a_cost_that_is_not_known_is_refused_with_the_reason(tmp_path) -> None:
    with pytest.raises(
        UsageError, match="'interrogate' is not known before it is trained: it lies"
    ):
        costs(tiny(tmp_path), ("mtl", "interrogate"))
    with pytest.raises(UsageError, match="unknown method 'mlt'; did you mean 'mtl'"):
        costs(tiny(tmp_path), ("mlt",))


def test_weights_that_are_not_there_do_not_matter(tmp_path) -> None:
    pretrained = tiny(tmp_path, "model.init=pretrained", "model.weights=none.safetensors")
    assert costs(pretrained, ("mtl",)) == costs(tiny(tmp_path), ("mtl",))
