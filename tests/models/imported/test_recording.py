"""What cannot be imported is refused with module, line and operator; constants are followed."""

import inspect
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.models.imported.imported import import_module
from gatesearch.models.imported.recording import record


class Part(nn.Module):
    """A convolution, and then a function of its result."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), function

    def forward(self, image: Tensor) -> object:
        return self.function(self.conv(image))


def branch(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


FAULTS: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "control flow": (branch, "__bool__ .* depends on values computed from the image, as in data-"),
    "a value": (lambda x: x * x.max().item(), "item .* depends on values computed from the image"),
    "unknown operator": (lambda x: x.cumsum(1), "cumsum .* is an operator that no kind of node"),
    "writing into a part": (lambda x: x.__setitem__(0, 1), "__setitem__ .* writes into a part"),
    "an oblong stride": (
        lambda x: F.conv2d(x, torch.ones(2, 4, 1, 3), stride=(1, 2)),
        r"conv2d .* differs in height and width, \[1, 2\]",
    ),
    "channels in two": (
        lambda x: x.reshape(-1, 2, 2, 6, 6).softmax(1),
        "softmax .* is of other values than scores",
    ),
    "another rank": (lambda x: F.max_pool2d(x.mean(1), 2), "mean .* reduces channels or images"),
    "an error": (lambda x: x @ x[:, :, 1:], "matmul .* fails on an image without data: "),
    "what is drawn": (lambda x: F.dropout(x, training=True), "drops values even in evaluation"),
}


@pytest.mark.parametrize(("function", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_what_cannot_become_nodes_is_named(
    function: Callable[[Tensor], object], fault: str
) -> None:
    line = inspect.getsourcelines(function)[1]
    place = rf"the network cannot be imported: \w+ in part \({__file__}:\d+\)"
    network = nn.Sequential()
    network.add_module("part", Part(function))
    with pytest.raises(UsageError, match=fault) as caught:
        import_module("own", lambda: network, (8, 8))
    message = str(caught.value)
    assert re.match(place, message), message
    found = int(message.split(f"{__file__}:")[1].split(")")[0])
    assert line <= found <= line + 4
    assert "gs.opaque(module)" in message


def test_an_output_that_is_no_map_is_refused() -> None:
    with pytest.raises(UsageError, match="must return a feature map, or a list or dict of feature"):
        record(Part(lambda x: "text"), (8, 8))
    with pytest.raises(UsageError, match="found Tensor"):
        record(Part(lambda x: torch.zeros(2, 3)), (8, 8))


def test_a_module_is_left_as_it_was() -> None:
    module = Part(torch.relu).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    recording = record(module, (8, 8))
    assert module.training
    assert module.conv.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert [call.function for call in recording.calls] == ["conv2d", "relu"]
    assert [call.site.module for call in recording.calls] == ["conv", ""]


class Standardised(nn.Module):
    """A convolution whose weight is computed, and a mask that depends on constants alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.register_buffer("limit", torch.tensor([2.0]))

    def forward(self, image: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        mask = torch.ones(4, device=image.device)
        mask[1:3] = 0.5
        if self.limit > 1:  # a value that is known
            mask = mask * self.limit
        return F.conv2d(image, weight * mask.view(-1, 1, 1, 1), padding=1)


def test_weights_that_are_computed_follow_their_parameters() -> None:
    from gatesearch.models.encoder import Encoder

    imported = import_module("own", Standardised, (8, 8))
    assert imported.parameters == {"weight", "limit"}
    module = Standardised()
    encoder = Encoder(imported.graph)
    encoder.load_state_dict(imported.encoder_state(module.state_dict()))
    image = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(encoder(image), module(image))
