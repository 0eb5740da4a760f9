"""`gs.Trial`: one network of a search, as the user's training function sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gatesearch.cost import PatternCost
from gatesearch.errors import UsageError
from gatesearch.library.network import InterroGate, optimizer_groups
from gatesearch.library.projection import apply_budgets
from gatesearch.methods import NetworkSpec
from gatesearch.methods.interrogate.gate_loss import GateLoss
from gatesearch.methods.interrogate.method import INTERROGATE
from gatesearch.methods.interrogate.options import SPACE, InterroGateOptions
from gatesearch.methods.space import choice_of, task_values
from gatesearch.pruning import extract, sharing
from gatesearch.study import Study
from gatesearch.training import ParameterGroup, resolve_runtime


class Trial:
    """One network to train: what `gs.search` hands to the training function.

    The same function trains baselines and trials, so all methods below can be called for every
    network; those that concern gates do nothing for a baseline.

    Attributes:
        name: `stl`, `mtl`, or `trial 3`.
        method: How its tasks share: `stl` (one network per task), `mtl` (one encoder),
            `cross_stitch`, `mtan`, or `interrogate`.
        params: Parameter -> value that the search drew, such as `lambda_s` and `tau.depth`; empty
            for a baseline.
        budgets: Upper bounds on its cost, as written; empty without any, and for a baseline.
        network: The network to train, on the CPU: image (B, 3, H, W) -> task -> what its head
            returns. That of `interrogate` is a `gs.InterroGate`.
        seed: The study's seed; the network's first weights depend on it.
        study: The study, whose `training` the function can read.
        folder: A folder for checkpoints, which a search that is resumed finds again.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        study: Study,
        network: nn.Module,
        *,
        folder: Path,
        options: InterroGateOptions,
    ) -> None:
        self.name = spec.method if spec.trial is None else spec.label
        self.method, self.seed = spec.method, spec.seed
        self.params = dict(spec.params)
        self.budgets = tuple(budget.text for budget in spec.budgets)
        self.network, self.study, self.folder = network, study, folder
        self._spec, self._options = spec, options
        self._final: FinalNetwork | None = None
        self._loss: GateLoss | None = None
        if isinstance(network, InterroGate):
            tau = torch.tensor(task_values(spec.params, "tau", network.tasks))
            bounds_cost = choice_of(SPACE, study, spec.params, "regulariser") == "flops"
            cost = PatternCost.of(network, input_shape(study)) if bounds_cost else None
            weight = float(spec.params["lambda_s"])
            self._loss = GateLoss(network, options, weight, tau, cost, spec.budgets)

    def anneal(self, share: float) -> None:
        """Set the temperature of the gates and the ramp of λ_s; call it before each step.

        Args:
            share: Share of the training with gates that is done, in [0, 1].

        Raises:
            UsageError: The share is outside [0, 1].
        """
        if self._loss is not None:
            assert isinstance(self.network, InterroGate)
            self.network.anneal(share)  # refuses other shares
            self._loss.anneal(share)

    def penalty(self) -> Tensor:
        """Compute the loss that closes gates at the drawn λ_s and τ, a scalar; 0 for a baseline."""
        if self._loss is None:
            return torch.zeros((), device=next(self.network.parameters()).device)
        self._loss.tau = self._loss.tau.to(next(self.network.parameters()).device)
        return self._loss.penalty()

    def param_groups(self, lr: float, *, weight_decay: float = 1e-4) -> list[dict[str, object]]:
        """Group the parameters for a torch optimizer; see `gs.InterroGate.param_groups`."""
        if isinstance(self.network, InterroGate):
            rate = self._options.lr
            return self.network.param_groups(lr, weight_decay=weight_decay, gate_rate=rate)
        groups = [ParameterGroup(tuple(self.network.parameters()))]
        return optimizer_groups(self.network, groups, lr=lr, weight_decay=weight_decay)

    def prune(self) -> nn.Module:
        """Return the network to measure, and to fine-tune before that if you like.

        For a trial, gates are opened and closed until its budgets are used up, as `gs.project`
        does, and the compact network is cut; without a budget, the learned gates are rounded. For
        a baseline it is `network` itself. It is in evaluation mode, on the device of `network`. The
        search keeps the network that this returned last.
        """
        if not isinstance(self.network, InterroGate):
            self._final = FinalNetwork(self.network.eval())
            return self.network
        net, shape = self.network, input_shape(self.study)
        if self._spec.budgets:
            cost, runtime = PatternCost.of(net, shape), resolve_runtime("fp32", "nchw")
            apply_budgets(
                net, self._spec.budgets, cost, self._options, shape=shape, runtime=runtime
            )
        found = sharing(net)
        compact = extract(net).to(next(net.parameters()).device)
        self._final = FinalNetwork(compact, found.layers, found.shares)
        return compact

    @property
    def final(self) -> "FinalNetwork":
        """The network that `prune` returned last.

        Raises:
            UsageError: It was never called.
        """
        if self._final is not None:
            return self._final
        if self.method == INTERROGATE.name:
            raise UsageError(
                "a training function must measure the network that trial.prune() returns, found no "
                "call of it; call it after training, before the metrics are computed"
            )
        return FinalNetwork(self.network)


@dataclass(frozen=True)
class FinalNetwork:
    """A network at the end of its training, with `TrainedNetwork.layers` and `.sharing`."""

    module: nn.Module
    layers: tuple[str, ...] = ()
    sharing: Mapping[str, tuple[float, ...]] | None = None


def input_shape(study: Study) -> tuple[int, int, int, int]:
    """Shape of one image of a study, (1, 3, H, W)."""
    return (1, 3, *study.protocol.size)
