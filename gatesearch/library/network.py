"""The InterroGate supernet for any training loop, with heads of a user's own."""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gatesearch.cost import Cost
from gatesearch.errors import UsageError
from gatesearch.library.encoder import EncoderSpec, encoder
from gatesearch.library.own_heads import HeadLike, accept_heads
from gatesearch.library.projection import counted_costs
from gatesearch.methods.interrogate.method import gate_groups
from gatesearch.methods.interrogate.options import InterroGateOptions
from gatesearch.models import GatedSupernet, Parts
from gatesearch.models.gates import temperature_at
from gatesearch.models.model_factory import OwnHead, features_for
from gatesearch.study import TrainingSpec
from gatesearch.study.validation import validated
from gatesearch.training import ParameterGroup
from gatesearch.training.optimizer import build_optimizer


# It inherits from a concrete class, unlike others here, because all that is done with a supernet
# (extraction, cost, projection) reads its modules and parameters by name.
class InterroGate(GatedSupernet):
    """A gated network for several tasks: an encoder stream per task and a shared one, and heads.

    It is a plain `torch.nn.Module` for any training loop: image (B, 3, H, W) -> task -> what the
    task's head returns. A gate per task and channel learns whether the task computes the channel
    itself or reads the shared one. In evaluation mode gates are hard. After training,
    `gs.project(net, "1.3xMTL")` fits it to a budget, and `gs.extract(net)` returns the small plain
    network that computes the same.

    Its state dict holds everything: weights, gates `alpha` and mixing weights `beta`, the threshold
    of the gates, and their temperature.

    A head is called as `head(features, size)` if its `forward` has a second positional parameter
    that is named `size` or has no default, and as `head(features)` otherwise; features are
    (B, C, h, w) with C = `encoder.channels`, and size is (H, W) of the image. A head with an
    attribute `reads_stages = True` gets a list of maps in place of features, one for each of
    `encoder.features`, the coarsest last. A function without weights is a head too. Tasks may share
    one module. `gs.extract` copies heads as they are.

    Args:
        encoder: A backbone by name (`resnet18`, `resnet34`, `resnet50`, `deeplab_resnet34`,
            `efficientnet_lite0`), or `gs.encoder(name, width=..., output_stride=...,
            pretrained=...)`.
        heads: Task -> head. The modules become part of this network; they are not copied.
        granularity: Gates behind every convolution and linear layer (`conv`), behind every residual
            block (`block`), or as `conv` with one gate for each attention head (`head`).
        estimator: Gates in training: `ste` (hard forward, straight-through gradient), `sigmoid`
            (annealed) or `hard_concrete` (sampled, annealed).
        initial: Probability at the start that a task computes a channel itself, in (0, 1).
        temperature: (at the start, at the end) of training, for `anneal`; `ste` has none.
        mix: What the shared stream continues from: the tasks' features (`tasks`, as in the paper),
            or its own (`shared`), so that no task needs channels of another.
        seed: Seed of the encoder's random weights, which are equal in all streams; drawn from
            torch's generator when None, so that `torch.manual_seed` decides.

    Attributes:
        heads: Task -> head module.
        tasks: Names of the tasks, in order.
        size: (H, W) of the last image that it was called with; None before the first.

    Raises:
        UsageError: An unknown encoder or option, or a head that is refused: one that could not be
            called, trained or copied.

    >>> import torch
    >>> import gatesearch as gs
    >>> backbone = gs.encoder("resnet18", width=0.1, output_stride=32)
    >>> net = gs.InterroGate(backbone, heads={
    ...     "mask": torch.nn.Conv2d(backbone.channels, 1, kernel_size=1),
    ...     "age": lambda features: features.mean((1, 2, 3)),
    ... })
    >>> {task: tuple(y.shape) for task, y in net(torch.randn(2, 3, 64, 64)).items()}
    {'mask': (2, 1, 2, 2), 'age': (2,)}
    """

    def __init__(
        self,
        encoder: str | EncoderSpec,
        heads: Mapping[str, HeadLike],
        *,
        granularity: Literal["conv", "block", "head"] = "conv",
        estimator: Literal["ste", "sigmoid", "hard_concrete"] = "ste",
        initial: float = 0.5,
        temperature: tuple[float, float] = (1.0, 0.1),
        mix: Literal["tasks", "shared"] = "tasks",
        seed: int | None = None,
    ) -> None:
        spec = _spec(encoder)
        accepted = accept_heads(heads)
        given = {
            "granularity": granularity, "estimator": estimator, "initial": initial,
            "temperature": temperature, "mix": mix,
        }  # fmt: skip
        options: InterroGateOptions = validated(InterroGateOptions, given, where="InterroGate")
        own = {
            task: OwnHead(head, spec.channels, features_for(spec.graph, head))
            for task, head in accepted.items()
        }
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        elif not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
            raise UsageError(
                f"seed must be a whole number of 64 bits, or None to draw one, found {seed!r:.40}"
            )
        self._set_up(Parts(spec.graph, own, seed, spec.weights), options)

    @classmethod
    def of(cls, parts: Parts, options: InterroGateOptions) -> "InterroGate":
        """Build it from parts and options of a study."""
        net = cls.__new__(cls)
        net._set_up(parts, options)
        return net

    def _set_up(self, parts: Parts, options: InterroGateOptions) -> None:
        GatedSupernet.__init__(
            self,
            parts,
            granularity=options.granularity,
            estimator=options.estimator,
            initial=options.initial,
            mix=options.mix,
        )
        self.size: tuple[int, int] | None = None
        self._temperatures = options.temperature
        self.anneal(0.0)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image (B, 3, H, W) -> task -> what the task's head returns."""
        if not torch.compiler.is_compiling():
            self.size = (int(image.shape[-2]), int(image.shape[-1]))
        return super().forward(image)

    def anneal(self, share: float) -> None:
        """Set the temperature of the gates for the share of the training that is done.

        Call it before each step, or each epoch. It falls geometrically from the first value of
        `temperature` to the second, as in `gatesearch run`. `ste` gates have none.

        Args:
            share: In [0, 1], such as `step / steps`.

        Raises:
            UsageError: The share is outside [0, 1].
        """
        if not _is_share(share):
            raise UsageError(
                "anneal takes the share of the training that is done, 0 to 1, found "
                f"{share!r:.100}; divide the steps done by all steps"
            )
        self.temperature = temperature_at(float(share), self._temperatures)

    def param_groups(
        self, lr: float, *, weight_decay: float = 1e-4, gate_rate: float = 10.0
    ) -> list[dict[str, object]]:
        """Group the parameters for any torch optimizer, as `gatesearch run` trains them.

        Weights of convolutions and linear layers, those of heads too, have `lr` and `weight_decay`;
        norms, biases and all others `lr` and no decay; gates α and mixing weights β `gate_rate`
        times `lr` and no decay. Frozen parameters (`requires_grad` False) are left out.

        Args:
            lr: Learning rate of the weights.
            weight_decay: Decay of the weights of convolutions and linear layers.
            gate_rate: Learning rate of the gates as a multiple of `lr`.

        Returns:
            One dict per group, with `params`, `lr` and `weight_decay`.

        Raises:
            UsageError: A rate that is not positive, or a negative decay.

        >>> import gatesearch as gs
        >>> net = gs.InterroGate(gs.encoder("resnet18", width=0.1), {"mean": lambda x: x.mean()})
        >>> [(group["lr"], group["weight_decay"]) for group in net.param_groups(lr=1e-3)]
        [(0.001, 0.0001), (0.001, 0.0), (0.01, 0.0)]
        """
        rate = validated(InterroGateOptions, {"lr": gate_rate}, where="param_groups, gate_rate").lr
        groups = gate_groups(self, rate=rate)
        return optimizer_groups(self, groups, lr=lr, weight_decay=weight_decay)

    def penalty(self, tau: float | Mapping[str, float], *, weight: float = 1.0) -> Tensor:
        """Compute the loss that closes gates, to be added to the losses of the tasks.

        weight · 1/T Σ_t max(0, share of open gates of task t - τ_t), where the share is the mean
        probability of an open gate over channels and layers (`sparsity`).

        Args:
            tau: τ, the share of its gates that a task may open without a penalty, in [0, 1]: one
                for all tasks, or task -> τ.
            weight: λ_s.

        Returns:
            A scalar with a gradient to the gates.

        Raises:
            UsageError: A τ outside [0, 1], other tasks than those of the network, or a weight that
                is no finite number.
        """
        named = dict(tau) if isinstance(tau, Mapping) else dict.fromkeys(self.tasks, tau)
        if named.keys() != set(self.tasks) or not all(map(_is_share, named.values())):
            raise UsageError(
                f"tau must be a share in 0 to 1, for all tasks or for each of "
                f"{', '.join(self.tasks)}, found {tau!r:.100}"
            )
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UsageError(f"weight must be a finite number, found {weight!r:.100}")
        targets = torch.tensor([float(named[task]) for task in self.tasks])
        return weight * self.sparsity(targets.to(self.get_buffer("threshold").device))

    def costs(self, size: tuple[int, int] | None = None) -> dict[str, Cost]:
        """Compute the cost with all gates closed, `mtl`, and open, `stl`: the range of budgets.

        Call it before training: a head whose cost cannot be counted is refused here, where nothing
        is lost.

        Args:
            size: (H, W) of the image, pixels; that of the last image when None.

        Returns:
            `mtl` and `stl` -> cost of one image, heads included. Operators of heads that no
            counter knows are named in `uncounted`.

        Raises:
            UsageError: A head's forward pass cannot run on shapes alone (device meta), or no size
                is known.
        """
        return counted_costs(self, size)


def optimizer_groups(
    network: nn.Module, groups: Sequence[ParameterGroup], *, lr: float, weight_decay: float
) -> list[dict[str, object]]:
    """Group a network's parameters for any torch optimizer; see `InterroGate.param_groups`.

    Raises:
        UsageError: A rate that is not positive, or a negative decay.
    """
    given = {"epochs": 1, "batch_size": 2, "lr": lr, "weight_decay": weight_decay}
    spec: TrainingSpec = validated(TrainingSpec, given, where="param_groups")
    kept = ("params", "lr", "weight_decay")
    optimizer = build_optimizer(network, spec, groups)
    return [{name: group[name] for name in kept} for group in optimizer.param_groups]


def _is_share(value: object) -> bool:
    """Tell whether a value is a number in 0..1, also one in a tensor."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, int | float) and 0 <= value <= 1


def _spec(given: object) -> EncoderSpec:
    if isinstance(given, str):
        return encoder(given)
    if isinstance(given, EncoderSpec):
        return given
    hint = "see there"
    if isinstance(given, nn.Module):
        hint = "name a module of your own by gs.register_backbone(NAME, build)"
    raise UsageError(
        f"encoder must be the name of a backbone or gs.encoder(...), found {type(given).__name__}; "
        f"{hint}"
    )
