"""Deep Elastic Networks with model selection (Ahn et al., ICCV 2019).

Code of the paper: github.com/rllab-snu/Deep-Elastic-Network. All tasks share the weights of one
encoder. Each runs it by itself, with 0, 25, 50 or 100 % of the inner channels of every residual
block; a small selector network chooses these widths by the image. Training as published:

1. the encoder at full width for three quarters of every batch, at random widths for the rest;
2. in rounds, first the selector, by policy gradient, then the encoder at the chosen widths.

With levels drawn from the selector's distribution π, the selector learns from the reward of frame b
and task t,

    R = -ω_t L_bt + κ (1 - u²)            u: mean share of inner channels kept,  κ = 1 / ρ
    loss = -mean_b Σ_t log π(levels) (R - mean_b R)

Where ours differs from that code, in its form for ResNets:

- the baseline mean_b R: the code adds 1 to every reward instead;
- levels are drawn from π from the first step on, and π begins with equal probabilities: the code
  mixes π with random probabilities, less and less;
- widths act on every block with a residual sum: in the code (`residual_block`) they act on the
  first block of the encoder alone;
- channels are left out behind their norm and ReLU, which the code has after the cut; at width 0 the
  branch is left out as a whole, without the shifts of its norms;
- norms have running statistics for evaluation: the code takes those of each batch;
- all tasks see every image, and a training ends with the encoder, not with the selector.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.cost import count_macs
from gatesearch.methods.base import Context, Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, refuse_budgets, training_of
from gatesearch.methods.den.elastic import Drawing, ElasticNet
from gatesearch.methods.den.widths import expected_cost, width_figures
from gatesearch.methods.space import Range
from gatesearch.models import parts_of
from gatesearch.strict import Strict
from gatesearch.training import Hooks, ParameterGroup
from gatesearch.training.weightings import WEIGHTINGS


class DENOptions(Strict):
    """Options of Deep Elastic Networks; shares and rounds as in the public code, rounded.

    Attributes:
        elastic: Share of the epochs before the selector.
        selector: Share of the epochs in which the selector learns.
        rounds: Rounds of selector and encoder; fewer where there are not two epochs for each.
        rate: Learning rate of the selector, trained by Adam, as a multiple of the study's.
        width_reward: κ, weight of the reward for narrow widths.
    """

    elastic: float = Field(default=0.3, ge=0, le=1)
    selector: float = Field(default=0.2, ge=0, le=1)
    rounds: int = Field(default=10, ge=1, le=1000)
    rate: float = Field(default=1.0, gt=0, le=1e6)
    width_reward: float = Field(default=0.1, ge=0, le=1e6)

    def spans(self, epochs: int) -> list[tuple[str, tuple[int, int]]]:
        """Plan the phases: name, and (epochs done before, last epoch).

        The first takes an epoch at least; then, if epochs are left, so does every selector.
        """
        first = min(max(1, round(self.elastic * epochs)), epochs)
        left = epochs - first
        rounds = max(1, min(self.rounds, left // 2))
        chosen = min(max(rounds, round(self.selector * epochs)), left)
        spans, done = [("elastic", (0, first))], first
        for i in range(rounds):
            for name, total in (("selector", chosen), ("network", left - chosen)):
                last = done + total * (i + 1) // rounds - total * i // rounds
                spans.append((f"{name} {i + 1}", (done, last)))
                done = last
        return spans


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the phases: the encoder at mixed widths, then rounds of selector and encoder."""
    study, context = request.study, request.context
    options = options_of(study, DEN)
    reward = float(request.spec.params.get("width_reward", options.width_reward))

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        if before is not None:
            return before
        parts = parts_of(study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(ElasticNet(parts))

    def phase(name: str, span: tuple[int, int]) -> Phase:
        kind = name.partition(" ")[0]
        return Phase(
            name=name,
            span=span,
            begin=begin,
            hooks=lambda module: _hooks(_elastic(module), kind, context, reward),
            groups=lambda module: _groups(_elastic(module), kind, options.rate),
            forward_gflops=lambda module: _forward_gflops(_elastic(module), kind, context),
            current_gflops=lambda module: _current_gflops(_elastic(module), context),
            # Losses give the selector no gradients, so that none can be balanced.
            weighting=WEIGHTINGS["uniform"] if kind == "selector" else None,
        )

    return [phase(name, span) for name, span in options.spans(training_of(study, DEN).epochs)]


def policy_loss(
    log_prob: Tensor, losses: Tensor, usage: Tensor, *, weights: Tensor, width_reward: float
) -> Tensor:
    """Compute the policy gradient's loss, -mean_b Σ_t log π (R - mean_b R).

    A frame without labels of a task has no part in the task's means.

    Args:
        log_prob: (B, T) log-probability of the widths that were drawn, with graph.
        losses: (B, T) losses of each frame; NaN where it has no labels.
        usage: (B, T) mean share of inner channels kept.
        weights: (T,) ω_t.
        width_reward: κ.
    """
    known = ~losses.isnan()
    reward = -weights * losses.nan_to_num() + width_reward * (1 - usage**2)
    count = known.sum(0).clamp(min=1)
    baseline = (reward * known).sum(0) / count
    advantage = (reward - baseline) * known
    return -((log_prob * advantage.detach()).sum(0) / count).sum()


def _hooks(network: ElasticNet, kind: str, context: Context, reward: float) -> Hooks:
    """Set how widths are found in the phase, and make the selector's loss."""
    drawing: Mapping[str, Drawing] = {
        "elastic": "mixed", "selector": "drawn", "network": "chosen",
    }  # fmt: skip
    network.drawing = drawing[kind]
    if kind != "selector":
        return Hooks()
    weights = torch.tensor(list(context.weights.values())).to(context.runtime.device)

    def frame_penalty(losses: Tensor) -> Tensor:
        log_prob, used = network.take_drawn()
        return policy_loss(log_prob, losses, used, weights=weights, width_reward=reward)

    return Hooks(frame_penalty=frame_penalty)


def _groups(network: ElasticNet, kind: str, rate: float) -> list[ParameterGroup]:
    if kind == "selector":
        parameters = tuple(network.selector.parameters())
        return [ParameterGroup(parameters, rate=rate, optimizer="adam")]
    return [ParameterGroup((*network.encoder.parameters(), *network.heads.parameters()))]


def _forward_gflops(network: ElasticNet, kind: str, context: Context) -> float:
    """GFLOPs of a third of a step: training computes full widths, and backward counts as two."""
    shape = context.input_shape
    selector = count_macs(network.selector, shape, cross_check=False).gflops
    rest = count_macs(network, shape, cross_check=False).gflops - selector
    return {
        "elastic": rest,
        "selector": rest / 3 + selector,
        "network": rest + selector / 3,
    }[kind]


def _current_gflops(network: ElasticNet, context: Context) -> Callable[[], float]:
    def now() -> float:
        training = network.training
        try:
            return expected_cost(network, context).gflops
        finally:
            network.train(training)

    return now


def _elastic(module: nn.Module) -> ElasticNet:
    return cast(ElasticNet, module)


DEN = Method(
    name="den",
    paper="Ahn et al., ICCV",
    year=2019,
    summary="one encoder run per task at widths that a selector chooses for each image",
    build=lambda parts, options: ElasticNet(parts),
    options=DENOptions,
    phases=phases,
    space={"width_reward": Range(0.01, 10.0, log=True, legal=(1e-9, 1e6))},
    expected_cost=expected_cost,
    details=width_figures,
    check=refuse_budgets("'den' chooses its widths, and so its cost, by the image"),
    outline=(
        "encoder at full and random widths",
        "in rounds: selector by policy gradient, then encoder at the chosen widths",
    ),
    effort="T encoders and a selector",
    ours=(
        "the reward is compared with the mean of its batch; widths act on every residual block; "
        "cost is the mean over the validation part"
    ),
)
