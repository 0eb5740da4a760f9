"""InterroGate (Bejnordi et al., 2024, https://arxiv.org/abs/2402.16848).

A gate per task and channel is learned; afterwards the network is pruned to what the gates chose.
Phases of a trial: an optional warm-up as a multi-task network, trained once per seed for all
trials; training with gates; then the compact network is cut from the supernet, and optionally
fine-tuned. Warm-up and fine-tuning are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from gatesearch.cost import LatencyTable, PatternCost, measure_layers
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, single_task_start, training_of
from gatesearch.methods.interrogate.below import Narrowing, least_cost, narrowing_of
from gatesearch.methods.interrogate.gate_loss import GateLoss
from gatesearch.methods.interrogate.gate_selection import select_gates
from gatesearch.methods.interrogate.options import SPACE, InterroGateOptions
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.space import Choice, choice_of, space_of, task_values
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.pruning import (
    describe_compact,
    extract,
    load_compact,
    pattern_as_text,
    rebuild_compact,
    sharing,
)
from gatesearch.study import Study
from gatesearch.training import Hooks, ParameterGroup, Runtime

WARM_UP = "warm-up"


def build(parts: Parts, options: InterroGateOptions) -> GatedSupernet:
    """Build the supernet."""
    return GatedSupernet(
        parts,
        granularity=options.granularity,
        estimator=options.estimator,
        initial=options.initial,
        mix=options.mix,
    )


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a trial start from the warm-up if there is one; otherwise the option `start` decides."""
    options = options_of(study, INTERROGATE)
    epochs = training_of(study, INTERROGATE).epochs
    if not spec.part and options.phases(epochs)[0] > 0:
        return NetworkSpec(spec.method, spec.seed, part=WARM_UP)
    return single_task_start(spec, study, INTERROGATE)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the only phase of the warm-up, or those of a trial: gates, then compact network.

    Under a budget below the multi-task network's cost, channels are ranked before; see `below`.
    """
    study = request.study
    options = options_of(study, INTERROGATE)
    epochs = training_of(study, INTERROGATE).epochs
    warm, gates = options.phases(epochs)
    if request.spec.part == WARM_UP:
        return [warm_up_phase(request, epochs=warm)]
    compact = compact_phase(
        request,
        options,
        span=(gates, epochs),
        begin=lambda before: supernet_of(_module(before)),
        tried=False,
    )
    learned = Phase(
        name="gates",
        span=(warm, gates),
        begin=lambda before: TrainedNetwork(untrained_supernet(request, warmed=warm > 0)),
        hooks=lambda module: _gate_hooks(supernet_of(module), request, options),
        groups=lambda module: gate_groups(supernet_of(module), rate=options.lr),
        current_gflops=lambda module: _pruned_gflops(supernet_of(module), request),
    )
    cost = narrowing_of(request)
    if cost is None:
        return [learned, compact]
    narrowing = Narrowing(request, options, cost, lambda parts: build(parts, options))
    ranked = min(gates, warm + max(1, round(options.ranking * epochs)))
    return [
        narrowing.ranking_phase((warm, ranked), warmed=warm > 0),
        replace(
            learned,
            span=(ranked, gates),
            begin=narrowing.narrowed,
            describe=narrowing.describe,
            rebuild=narrowing.rebuild,
        ),
        # Its pattern is of the narrower encoder, which a stored pattern does not tell.
        replace(compact, begin=lambda before: replace(compact.begin(before), gates={})),
    ]


def warm_up_phase(request: TrainingRequest, *, epochs: int) -> Phase:
    """Plan the first epochs as a multi-task network, whose weights all streams then start from."""

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        parts = parts_of(request.study, seed=request.spec.seed, stl=request.start_state())
        return TrainedNetwork(MultiTaskNet(parts))

    return Phase(name="warm-up", span=(0, epochs), begin=begin)


def compact_phase(
    request: TrainingRequest,
    options: InterroGateOptions,
    *,
    span: tuple[int, int],
    begin: Callable[[TrainedNetwork | None], GatedSupernet],
    tried: bool,
) -> Phase:
    """Plan the last phase: gates are selected, and the compact network is cut and fine-tuned.

    Args:
        request: Request of the trial.
        options: Alignment, spread and rounding of gates.
        span: (epochs done before, last epoch).
        begin: Network of the phase before -> supernet to cut from.
        tried: See `select_gates`.
    """

    def cut(before: TrainedNetwork | None) -> TrainedNetwork:
        supernet = begin(before)
        cost = pattern_cost(supernet, request) if request.spec.budgets else None
        select_gates(supernet, request, options, cost, tried=tried)
        found = sharing(supernet)
        own = pattern_as_text(found.own)
        return TrainedNetwork(extract(supernet), found.layers, found.shares, own)

    return Phase(
        name="compact",
        span=span,
        begin=cut,
        describe=describe_compact,
        rebuild=rebuild_compact,
    )


def gate_groups(supernet: GatedSupernet, *, rate: float) -> list[ParameterGroup]:
    """Group the parameters: gates α and mixing weights β at `rate`, all others at the study's."""
    gates = [*supernet.alpha.values(), *supernet.beta.values()]
    ids = {id(parameter) for parameter in gates}
    others = [p for p in supernet.parameters() if id(p) not in ids]
    return [ParameterGroup(tuple(others)), ParameterGroup(tuple(gates), rate=rate)]


def pattern_cost(supernet: GatedSupernet, request: TrainingRequest) -> PatternCost:
    """Make the cost of a supernet's gate patterns, with latency where a budget bounds it."""
    context = request.context
    table = None if context.stopwatch is None else context.stopwatch.table
    tasks = [budget.task for budget in request.spec.budgets if budget.task]
    return PatternCost.of(supernet, context.input_shape, latency=table, tasks=tasks)


def supernet_of(module: nn.Module) -> GatedSupernet:
    """Assert that a module is a gated supernet."""
    assert isinstance(module, GatedSupernet)
    return module


def untrained_supernet(request: TrainingRequest, *, warmed: bool) -> GatedSupernet:
    """Build the supernet with its initial weights.

    Args:
        request: The request; its start is the warm-up, the single-task networks, or none (random
            or pretrained weights).
        warmed: True if its start is the warm-up.
    """
    study, state = request.study, request.start_state()
    options = options_of(study, INTERROGATE)
    if not warmed:
        return build(parts_of(study, seed=request.spec.seed, stl=state), options)
    supernet = build(parts_of(study, seed=request.spec.seed, pretrained=False), options)
    assert state is not None
    supernet.clone_streams(state)
    return supernet


def check(study: Study, budgets: Sequence[str]) -> None:
    """Refuse the regulariser `flops` without a budget, which it needs as its bound.

    Raises:
        UsageError: There is no budget.
    """
    regulariser = space_of(SPACE, study)["regulariser"]
    if not budgets and isinstance(regulariser, Choice) and "flops" in regulariser.values:
        raise UsageError(
            'search.regulariser "flops" bounds cost by a budget; add --budget, such as 1.3xMTL'
        )


def latency_table(study: Study, runtime: Runtime) -> LatencyTable:
    """Measure the layers of the study's supernet."""
    supernet = build(parts_of(study, pretrained=False), options_of(study, INTERROGATE))
    return measure_layers(supernet, (1, 3, *study.protocol.size), runtime)


def _module(before: TrainedNetwork | None) -> nn.Module:
    assert before is not None
    return before.module


def _pruned_gflops(supernet: GatedSupernet, request: TrainingRequest) -> Callable[[], float]:
    """Make a function that returns the GFLOPs of the network that would be cut now."""
    cost = pattern_cost(supernet, request)
    return lambda: 2e-9 * float(cost.macs(supernet.hard_gates()))


def _gate_hooks(
    supernet: GatedSupernet, request: TrainingRequest, options: InterroGateOptions
) -> Hooks:
    """Make the hooks of the gate phase.

    They anneal the temperature, raise λ_s over its ramp, add the sparsity loss, and record the
    sparsity loss and each task's share of open gates after each epoch.
    """
    params, budgets = request.spec.params, request.spec.budgets
    tau = torch.tensor(task_values(params, "tau", supernet.tasks)).to(
        request.context.runtime.device
    )
    regulariser = choice_of(SPACE, request.study, params, "regulariser")
    cost = pattern_cost(supernet, request) if regulariser == "flops" else None
    loss = GateLoss(
        supernet, options, weight=float(params["lambda_s"]), tau=tau, cost=cost, budgets=budgets
    )

    def observe(epoch: int) -> dict[str, float]:
        hard = supernet.hard_gates().values()
        shares = torch.stack([is_open.float().mean(1) for is_open in hard]).mean(0).tolist()
        with torch.no_grad():
            sparsity = float(supernet.sparsity(tau))
        opened = {f"open.{task}": share for task, share in zip(supernet.tasks, shares, strict=True)}
        return {"sparsity": sparsity, **opened}

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        return loss.penalty()

    return Hooks(penalty=penalty, before_step=loss.anneal, observe=observe)


INTERROGATE = Method(
    name="interrogate",
    paper="Bejnordi et al., arXiv 2402.16848",
    year=2024,
    summary="learned per-channel gates between a shared and a task's own stream, pruned afterwards",
    build=build,
    options=InterroGateOptions,
    start_of=start_of,
    phases=phases,
    space=SPACE,
    bounds=frozenset({"macs", "params", "latency"}),
    bounds_tasks=True,
    least_cost=least_cost,
    baseline=False,
    outline=(
        "warm-up as a multi-task network, once per seed (option)",
        "channels ranked and the encoder narrowed (budgets below mtl's cost)",
        "gates and weights",
        "compact network, fine-tuned (option)",
    ),
    effort="T + 1 encoders, then the compact network's",
    ours="warm-up, fine-tuning, exact budgets, initial gates and their learning rate",
    unpriced="it lies between mtl (all gates closed) and, with every gate open, stl; ask for those",
    read=load_compact,
    latency_table=latency_table,
    check=check,
)
