"""AdaShare (Sun et al., NeurIPS 2020, https://arxiv.org/abs/1911.12423).

Phases: a warm-up in which all tasks share all blocks; then weights and policy in turns, on two
halves of the training part, with one block more freed at a time from the last; then a policy is
drawn and its plain network trained.

Ours, as the paper leaves it open or differs: all phases are within the epochs of the study and
under its learning rate schedule, whereas the authors' code (https://github.com/sunxm2357/AdaShare)
trains the chosen network as long again as all before; the study's optimizer trains the weights
throughout (the code: Adam, then SGD, then Adam); one of the drawn policies is chosen on the
validation part and one network trained, not eight and the best on the test part reported; policies
are made to fit budgets; what tasks compute alike is computed once.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.cost import Cost
from gatesearch.errors import UsageError
from gatesearch.methods.adashare.choice import choose_policy
from gatesearch.methods.adashare.options import SPACE, AdaShareOptions
from gatesearch.methods.adashare.plan import network_of, plan, residual_blocks
from gatesearch.methods.adashare.policies import policy_of, read_policy
from gatesearch.methods.adashare.policy_cost import PolicyCost
from gatesearch.methods.adashare.policy_loss import freed_blocks, sharing_loss, sparsity_loss
from gatesearch.methods.adashare.supernet import PolicySupernet
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import (
    options_of,
    refuse_stage_heads,
    single_task_start,
    starts_from_single_task,
    training_of,
)
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts, graph_of, parts_of
from gatesearch.models.gates import temperature_at
from gatesearch.models.model_factory import below
from gatesearch.pruning import (
    describe_compact,
    load_compact,
    rebuild_compact,
)
from gatesearch.study import Study
from gatesearch.training import Hooks, ParameterGroup, Turn

WARM_UP = "warm-up"
# Decay of the policy's logits in the authors' code.
_POLICY_DECAY = 5e-4


def build(parts: Parts, options: AdaShareOptions) -> nn.Module:
    """Build the supernet, or the network of the policy that is given.

    Raises:
        UsageError: A head reads several stages.
    """
    refuse_stage_heads(parts, "adashare")
    if options.policy is None:
        return PolicySupernet(parts)
    assert isinstance(options.policy, dict), "options are settled"
    policy = policy_of(options.policy, parts.tasks)
    planned = plan(parts.graph, policy, separate=options.prefixes == "separate")
    return network_of(planned, parts.encoder(), dict(parts.all_heads()), parts.heads)


def settle(study: Study, options: AdaShareOptions) -> AdaShareOptions:
    """Read the policy that is given into the options.

    Raises:
        UsageError: It is none of the study's network.
    """
    if options.policy is None:
        return options
    blocks = residual_blocks(graph_of(study))
    rows = read_policy(options.policy, tasks=study.task_names, blocks=blocks, folder=study.folder)
    return options.model_copy(update={"policy": rows})


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a training start from the warm-up if its seed shares one."""
    if not spec.part and _shares_warm_up(study):
        return NetworkSpec(spec.method, spec.seed, part=WARM_UP)
    return single_task_start(spec, study, ADASHARE)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the phases: of the warm-up, of a given policy's network, or of one that is learned."""
    study = request.study
    options, epochs = options_of(study, ADASHARE), training_of(study, ADASHARE).epochs
    if options.policy is not None:
        return [_given_phase(request, epochs=epochs)]
    warm, searched = options.phases(epochs)
    warm_up = Phase(
        name=WARM_UP,
        span=(0, warm),
        begin=lambda before: TrainedNetwork(MultiTaskNet(_start_parts(request))),
    )
    if request.spec.part == WARM_UP:
        return [warm_up]
    return [
        *([warm_up] if warm and not _shares_warm_up(study) else []),
        _policy_phase(request, options, span=(warm, searched)),
        _retraining_phase(request, options, span=(searched, epochs)),
    ]


def _shares_warm_up(study: Study) -> bool:
    """Tell whether all trainings of a seed start from one warm-up.

    Where they start from single-task networks each has its own, as the chosen network is trained
    from these again.
    """
    options = options_of(study, ADASHARE)
    warm = options.phases(training_of(study, ADASHARE).epochs)[0] > 0
    return options.policy is None and warm and not starts_from_single_task(study, ADASHARE)


def _start_parts(request: TrainingRequest) -> Parts:
    """Collect encoder and heads with the weights that the whole training starts from."""
    study, seed = request.study, request.spec.seed
    if starts_from_single_task(study, ADASHARE):
        return parts_of(study, seed=seed, stl=request.start_state())
    return parts_of(study, seed=seed)


def _given_phase(request: TrainingRequest, *, epochs: int) -> Phase:
    """Plan the only phase of a policy that is given."""

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        network = build(_start_parts(request), options_of(request.study, ADASHARE))
        return TrainedNetwork(network)

    return Phase(
        name="given",
        span=(0, epochs),
        begin=begin,
        describe=describe_compact,
        rebuild=rebuild_compact,
    )


def _policy_phase(
    request: TrainingRequest, options: AdaShareOptions, *, span: tuple[int, int]
) -> Phase:
    """Plan the phase in which weights and policy learn in turns."""
    study = request.study

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        supernet = PolicySupernet(_start_parts(request))
        warmed = request.start_state() if _shares_warm_up(study) else None
        if before is not None:
            warmed = before.module.state_dict()
        if warmed is not None:
            supernet.encoder.load_state_dict(below(warmed, "encoder."))
            supernet.heads.load_state_dict(below(warmed, "heads."))
        return TrainedNetwork(supernet)

    def turns(module: nn.Module) -> list[Turn]:
        supernet = supernet_of(module)
        weights = (*supernet.encoder.parameters(), *supernet.heads.parameters())
        policy = ParameterGroup(
            tuple(supernet.logits),
            rate=options.policy_lr,
            optimizer="adam",
            weight_decay=_POLICY_DECAY,
        )
        return [Turn((ParameterGroup(weights),), (0, 2)), Turn((policy,), (1, 2))]

    def mean_gflops(module: nn.Module) -> float:
        cost = _cost(request.study, options)
        blocks = len(supernet_of(module).blocks)
        # The blocks are freed after equal shares of the curriculum.
        rising = [cost.training_macs(freed) for freed in range(1, blocks + 1)]
        share = options.curriculum
        return 2e-9 * (share * sum(rising) / blocks + (1 - share) * rising[-1])

    def likeliest_gflops(module: nn.Module) -> Callable[[], float]:
        supernet, cost = supernet_of(module), _cost(request.study, options)
        return lambda: 2e-9 * cost.macs(supernet.likeliest_policy())

    return Phase(
        name="policy",
        span=span,
        begin=begin,
        turns=turns,
        hooks=lambda module: policy_hooks(
            supernet_of(module), options, request.spec.params, epochs=span[1] - span[0]
        ),
        forward_gflops=mean_gflops,
        current_gflops=likeliest_gflops,
        rebuild=lambda described: PolicySupernet(
            parts_of(study, seed=request.spec.seed, pretrained=False)
        ),
    )


def policy_hooks(
    supernet: PolicySupernet,
    options: AdaShareOptions,
    params: Mapping[str, float | str],
    *,
    epochs: int,
) -> Hooks:
    """Make the hooks of the policy's phase.

    They lower the temperature after each epoch, which ends with a policy turn, free blocks by the
    curriculum, add both losses of the policy, and record these and each task's mean probability of
    selecting a block.

    Args:
        supernet: The network.
        options: Temperature, curriculum, form and weights of the losses.
        params: Weights of the losses that a search has chosen.
        epochs: Number of epochs of the phase.
    """
    weights = {
        name: float(params.get(name, getattr(options, name)))
        for name in ("lambda_sparsity", "lambda_sharing")
    }

    def losses() -> tuple[Tensor, Tensor]:
        logits, freed, form = supernet.all_logits(), supernet.freed, options.losses
        return (
            sparsity_loss(logits, freed=freed, form=form),
            sharing_loss(logits, freed=freed, form=form),
        )

    def before_step(share: float) -> None:
        blocks = len(supernet.blocks)
        supernet.freed = freed_blocks(share, blocks=blocks, curriculum=options.curriculum)
        turns_done = int(share * epochs + 1e-9)
        supernet.temperature = temperature_at(turns_done / epochs, options.temperature)

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        sparsity, sharing = losses()
        return weights["lambda_sparsity"] * sparsity + weights["lambda_sharing"] * sharing

    def observe(epoch: int) -> dict[str, float]:
        with torch.no_grad():
            sparsity, sharing = losses()
        selected = supernet.margins().sigmoid().mean(1).tolist()
        return {
            "policy.sparsity": float(sparsity),
            "policy.sharing": float(sharing),
            "temperature": supernet.temperature,
            **{f"selected.{t}": share for t, share in zip(supernet.tasks, selected, strict=True)},
        }

    return Hooks(penalty=penalty, before_step=before_step, observe=observe)


def _retraining_phase(
    request: TrainingRequest, options: AdaShareOptions, *, span: tuple[int, int]
) -> Phase:
    """Plan the last phase: a policy is chosen, and its network trained."""

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        assert before is not None
        supernet, cost = supernet_of(before.module), _cost(request.study, options)
        policy = choose_policy(supernet, request, cost, samples=options.samples)
        planned = plan(supernet.graph, policy, separate=cost.separate)
        if options.retrain_from == "start" and span[0] < span[1]:
            parts = _start_parts(request)
            encoder, heads = parts.encoder(), dict(parts.all_heads())
        else:
            encoder, heads = supernet.encoder, copy.deepcopy(dict(supernet.heads))
        network = network_of(planned, encoder, heads, supernet.head_specs)
        shares = planned.shares(supernet.blocks, len(supernet.tasks))
        return TrainedNetwork(
            network, supernet.blocks, dict(zip(supernet.tasks, shares, strict=True))
        )

    return Phase(
        name="compact", span=span, begin=begin, describe=describe_compact, rebuild=rebuild_compact
    )


def supernet_of(module: nn.Module) -> PolicySupernet:
    """Assert that a module is the supernet."""
    assert isinstance(module, PolicySupernet)
    return module


def _cost(study: Study, options: AdaShareOptions) -> PolicyCost:
    with torch.device("meta"):
        parts = parts_of(study, pretrained=False)
        separate = options.prefixes == "separate"
        return PolicyCost.of(parts, study.protocol.size, separate=separate)


def check(study: Study, budgets: Sequence[str]) -> None:
    """Refuse a search that has nothing to choose.

    Raises:
        UsageError: A policy is given.
    """
    options = options_of(study, ADASHARE)
    if options.policy is not None:
        raise UsageError(
            "a search of adashare chooses how its policy is learned, found one that is given by "
            "options.adashare.policy; train it with --methods adashare, or leave the option out"
        )


def least_cost(study: Study) -> Cost:
    """Compute the cost of the cheapest network that a search can find: all blocks are skipped."""
    cost = _cost(study, options_of(study, ADASHARE))
    macs, params = cost.macs(cost.least), cost.params(cost.least)
    return Cost(macs=macs, backbone_macs=macs - cost.head_macs, params=params)


def unpriced(study: Study) -> str:
    """Say why the cost is not known, where no policy is given."""
    if options_of(study, ADASHARE).policy is not None:
        return ""
    return "the policy is learned; give one by options.adashare.policy, such as nyu3, to count it"


def data_parts(study: Study) -> int:
    """Count the parts of the training frames: two halves, but one whole for a given policy."""
    return 1 if options_of(study, ADASHARE).policy is not None else 2


ADASHARE = Method(
    name="adashare",
    paper="Sun et al., NeurIPS",
    year=2020,
    summary="one encoder, of whose residual blocks each task learns which to compute",
    build=build,
    options=AdaShareOptions,
    settle=settle,
    start_of=start_of,
    phases=phases,
    space=SPACE,
    bounds=frozenset({"macs", "params"}),
    least_cost=least_cost,
    unpriced=unpriced,
    data_parts=data_parts,
    read=load_compact,
    check=check,
    outline=(
        "warm-up without a policy",
        "weights and policy in turns on two halves, blocks freed from the last",
        "the network of a drawn policy",
    ),
    effort="0.1, then 0.4 of up to T encoders, then 0.5 of the chosen network",
    ours="shares of one training's epochs, the choice of the policy on validation, budgets",
)
