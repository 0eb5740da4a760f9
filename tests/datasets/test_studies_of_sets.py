"""The studies of PASCAL-Context, CelebA and UTKFace learn from packs of made-up frames."""

import math

import pytest
import torch

from gatesearch import load_study
from gatesearch.datasets import DATASETS, PackRequest
from gatesearch.methods import build_model, check_study
from gatesearch.study import builtin_studies
from gatesearch.trials.data import open_data
from tests.faces import write_celeba, write_utkface
from tests.pascal_tree import write_pascal

WRITERS = {"pascal": write_pascal, "celeba": write_celeba, "utkface": write_utkface}
STUDIES = ("pascal-small", "celeba", "celeba-small", "utkface-small")


@pytest.mark.parametrize("name", [*STUDIES, "pascal"])
def test_every_file_begins_with_the_command_that_runs_it(name):
    first = builtin_studies()[name].read_text().splitlines()[0]
    assert first.startswith(f"# gatesearch run --study {name} --n-trials ")
    check_study(load_study(name))


@pytest.mark.parametrize("name", STUDIES)
def test_a_step_lowers_the_loss_of_every_task(tmp_path, name):
    """Ten steps on the frames of one batch, from pack to gradient."""
    torch.manual_seed(0)
    set_name = name.partition("-")[0]
    carved = [] if set_name == "celeba" else ["data.validation=1"]
    size = [] if set_name != "pascal" else ["protocol.size=[64, 64]"]
    study = load_study(
        name, ["training.batch_size=2", "data.train_frames=0", "model.init=scratch", *carved, *size]
    )
    DATASETS[set_name].prepare(
        folder=tmp_path / "data",
        source=WRITERS[set_name](tmp_path / "release"),
        request=PackRequest(study.protocol.size),
        emit=lambda event: None,
    )
    opened = open_data(study, data=tmp_path / "data", emit=lambda event: None)
    batch = next(opened.train.in_order(len(opened.train)))
    network = build_model(study, "mtl", pretrained=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    history = []
    for _ in range(10):
        predictions = network(batch["image"].float() / 255)
        losses = {
            name: task.loss(predictions[name].float(), batch[name])
            for name, task in opened.tasks.items()
        }
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    for task in opened.tasks:
        assert math.isfinite(history[-1][task])
        assert history[-1][task] < history[0][task], task
