"""The optimizer of a training, and its learning rates over time."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from gatesearch.study import TrainingSpec


def build_optimizer(
    model: nn.Module,
    spec: TrainingSpec,
    rate: Callable[[str], float],
    beside: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimizer with a group for each learning rate; every group keeps its `initial_lr`.

    Weight decay is for the weights of convolutions and linear layers: mixing weights, gates, norms
    and biases have an optimum of their own, which is not zero.

    Args:
        model: Whose parameters are trained.
        spec: Which optimizer.
        rate: Parameter name -> multiple of the learning rate.
        beside: Trained along without decay, as what a weighting learns.
    """
    dense = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, dense)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rate(name), id(parameter) in decayed), []).append(parameter)
    described = [_group(parameters, spec, *kind) for kind, parameters in groups.items()]
    if beside:
        described.append(_group(list(beside), spec, 1.0, False))
    # One kernel for the whole step; on other devices one for each of its operations.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    one_pass: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    if spec.optimizer == "sgd":
        return torch.optim.SGD(described, lr=spec.lr, momentum=spec.momentum, **one_pass)
    kind = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.Adam
    return kind(described, lr=spec.lr, **one_pass)


def _group(
    parameters: Iterable[nn.Parameter], spec: TrainingSpec, multiple: float, decays: bool
) -> dict[str, Any]:
    return {
        "params": parameters,
        "lr": spec.lr * multiple,
        "initial_lr": spec.lr * multiple,
        "weight_decay": spec.weight_decay if decays else 0.0,
    }


def schedule(optimizer: torch.optim.Optimizer, spec: TrainingSpec, share: float) -> None:
    """Set every group's learning rate.

    Args:
        optimizer: Whose.
        spec: Which schedule.
        share: Of the training that is done, in [0, 1].
    """
    decay = 1.0
    if spec.schedule == "poly":
        decay = float(max(0.0, 1.0 - share) ** spec.power)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * decay
