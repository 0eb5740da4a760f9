"""Imported networks start from a file of their module's weights, whatever is around them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.encoder import Encoder
from gatesearch.models.imported import import_module
from gatesearch.models.imported.weights import trained_state

SIZE = (8, 8)


def build() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.SiLU())


def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return {name: tensor.clone() for name, tensor in build().state_dict().items()}


@pytest.mark.parametrize("form", ["safetensors", "part of a network", "checkpoint"])
def test_a_file_gives_the_features_of_its_module(form: str, tmp_path: Path) -> None:
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    inside = {f"net.encoder.{name}": tensor for name, tensor in state().items()}
    if form == "safetensors":
        save_file(state(), file)
    else:
        torch.save(inside if form == "part of a network" else {"state_dict": inside}, file)
    imported = import_module("mine", build, SIZE)
    encoder, module = Encoder(imported.graph).eval(), build().eval()
    encoder.load_state_dict(trained_state(imported, str(file), SIZE))
    module.load_state_dict(state())
    image = torch.randn(1, 3, *SIZE)
    torch.testing.assert_close(encoder(image), module(image))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no weights", "found another or a damaged file"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, "must have an entry"),
        ({**state(), "0.weight": torch.zeros(4, 3, 5, 5)}, "give weights of this very network"),
        ({**state(), "1.running_var": -torch.ones(4)}, "no variance negative"),
        ({f"{p}.{n}": t for p in "ab" for n, t in state().items()}, "found it below a., b."),
    ],
)
def test_other_files_are_refused(content: object, said: str, tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UsageError, match=said):
        trained_state(import_module("mine", build, SIZE), str(file), SIZE)
