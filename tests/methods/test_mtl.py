"""Hard parameter sharing: one encoder whose features all heads read."""

import torch

from gatesearch.cost import count_macs
from gatesearch.methods import METHODS, build_model
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.trials.kept_networks import as_compact
from tests.methods.toys import assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import tiny


@torch.no_grad()
def test_every_head_reads_the_same_features() -> None:
    model, image = scattered(MultiTaskNet(parts())).eval(), random_image()
    features = model.encoder(image)
    for task, prediction in model(image).items():
        assert torch.equal(prediction, model.heads[task](features, (64, 64)))


def test_the_loss_of_one_task_moves_the_encoder_and_its_own_head() -> None:
    model = MultiTaskNet(parts())
    model(random_image())["a"].square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in moved} == {"encoder", "heads"}
    assert not any(name.startswith("heads.b.") for name in moved)


def test_heads_of_two_tasks_differ_and_so_do_seeds() -> None:
    model, other = MultiTaskNet(parts(seed=4)), MultiTaskNet(parts(seed=5))
    first, second = (model.heads[task].layers[0].conv.weight for task in ("a", "b"))
    assert first.shape == second.shape
    assert not torch.equal(first, second)
    for name in ("encoder.layers.conv1.conv.weight", "heads.a.layers.0.conv.weight"):
        assert not torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_its_compact_network_computes_and_costs_the_same(tmp_path) -> None:
    study = tiny(tmp_path)
    network = scattered(build_model(study, "mtl"))
    compact = as_compact(network, "mtl", study)
    assert_same_outputs(compact, network, random_image(16))
    ours, theirs = (count_macs(n, (1, 3, 16, 16), cross_check=False) for n in (compact, network))
    assert (ours.macs, ours.backbone_macs) == (theirs.macs, theirs.backbone_macs)
    assert METHODS["mtl"].baseline
