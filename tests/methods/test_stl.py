"""Single-task networks: nothing shared, the reference of Δ_MTL."""

import torch

from gatesearch.cost import count_macs
from gatesearch.methods import NetworkSpec, build_model, start_of
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.stl import SingleTaskNets
from gatesearch.trials.kept_networks import as_compact
from tests.methods.toys import HEADS, assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import tiny


def test_the_loss_of_one_task_moves_nothing_of_another() -> None:
    model = SingleTaskNets(parts())
    model(random_image())["a"].square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {".".join(name.split(".")[:2]) for name in moved} == {"encoders.a", "heads.a"}


@torch.no_grad()
def test_each_is_the_multi_task_network_of_its_task_alone() -> None:
    image = random_image()
    both = SingleTaskNets(parts(seed=4)).eval()(image)
    shared = MultiTaskNet(parts(seed=4)).eval()(image)
    assert all(torch.equal(both[task], shared[task]) for task in HEADS)


def test_it_costs_one_encoder_per_task(tmp_path) -> None:
    study = tiny(tmp_path)
    stl, mtl = (
        count_macs(build_model(study, name), (1, 3, 16, 16), cross_check=False)
        for name in ("stl", "mtl")
    )
    assert stl.backbone_macs == 2 * mtl.backbone_macs
    assert stl.macs - stl.backbone_macs == mtl.macs - mtl.backbone_macs


def test_its_compact_network_computes_the_same(tmp_path) -> None:
    study = tiny(tmp_path)
    network = scattered(build_model(study, "stl"))
    assert_same_outputs(as_compact(network, "stl", study), network, random_image(16))


def test_it_starts_from_nothing_else_whatever_the_study_says(tmp_path) -> None:
    assert start_of(NetworkSpec("stl", 0), tiny(tmp_path, "model.init=stl")) is None
