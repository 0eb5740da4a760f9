"""The optimizer of a training, and its learning rates over time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from gatesearch.study import TrainingSpec

OptimizerName = Literal["adam", "adamw", "sgd"]
_DENSE = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a network that are trained alike.

    Attributes:
        parameters: Which ones. Those that are frozen (`requires_grad` is False) stay so.
        rate: Multiple of the study's learning rate, kept through the schedule.
        optimizer: Which optimizer trains them; the study's when None.
        weight_decay: Decay of all of them. When None, weights of convolutions and linear layers
            have the study's decay and all others none: mixing weights, gates, norms and biases have
            an optimum of their own, which is not zero.
    """

    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    optimizer: OptimizerName | None = None
    weight_decay: float | None = None


class Optimizer(Protocol):
    """What training needs of a torch optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """One dict per group, with `params`, `lr` and the other settings of the group."""

    @property
    def state(self) -> Mapping[Any, dict[str, Any]]:
        """Parameter -> moments and counts, of the parameters that have been trained."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients of all parameters."""

    def step(self) -> object:
        """Change all parameters that have a gradient."""

    def state_dict(self) -> dict[str, Any]:
        """`state` by the parameters' numbers, and `param_groups` with numbers for parameters."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""


class CombinedOptimizer:
    """Several torch optimizers, each with parameters of its own, that step together.

    Parameters are numbered through all of them in order, as torch numbers those of one.

    Args:
        optimizers: One for each kind.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = tuple(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all optimizers."""
        return [group for optimizer in self._optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Tensor, dict[str, Any]]:
        """A new dict of the states of all optimizers."""
        return {p: state for optimizer in self._optimizers for p, state in optimizer.state.items()}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Remove the gradients of all parameters."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        """Change all parameters that have a gradient."""
        for optimizer in self._optimizers:
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """As of one torch optimizer with the groups of all."""
        states: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        for optimizer, start in self._numbered():
            saved = optimizer.state_dict()
            states |= {start + number: state for number, state in saved["state"].items()}
            groups += [
                {**group, "params": [start + number for number in group["params"]]}
                for group in saved["param_groups"]
            ]
        return {"state": states, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        groups = iter(state_dict["param_groups"])
        for optimizer, start in self._numbered():
            own = [next(groups) for _ in optimizer.param_groups]
            numbers = [number for group in own for number in group["params"]]
            states = state_dict["state"]
            optimizer.load_state_dict(
                {
                    "state": {n - start: states[n] for n in numbers if n in states},
                    "param_groups": [
                        {**group, "params": [n - start for n in group["params"]]} for group in own
                    ],
                }
            )

    def _numbered(self) -> list[tuple[torch.optim.Optimizer, int]]:
        """Each optimizer with the number of its first parameter."""
        pairs, start = [], 0
        for optimizer in self._optimizers:
            pairs.append((optimizer, start))
            start += sum(len(group["params"]) for group in optimizer.param_groups)
        return pairs


class MomentumSGD(torch.optim.SGD):
    """SGD in which parameters of a group may have their first gradients in different steps.

    Torch's fused step (2.11) refuses that. A momentum of 0 is the same as none yet.
    """

    def step(self, closure: Any = None) -> Any:
        """Change all parameters that have a gradient."""
        count = sum(len(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            if group["momentum"] and len(self.state) < count:
                trained = [p for p in group["params"] if p.grad is not None]
                new = [p for p in trained if "momentum_buffer" not in self.state.get(p, {})]
                if len(new) < len(trained):
                    for parameter in new:
                        self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)


@dataclass(frozen=True)
class _Settings:
    """What the parameters of one torch group have in common."""

    optimizer: OptimizerName
    rate: float
    weight_decay: float
    dense: bool


def build_optimizer(
    model: nn.Module,
    spec: TrainingSpec,
    groups: Sequence[ParameterGroup] | None = None,
    learned: Sequence[nn.Parameter] = (),
) -> Optimizer:
    """Build one torch optimizer, or one for each kind that the groups ask for.

    Torch groups are in the order in which the model first names a parameter of theirs; each keeps
    its `initial_lr` for `set_learning_rates`.

    Args:
        model: The network.
        spec: Which optimizer, its rate and decay.
        groups: Which parameters are trained, and how; all alike when None.
        learned: What a weighting learns; trained as the study says, without decay.

    Raises:
        ValueError: A parameter is in two groups, or is none of the model's; or none is trained.
    """
    group_of = _groups_by_parameter(model, groups)
    dense = {id(module.weight) for module in model.modules() if isinstance(module, _DENSE)}
    alike: dict[_Settings, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) in group_of:
            settings = _settings(group_of[id(parameter)], spec, id(parameter) in dense)
            alike.setdefault(settings, []).append(parameter)
    described: dict[OptimizerName, list[dict[str, Any]]] = {}
    for settings, parameters in alike.items():
        described.setdefault(settings.optimizer, []).append(_describe(settings, parameters, spec))
    if learned:
        plain = _Settings(spec.optimizer, rate=1.0, weight_decay=0.0, dense=False)
        described.setdefault(spec.optimizer, []).append(_describe(plain, learned, spec))
    if not described:
        raise ValueError(
            "a training must change at least one parameter, found none that is in a group and "
            "requires gradients"
        )
    # One kernel for the whole step; on other devices one for each of its operations.
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    options: dict[str, Any] = {"fused": True} if fused else {"foreach": True}
    built = [_build(name, own, spec, options) for name, own in described.items()]
    return built[0] if len(built) == 1 else CombinedOptimizer(built)


def set_learning_rates(optimizer: Optimizer, spec: TrainingSpec, share: float) -> None:
    """Set every group's learning rate by the schedule.

    Args:
        optimizer: Whose groups.
        spec: Which schedule.
        share: Share of the training that is done, in [0, 1].
    """
    decay = rate_decay(spec, share)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * decay


def rate_decay(spec: TrainingSpec, share: float) -> float:
    """Return the factor of every learning rate when a share of the training is done."""
    return float(max(0.0, 1.0 - share) ** spec.power) if spec.schedule == "poly" else 1.0


def _groups_by_parameter(
    model: nn.Module, groups: Sequence[ParameterGroup] | None
) -> dict[int, ParameterGroup]:
    """Id of each parameter that is in a group -> the group."""
    if groups is None:
        groups = [ParameterGroup(tuple(model.parameters()))]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group_of: dict[int, ParameterGroup] = {}
    for group in groups:
        for parameter in group.parameters:
            if id(parameter) not in names:
                raise ValueError(
                    "a parameter group must hold parameters of the model that is trained, found "
                    f"another of shape {tuple(parameter.shape)}; take them from the model"
                )
            if id(parameter) in group_of:
                raise ValueError(
                    "a parameter must be in one parameter group at most, found "
                    f"{names[id(parameter)]} in two; leave it out of one"
                )
            group_of[id(parameter)] = group
    return group_of


def _settings(group: ParameterGroup, spec: TrainingSpec, dense: bool) -> _Settings:
    name = group.optimizer or spec.optimizer
    if group.weight_decay is not None:
        return _Settings(name, group.rate, group.weight_decay, dense=False)
    return _Settings(name, group.rate, spec.weight_decay if dense else 0.0, dense)


def _describe(
    settings: _Settings, parameters: Iterable[nn.Parameter], spec: TrainingSpec
) -> dict[str, Any]:
    """A parameter group as torch takes it."""
    return {
        "params": list(parameters),
        "lr": spec.lr * settings.rate,
        "initial_lr": spec.lr * settings.rate,
        "weight_decay": settings.weight_decay,
    }


def _build(
    name: OptimizerName,
    groups: list[dict[str, Any]],
    spec: TrainingSpec,
    options: Mapping[str, Any],
) -> torch.optim.Optimizer:
    if name == "sgd":
        return MomentumSGD(groups, lr=spec.lr, momentum=spec.momentum, **options)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    return kind(groups, lr=spec.lr, **options)
