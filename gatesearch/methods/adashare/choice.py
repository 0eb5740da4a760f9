"""Draw policies from what was learned, and choose one of them on the validation part.

The paper draws 8 policies, trains a network for each, and reports the best on the test part. Here
each is measured on the validation part with the weights of the policy's phase, and one network is
trained, so that a trial costs what any other does.
"""

import copy
import math
from collections.abc import Mapping, Sequence

import torch

from gatesearch.events import Log
from gatesearch.methods.adashare.fitting import fit_policy
from gatesearch.methods.adashare.plan import Policy, network_of, plan
from gatesearch.methods.adashare.policies import shown
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.supernet import PolicySupernet
from gatesearch.methods.base import TrainingRequest
from gatesearch.training import evaluate, recompute_statistics

# Training frames for the batch norm statistics of a drawn policy.
_STATISTICS = 256


def draw_policies(supernet: PolicySupernet, *, samples: int, seed: int) -> list[Policy]:
    """Draw policies, each block and task by its probability; blocks not freed are selected.

    Args:
        supernet: With a learned policy.
        samples: Number of draws.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    select = supernet.margins().sigmoid()
    select[:, : len(supernet.blocks) - supernet.freed] = 1
    drawn = [torch.rand(select.shape, generator=generator) < select for _ in range(samples)]
    return [tuple(tuple(row) for row in policy.tolist()) for policy in drawn]


def choose_policy(
    supernet: PolicySupernet, request: TrainingRequest, cost: PolicyCost, *, samples: int
) -> Policy:
    """Draw policies, make each fit the budgets, and choose the best on the validation part.

    Args:
        supernet: With a learned policy.
        request: Request of the training; the policy keeps to all of its budgets.
        cost: Cost of policies.
        samples: Number of draws.
    """
    margins, spec = supernet.margins(), request.spec
    drawn = draw_policies(supernet, samples=samples, seed=spec.seed)
    fitted = [fit_policy(policy, margins, cost, spec.budgets) for policy in drawn]
    policies = list(dict.fromkeys(fitted))
    chosen = policies[0]
    if len(policies) > 1:
        tasks = request.context.tasks
        higher = {name: task.higher_is_better for name, task in tasks.items()}
        measured = [_measured(supernet, policy, request, cost) for policy in policies]
        chosen = policies[best_of(measured, higher)]
    request.emit(
        Log(
            f"{spec.label}: policy {shown(chosen, supernet.tasks)} of {len(policies)} drawn, "
            f"{2e-9 * cost.macs(chosen):.4g} GFLOPs"
        )
    )
    return chosen


def best_of(measured: Sequence[Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> int:
    """Return the index of the best of several networks; the first of equal ones.

    They are ranked by the mean relative gain over the tasks, as Δ_MTL, against the mean of all of
    them. A task whose mean is 0 or not finite does not count.

    Args:
        measured: For each network, task -> metric.
        higher_is_better: Task -> direction of its metric.

    >>> best_of([{"seg": 0.4, "depth": 1.0}, {"seg": 0.5, "depth": 1.1}],
    ...         {"seg": True, "depth": False})
    1
    """
    gains = [0.0] * len(measured)
    for task, higher in higher_is_better.items():
        values = [metrics[task] for metrics in measured]
        mean = math.fsum(values) / len(values)
        if mean and math.isfinite(mean):
            sign = 1 if higher else -1
            gains = [g + sign * (v - mean) / abs(mean) for g, v in zip(gains, values, strict=True)]
    return max(range(len(gains)), key=lambda i: gains[i])


def _measured(
    supernet: PolicySupernet, policy: Policy, request: TrainingRequest, cost: PolicyCost
) -> dict[str, float]:
    """Measure task -> metric on the validation part of a policy's network with these weights.

    Its batch norm statistics are computed anew on the first training frames.
    """
    context = request.context
    planned = plan(supernet.graph, policy, separate=cost.separate)
    heads = copy.deepcopy(dict(supernet.heads))  # new statistics are for the copy alone
    cut = network_of(planned, supernet.encoder, heads, supernet.head_specs)
    network = context.runtime.place(cut)
    size = context.study.training.batch_size
    recompute_statistics(
        network, context.train, runtime=context.runtime, batch_size=size, max_frames=_STATISTICS,
        augmented=context.augmented(context.study.training_of(request.spec.method)),
    )  # fmt: skip
    return evaluate(
        network, context.validation, context.tasks, runtime=context.runtime, batch_size=size
    )
