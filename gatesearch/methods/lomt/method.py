"""Layer-optimized multi-task networks (Upadhyay et al., 2024, https://arxiv.org/abs/2406.03048).

In the first phase a single-task network per task is trained under group sparsity, which empties
layers that the task does not need. In the second the multi-task network is trained, in which each
decoder reads the shared encoder at the last layer that its task still had weights in. The authors
chose these layers by eye from plots; here they are found. Their public code is
ricupa/Layer-optimized-multi-task-model.
"""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import nn

from gatesearch.cost import count_macs
from gatesearch.errors import UsageError
from gatesearch.events import Log
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, refuse_stage_heads, training_of
from gatesearch.methods.lomt.layers import (
    check_graph,
    cut_sparse,
    last_layer,
    layer_optimized,
    reading_node,
    specs_of,
)
from gatesearch.methods.lomt.sparse_nets import Metric, SparseNets
from gatesearch.methods.space import Range
from gatesearch.models import Parts, parts_of
from gatesearch.pruning import (
    describe_compact,
    load_compact,
    rebuild_compact,
)
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.training import Hooks, ParameterGroup, rate_decay
from gatesearch.training.weightings import WEIGHTINGS


class LOMTOptions(Strict):
    """Options of LOMT; the values of the paper and its code unless noted.

    Attributes:
        lambda_group: Weight λ of the group sparsity; the paper tries ten values from 1e-4 to 1e-3.
        metric: In which metric weights are shrunk. `adam` divides thresholds by the root mean
            square of the group's gradients; the public code does so by every single weight's, for
            which the operator has no closed form. `plain` is the operator as the paper prints it:
            at its λ and learning rates it zeroes no group in a training of usual length.
        sparse: Share of the epochs, the first, of the single-task networks, rounded down; ours.
        rate: Learning rate of the sparse encoders, as a multiple of the study's.
        decay: Weight decay of their convolutions, by AdamW.
        tolerance: Percentage points by which sparsity may move in an epoch that counts as stable.
        patience: Share of the epochs of the first phase, rounded up, that must be stable in a row
            for it to end early: 30 of the 800 that the code allows. The epochs saved are not used.
    """

    lambda_group: float = Field(default=1e-3, ge=0, le=1e3)
    metric: Metric = "adam"
    sparse: float = Field(default=0.5, gt=0, lt=1)
    rate: float = Field(default=0.1, gt=0, le=1e3)
    decay: float = Field(default=0.1, ge=0, le=1e3)
    tolerance: float = Field(default=0.1, ge=0, le=100)
    patience: float = Field(default=0.0375, gt=0, le=1)


def build(parts: Parts, options: LOMTOptions) -> SparseNets:
    """Build the network of the first phase.

    Raises:
        UsageError: A head reads several stages, or the encoder has other values than maps.
    """
    refuse_stage_heads(parts, "lomt")
    check_graph(parts.graph)
    return SparseNets(parts)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan both phases: single-task networks under group sparsity, then the multi-task network.

    The first balances no losses, as its networks share nothing; the second as the run asks.
    """
    study = request.study
    options, training = options_of(study, LOMT), training_of(study, LOMT)
    last = int(options.sparse * training.epochs)
    strength = float(request.spec.params.get("lambda_group", options.lambda_group))

    def parts() -> Parts:
        return parts_of(study, seed=request.spec.seed, stl=request.start_state())

    def hooks(module: nn.Module) -> Hooks:
        networks = sparse_nets(module)
        rate = training.lr * options.rate
        now = rate

        def follow_schedule(share: float) -> None:
            nonlocal now
            now = rate * rate_decay(training, share * last / training.epochs)

        return Hooks(
            before_step=follow_schedule,
            after_step=lambda: networks.shrink(rate=now, strength=strength, metric=options.metric),
            observe=lambda epoch: networks.record(options.tolerance),
            halt=lambda: int(networks.stable) >= math.ceil(options.patience * last),
        )

    def optimized(before: TrainedNetwork | None) -> TrainedNetwork:
        assert before is not None
        networks, made = sparse_nets(before.module), parts()
        layers = {task: last_layer(networks.encoder(task)) for task in made.tasks}
        reads = {task: reading_node(made.graph, layer) for task, layer in layers.items()}
        request.emit(Log(_found(request, networks, made, reads)))
        return TrainedNetwork(layer_optimized(made, reads))

    return [
        Phase(
            name="sparse",
            span=(0, last),
            begin=lambda before: TrainedNetwork(build(parts(), options)),
            hooks=hooks,
            groups=lambda module: sparse_groups(sparse_nets(module), options),
            weighting=WEIGHTINGS["uniform"],
        ),
        Phase(
            name="layer-optimized",
            span=(last, training.epochs),
            begin=optimized,
            describe=describe_compact,
            rebuild=rebuild_compact,
        ),
    ]


def sparse_groups(networks: SparseNets, options: LOMTOptions) -> list[ParameterGroup]:
    """Group the parameters of the first phase: encoders by AdamW, heads as the study says."""
    ids = {id(conv.weight) for conv in networks.convolutions()}
    convolutions = [p for p in networks.encoders.parameters() if id(p) in ids]
    norms = [p for p in networks.encoders.parameters() if id(p) not in ids]
    return [
        ParameterGroup(tuple(convolutions), options.rate, "adamw", options.decay),
        ParameterGroup(tuple(norms), options.rate, "adamw", 0.0),
        ParameterGroup(tuple(networks.heads.parameters())),
    ]


def sparse_nets(module: nn.Module) -> SparseNets:
    """Assert that a module is the network of the first phase."""
    assert isinstance(module, SparseNets)
    return module


def check(study: Study, budgets: Sequence[str]) -> None:
    """Refuse budgets.

    Raises:
        UsageError: There is one.
    """
    if budgets:
        raise UsageError(
            "a budget must bound a cost that is known before training, and that of 'lomt' depends "
            f"on the layers that its first phase leaves; found {', '.join(budgets)}; leave "
            "--budget out, or tune another method"
        )


def _found(
    request: TrainingRequest, networks: SparseNets, parts: Parts, reads: Mapping[str, str]
) -> str:
    """Say at which node each decoder reads, how sparse its network became, and what that saves."""
    shape = request.context.input_shape
    cut = count_macs(cut_sparse(networks, specs_of(parts)), shape, cross_check=False)
    whole = count_macs(networks, shape, cross_check=False)
    shares = dict(zip(networks.encoders, networks.sparsity.tolist(), strict=True))
    listed = ", ".join(
        f"{task} reads {node} ({shares[task]:.1f} % of its groups are zero)"
        for task, node in reads.items()
    )
    return (
        f"{request.spec.label}: {listed}; without their dead channels the single-task networks "
        f"take {cut.gflops:.4g} of {whole.gflops:.4g} GFLOPs"
    )


LOMT = Method(
    name="lomt",
    paper="Upadhyay et al., arXiv 2406.03048",
    year=2024,
    summary="one encoder, each head at the last layer that group sparsity has left for its task",
    build=build,
    options=LOMTOptions,
    phases=phases,
    space={"lambda_group": Range(1e-4, 1e-3, log=True, legal=(1e-9, 1e3))},
    unpriced="at which layers its heads read is found in its first phase; ask for mtl",
    read=load_compact,
    check=check,
    outline=(
        "single-task networks under group sparsity",
        "the multi-task network, each head at the layer found for its task",
    ),
    effort="T encoders for half of the epochs, then about 1",
    ours="layers found by rule, not by eye; thresholds by group; half of the epochs for each phase",
)
