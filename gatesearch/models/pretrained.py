"""ImageNet weights for the encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gatesearch.errors import DataError, UsageError
from gatesearch.models.encoder import Encoder, key
from gatesearch.models.graph import Graph


def load_pretrained(backbone: str, weights: str, graph: Graph) -> dict[str, Tensor]:
    """State of an `Encoder` over `graph`.

    Args:
        backbone: torchvision's name of the network.
        weights: `imagenet` fetches torchvision's default weights (cached by torch.hub); otherwise a
            .safetensors file with torchvision's parameter names.
        graph: The encoder's graph, at full width: narrower ones have no published weights.

    Raises:
        UsageError: Weights that cannot be had or do not fit, with the cure.
    """
    if weights == "imagenet":
        import torchvision

        enum = torchvision.models.get_model_weights(backbone)
        try:
            source = enum.DEFAULT.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise DataError(
                f"cannot fetch torchvision's weights of {backbone} ({error}); give a file with "
                "--set model.weights=FILE.safetensors, or start with --set model.init=scratch"
            ) from error
    else:
        source = _read(Path(weights))
    state = encoder_state(source, graph)
    with torch.device("meta"):
        expected = Encoder(graph).state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise UsageError(f"model.weights: '{weights}' lacks the weights of {name}")
        if state[name].shape != tensor.shape:
            raise UsageError(
                f"model.weights: {name} is {tuple(state[name].shape)} in '{weights}' but "
                f"{tuple(tensor.shape)} in this network; pretrained weights need model.width = 1"
            )
    return {name: state[name] for name in expected}


def encoder_state(source: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Torchvision's ResNet state under the names of `Encoder`."""
    state: dict[str, Tensor] = {}
    for node in graph.convs:
        if node.name.endswith("downsample"):
            conv, norm = f"{node.name}.0.", f"{node.name}.1."
        else:
            conv, norm = f"{node.name}.", node.name.replace("conv", "bn") + "."
        for ours, theirs in (("conv", conv), ("bn", norm)):
            for name, tensor in source.items():
                if name.startswith(theirs):
                    state[f"layers.{key(node.name)}.{ours}.{name.removeprefix(theirs)}"] = tensor
    return state


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"model.weights: no file {path}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"model.weights: {path} is not a safetensors file: {error}") from error
