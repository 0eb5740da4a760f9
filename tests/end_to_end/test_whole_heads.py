"""Whole heads of an imported transformer, spread evenly and aligned, through the command line."""

import pytest

from gatesearch.store.opening import read_store
from tests.end_to_end.conftest import TINY, CommandLine

pytest.importorskip("timm")
pytestmark = pytest.mark.end_to_end

PLUGIN = '''"""ViT-tiny with two blocks of three narrow heads, for images of 32x32."""

import timm
from torch import Tensor, nn


class Tokens(nn.Module):
    """The transformer up to its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, drop_path_rate=0.2
        )

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, 24, 2, 2)."""
        tokens = self.vit.forward_features(image)[:, 1:]
        return tokens.transpose(1, 2).unflatten(2, (2, 2))


def register(registry):
    """Add it."""
    registry.add_module("small-vit", Tokens)
'''
MODEL = {
    "model.backbone": "small-vit", "model.width": 1, "model.output_stride": "auto",
    "interrogate.granularity": "head", "interrogate.spread": "even", "interrogate.align": "true",
    "interrogate.round_to": 4, "interrogate.finetune": 0.5, "search.regulariser": '["flops"]',
    "one_shot.patterns": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory, environment):
    """The command line in the folder of a search by both methods, and what it printed."""
    cli = CommandLine(tmp_path_factory.mktemp("heads"), environment)
    (cli.folder / "vit.py").write_text(PLUGIN)
    own = [word for key, value in MODEL.items() for word in ("--set", f"{key}={value}")]
    run = ("run", "--plugin", "vit.py", "--study", TINY, *own, "--tune", "interrogate,one_shot")
    done = cli(*run, "--methods", "mtl,stl", "--n-trials", 1, "--budget", "1.3xMTL", "--json")
    assert done.code == 0, done.stderr
    return cli, done


def test_both_methods_keep_networks_within_the_budget(searched) -> None:
    cli, _ = searched
    record = read_store(cli.folder / "runs" / "tiny")
    assert [(trial.method, trial.state) for trial in record.trials] == [
        ("interrogate", "complete"),
        ("one_shot", "complete"),
    ]
    (mtl,) = (result for result in record.baselines if result.method == "mtl")
    assert all(trial.gflops <= 1.3 * mtl.gflops for trial in record.trials)
