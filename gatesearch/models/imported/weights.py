"""Trained weights for imported networks: published ones, or a file of the user's."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gatesearch.errors import DataError, UsageError, first_line
from gatesearch.files import FileRefusedError
from gatesearch.models.imported.imported import Imported
from gatesearch.models.imported.sources import timm_options
from gatesearch.models.pretrained import published_by_torchvision
from gatesearch.tensor_files import read_tensors, refuse_large

# Entries of a checkpoint that hold its weights, where it holds more.
_NESTED = ("state_dict", "model", "model_state_dict", "state_dict_ema")


def trained_state(
    imported: Imported, weights: str, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the state of `Encoder(imported.graph)` with trained weights.

    Args:
        imported: The network.
        weights: `imagenet` for those that its package publishes; else a file, .safetensors or what
            torch.save wrote of a state dict. Its names are the module's, or these below a prefix,
            as a network has in which the module is a part: `encoder.`, say.
        image_size: (H, W) of the images.

    Raises:
        UsageError: The weights do not fit; says the cure.
        DataError: The weights cannot be fetched; says the cure.
    """
    source = _published(imported.name, image_size) if weights == "imagenet" else _read(weights)
    source = _below(source, imported, weights)
    state = imported.encoder_state(source)
    initial = imported.shapes()
    for name, shape in initial.items():
        if state[name].shape != shape:
            raise UsageError(
                f"model.weights: {name} must be {tuple(shape)} in {imported.name}, found "
                f"{tuple(state[name].shape)} in '{weights}'; give weights of this very network"
            )
        least = state[name].min() if name.endswith("running_var") else 0
        if not state[name].isfinite().all() or least < 0:
            raise UsageError(
                f"model.weights: {name} must be finite, and no variance negative, found otherwise "
                f"in '{weights}'; put another file in its place"
            )
    return state


def _published(name: str, image_size: tuple[int, int]) -> Mapping[str, Tensor]:
    source, _, network = name.partition(":")
    if source == "torchvision":
        return published_by_torchvision(network)
    if source != "timm":
        raise UsageError(
            f"model.weights must be a file for {name}, which has no published weights, found "
            "'imagenet'; give one with --set model.weights=FILE, or --set model.init=scratch"
        )
    import timm

    try:
        module = timm.create_model(network, pretrained=True, **timm_options(network, image_size))
    # Whatever the hub's client raises; it has errors of several libraries.
    except Exception as error:
        raise DataError(
            f"cannot fetch timm's weights of {network} ({first_line(error)[:200]}); give a file "
            "with --set model.weights=FILE, or start with --set model.init=scratch"
        ) from error
    return cast(Mapping[str, Tensor], module.state_dict())


def _read(weights: str) -> Mapping[str, Tensor]:
    path = Path(weights)
    if not path.exists():
        raise UsageError(f"model.weights: no file {path}")
    path = Path(os.path.realpath(path))  # a user may name a link, as a cache of downloads holds
    try:
        if path.suffix == ".safetensors":
            return read_tensors(path)[0]
        refuse_large(path)
        return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
    except FileRefusedError as error:
        raise UsageError(f"model.weights: {error}") from error
    # torch.load raises nearly anything of a damaged file, and advises to let it run code.
    except Exception as error:
        raise UsageError(
            f"model.weights: {path} must be a .safetensors file, or a state dict of tensors "
            f"that torch.save wrote, found another or a damaged file ({type(error).__name__})"
        ) from error


def _tensors(loaded: object, path: Path) -> Mapping[str, Tensor]:
    for key in _NESTED:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise FileRefusedError(path, f"must hold a state dict, found {type(loaded).__name__}")
    return {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}


def _below(source: Mapping[str, Tensor], imported: Imported, weights: str) -> Mapping[str, Tensor]:
    """Return the entries below the prefix under which all of the module's lie.

    Raises:
        UsageError: There are several such prefixes.
    """
    if not imported.parameters:
        return source
    one = min(imported.parameters)
    prefixes = [name.removesuffix(one) for name in source if name.endswith(f".{one}")]
    whole = [
        prefix
        for prefix in prefixes
        if all(f"{prefix}{name}" in source for name in imported.parameters)
    ]
    if one in source or not whole:
        return source
    if len(whole) > 1:
        raise UsageError(
            f"model.weights: '{weights}' must hold {imported.name} once, found it below "
            f"{', '.join(whole)}; save the state dict of the one to start from"
        )
    return {
        name.removeprefix(whole[0]): tensor
        for name, tensor in source.items()
        if name.startswith(whole[0])
    }
