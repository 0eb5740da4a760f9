"""What trainings of a run share."""

import torch

from gatesearch.trials.context import open_context
from tests.search.tiny import tiny


def test_images_are_seen_as_the_method_trains_and_always_alike(tmp_path) -> None:
    study = tiny(
        tmp_path, "training.augment={flip=false}",
        "options.mtl.training.augment={flip=false,zoom=[2.0]}",
    )  # fmt: skip
    bench = open_context(study, data=tmp_path, stored=None, emit=lambda event: None)
    batch = next(iter(bench.train.in_order(3)))
    plain = batch["image"].float()
    assert torch.equal(bench.seen("stl")(batch), plain)
    zoomed = bench.seen("mtl")(batch)
    assert zoomed.shape == plain.shape
    assert not torch.equal(zoomed, plain)
    assert torch.equal(bench.seen("mtl")(batch), zoomed)
