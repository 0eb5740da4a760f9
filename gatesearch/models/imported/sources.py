"""Backbones by name: timm's, torchvision's, and those that users register."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, cast

from torch import nn

from gatesearch.errors import UsageError, nearest, unknown
from gatesearch.models.imported.calls import Recording, Reference
from gatesearch.models.imported.imported import Imported, import_module, with_maps
from gatesearch.models.imported.stages import EVEN_STAGES

Build = Callable[[], nn.Module]

REGISTERED: dict[str, Build] = {}
"""Backbones of users: name -> function that builds the module."""

# Functions by which classifiers leave their feature map.
_POOLINGS = ("adaptive_avg_pool2d", "mean", "__getitem__")


def register_backbone(name: str, build: Build) -> None:
    """Make a module usable as `model.backbone`.

    Args:
        name: Of the backbone.
        build: Builds the module with fresh weights: image (B, 3, H, W) -> a feature map
            (B, C, H', W'), or a list or dict of such maps of several strides, the coarsest last.
    """
    from gatesearch.models.backbones import BACKBONES

    if name in BACKBONES or (name in REGISTERED and REGISTERED[name] is not build):
        raise UsageError(
            f"backbones must differ in their names, found '{name}' again; take another name"
        )
    REGISTERED[name] = build


def is_imported(name: str) -> bool:
    """Whether a name is that of a backbone that is imported rather than written by hand."""
    return name in REGISTERED or (name.partition(":")[0] in _SOURCES and ":" in name)


def import_backbone(
    name: str, image_size: tuple[int, int], output_stride: int | None = None
) -> Imported:
    """Import a backbone; done once for each name, size and stride in a process.

    Args:
        name: `timm:NAME`, `torchvision:NAME`, or a name that was registered.
        image_size: (H, W).
        output_stride: Input resolution divided by that of the last features; None leaves it as it
            is.

    Raises:
        UsageError: The name is unknown, its package is missing, or the network cannot be imported.
    """
    build = REGISTERED.get(name)
    return _imported(name, build, tuple(image_size), output_stride)


@lru_cache(maxsize=32)
def _imported(
    name: str, build: Build | None, image_size: tuple[int, int], output_stride: int | None
) -> Imported:
    if build is not None:
        found = import_module(
            name, build, image_size, output_stride=output_stride, as_returned=True
        )
        return with_maps(found, image_size)
    source, colon, network = name.partition(":")
    if not colon or source not in _SOURCES:
        raise unknown(
            "backbone", name, [*REGISTERED, *(f"{key}:{network or 'NAME'}" for key in _SOURCES)]
        )
    return with_maps(_SOURCES[source](network, image_size, output_stride), image_size)


def _from_timm(network: str, image_size: tuple[int, int], output_stride: int | None) -> Imported:
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"the backbone timm:{network} comes with a package that is not installed; "
            "pip install 'gatesearch[timm]'"
        ) from error
    if not timm.is_model(network):
        known = timm.list_models()
        raise UsageError(
            f"unknown network of timm '{network}'{nearest(network, known)} ({len(known)} known: "
            "timm.list_models() lists them)"
        )
    name = f"timm:{network}"
    options = timm_options(network, image_size)
    try:
        return import_module(
            name, _timm_build(network, options), image_size, output_stride=output_stride
        )
    except UsageError as error:
        if "model.output_stride" not in str(error):
            raise
        try:
            found = import_module(
                name, _timm_build(network, options | {"output_stride": output_stride}), image_size
            )
        # timm refuses strides by assertions, and unknown arguments by TypeErrors.
        except (TypeError, AssertionError, NotImplementedError, ValueError, RuntimeError):
            raise error from None
        if found.graph.stride != output_stride:
            raise
        return found


def timm_options(network: str, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return arguments that the network takes for images of a size."""
    import timm

    config = timm.get_pretrained_cfg(network)
    if config is not None and config.fixed_input_size:
        return {"img_size": image_size}
    return {}


def _timm_build(network: str, options: Mapping[str, Any]) -> Build:
    import timm

    def build() -> nn.Module:
        try:
            module: Any = timm.create_model(network, features_only=True, **options)
            if len(set(module.feature_info.reduction())) == 1:  # take those at quarters of the way
                depth = len(module.model.blocks)
                indices = [depth * i // EVEN_STAGES - 1 for i in range(1, EVEN_STAGES + 1)]
                module = timm.create_model(
                    network, features_only=True, out_indices=indices, **options
                )
        except (RuntimeError, AttributeError, NotImplementedError):
            module = timm.create_model(network, num_classes=0, **options)
            module.forward = module.forward_features
        return cast(nn.Module, module)

    return build


def _from_torchvision(
    network: str, image_size: tuple[int, int], output_stride: int | None
) -> Imported:
    from torchvision import models

    known = models.list_models(module=models)
    if network not in known:
        raise unknown("network of torchvision", network, known)
    name = f"torchvision:{network}"

    def build() -> nn.Module:
        options: dict[str, Any] = {"weights": None}
        parameters = inspect.signature(models.get_model_builder(network)).parameters
        if network.startswith("vit"):
            options["image_size"] = _square(name, image_size)
        if "init_weights" in parameters or network in ("googlenet", "inception_v3"):
            options["init_weights"] = True
        return models.get_model(network, **options)

    return import_module(
        name, build, image_size, output_stride=output_stride, cut=_without_classifier
    )


def _square(name: str, image_size: tuple[int, int]) -> int:
    if image_size[0] != image_size[1]:
        raise UsageError(
            f"{name} takes square images, found {image_size[0]}x{image_size[1]}; take the network "
            "of timm"
        )
    return image_size[0]


def _without_classifier(recording: Recording) -> Recording:
    """Return a recording whose output is what the last pooling reads."""
    for call in reversed(recording.calls):
        if call.function in _POOLINGS and isinstance(call.arguments[0], Reference):
            return replace(recording, outputs={"features": call.arguments[0]})
    return recording


_SOURCES: Mapping[str, Callable[[str, tuple[int, int], int | None], Imported]] = {
    "timm": _from_timm,
    "torchvision": _from_torchvision,
}
