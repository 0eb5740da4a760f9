"""DYMU (Raychaudhuri et al., CVPR 2022, https://arxiv.org/abs/2203.14949).

One supernet per seed, steered by preferences of the tasks and by how much a low cost matters. It
starts from the trained single-task networks, which stay as they are. First the edge hypernetwork
learns, under the task losses weighted by the preferences and the branching regularisers; then the
weight hypernetwork, under the task losses on the trees that the first one predicts. Trials are
points (preferences, cost weight): each is a tree, cut out as a plain network.

The paper has no public code; what its public facts leave open is marked in the docstrings here.
"""

from collections.abc import Sequence

from gatesearch.cost import Budget
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, Phase, Supernet, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, refuse_stage_heads, training_of
from gatesearch.methods.dymu.cut import shares_alone
from gatesearch.methods.dymu.options import SPACE, DymuOptions, check_size
from gatesearch.methods.dymu.points import (
    Point,
    SteeredSupernet,
    preference_of,
    trained_supernet,
)
from gatesearch.methods.dymu.preferred import fixed_preference
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.supernet_training import supernet_phases
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.methods.interrogate.options import MOST_PATTERNS
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts
from gatesearch.pruning import (
    describe_compact,
    load_compact,
    rebuild_compact,
)
from gatesearch.results import SINGLE_TASK
from gatesearch.study import Study

SUPERNET = "supernet"


def build(parts: Parts, options: DymuOptions) -> DymuNet:
    """Build the supernet.

    Raises:
        UsageError: It has more edges than a tree is chosen from, or a head reads several stages.
    """
    refuse_stage_heads(parts, "dymu")
    check_size(tasks=len(parts.tasks), graph=parts.graph.trunk())
    return DymuNet(parts, options)


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a trial start from the supernet, and the supernet from the single-task networks."""
    if spec.part == SUPERNET:
        return NetworkSpec(SINGLE_TASK, spec.seed)
    return NetworkSpec(spec.method, spec.seed, part=SUPERNET)


def check(study: Study, budgets: Sequence[str]) -> None:
    """Refuse another start than the single-task networks, which are never trained further.

    Raises:
        UsageError: The study asks for it.
    """
    start = study.options_of(DYMU.name).start
    if start not in (None, "stl"):
        raise UsageError(
            f'dymu steers trained single-task networks: its start must be "stl", found "{start}"; '
            "leave options.dymu.start out"
        )


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the two phases of the supernet, or the one of a network that is cut out of it."""
    study = request.study
    options, training = options_of(study, DYMU), training_of(study, DYMU)
    if request.spec.part == SUPERNET:
        return supernet_phases(request, options, training)
    return [
        Phase(
            name="tree",
            span=(options.phases(training.epochs)[1], training.epochs),
            begin=lambda before: _cut_out(request, options),
            weighting=fixed_preference(preference_of(request.spec.params, study.task_names)),
            describe=describe_compact,
            rebuild=rebuild_compact,
        )
    ]


def supernet(request: TrainingRequest, budgets: Sequence[Budget]) -> Supernet:
    """Load the trained supernet, on which configurations are tried."""
    study = request.study
    return SteeredSupernet(
        request, budgets, options=options_of(study, DYMU), training=training_of(study, DYMU)
    )


def most_trials(study: Study) -> tuple[int, str]:
    """Return how many configurations trials are chosen from, and the option that states it."""
    return options_of(study, DYMU).patterns or MOST_PATTERNS, "dymu.patterns"


def _cut_out(request: TrainingRequest, options: DymuOptions) -> TrainedNetwork:
    """Cut out the network of a trial, within its budgets."""
    supernet, spec = trained_supernet(request, options), request.spec
    point = Point(supernet, spec.params, request.study.protocol.size)
    cost = TreeCost.of(supernet, request.context.input_shape)
    tree = point.tree_within(cost, spec.budgets)
    layers = tuple(block.name for block in supernet.blocks)
    return TrainedNetwork(point.network(tree), layers, shares_alone(supernet, tree))


DYMU = Method(
    name="dymu",
    paper="Raychaudhuri et al., CVPR",
    year=2022,
    summary="single-task networks, steered into trees of sharing by preferences and cost",
    build=build,
    options=DymuOptions,
    start="stl",
    start_of=start_of,
    phases=phases,
    space=SPACE,
    bounds=frozenset({"macs", "params"}),
    unmeasured_parts=frozenset({SUPERNET}),
    most_trials=most_trials,
    supernet=supernet,
    default_trials=8,
    # One supernet stands for many networks: which one is meant is what the search chooses.
    baseline=False,
    unpriced="it lies between mtl (cost_weight 1) and, at most, stl (cost_weight 0); ask for those",
    read=load_compact,
    check=check,
    outline=(
        "edge hypernetwork: (preferences, cost weight) to a tree, by Gumbel softmax",
        "weight hypernetwork: shifts of the norms of the trees",
        "tree: cut out for one point, and fine-tuned if asked for",
    ),
    effort="T encoders, then at most T encoders once for all trials",
    ours=(
        "the exact form of the branching losses, the bound on cost that c sets, branches behind "
        "every block, affinity on a 4 x 4 grid, shifted norms in heads too, shares of the epochs"
    ),
)
