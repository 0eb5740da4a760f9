"""A pruned transformer runs from a file on batches of any size."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gatesearch.export import Shipped, write_network
from gatesearch.export.formats import _program
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.gated_supernet import GatedSupernet
from gatesearch.models.heads import HEADS
from gatesearch.models.model_factory import HeadSpec, Parts, features_for
from gatesearch.pruning import extract
from tests.export.test_export import card
from tests.models.test_token_nodes import transformer
from tests.pruning.test_extract import put, scattered


@pytest.mark.slow("exports")
@pytest.mark.parametrize(("form", "windows"), [("pt2", False), ("onnx", True)])
def test_files_compute_what_the_network_does(form: str, windows: bool, tmp_path: Path) -> None:
    heads = {"semseg": HeadSpec("light", 8, 4, 8), "depth": HeadSpec("light", 8, 4, 1)}
    model = GatedSupernet(Parts(transformer(windows), heads))
    put(scattered(model, 0), np.random.default_rng(0))
    compact, path = extract(model), tmp_path / f"network.{form}"
    write_network(compact, card("trial 1").model_copy(update={"size": (32, 32)}), path, form=form)
    if form == "pt2":
        run = torch.export.load(path).module()
    else:
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        run = lambda image: session.run(None, {"image": image.numpy()})  # noqa: E731
    for count in (1, 3):
        image = 255 * torch.rand(count, 3, 32, 32)
        with torch.no_grad():
            expected, found = Shipped(compact, ("semseg", "depth"))(image), run(image)
        for ours, theirs in zip(found, expected, strict=True):
            assert (torch.as_tensor(ours) - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.slow("exports")
def test_a_program_takes_images_whose_maps_have_more_than_one_pixel() -> None:
    graph = BACKBONES["resnet18"](output_stride=32, width=0.05)
    features = features_for(graph, HEADS["fpn"])
    heads = {"semseg": HeadSpec("fpn", graph.outputs, 4, 8, features)}
    network = Shipped(extract(GatedSupernet(Parts(graph, heads))), ("semseg",)).eval()
    described = card("trial 1").model_copy(update={"size": (64, 96)})
    described = described.model_copy(update={"tasks": {"semseg": described.tasks["semseg"]}})
    run = _program(network.network, described).module()
    for size in ((33, 33), (50, 70)):
        image = 255 * torch.rand(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(run(image), network(image))
    with pytest.raises(AssertionError, match="Guard failed"):
        run(torch.rand(1, 3, 32, 64))
