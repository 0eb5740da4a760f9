"""DYMU (Raychaudhuri et al., CVPR 2022, https://arxiv.org/abs/2203.14949).

One supernet per seed, steered by preferences of the tasks and by how much a low cost matters. It
starts from the trained single-task networks, which stay as they are. First the edge hypernetwork
learns, under the task losses weighted by the preferences and the branching regularisers; then the
weight hypernetwork, under the task losses on the trees that the first one predicts. Trials are
points (preferences, cost weight): each is a tree, cut out as a plain network.

The paper has no public code; what its public facts leave open is marked in the docstrings here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, training_of
from gatesearch.methods.dymu.affinity import affinity, pooled
from gatesearch.methods.dymu.cut import cut, shares_alone
from gatesearch.methods.dymu.draws import Draws
from gatesearch.methods.dymu.options import SPACE, DymuOptions, check_size
from gatesearch.methods.dymu.preferred import DRAWN_PREFERENCE, fixed_preference
from gatesearch.methods.dymu.regularisers import active_loss, active_tasks, inactive_loss
from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.methods.dymu.tree import Tree, merged
from gatesearch.methods.dymu.tree_cost import TreeCost
from gatesearch.methods.interrogate.options import MOST_PATTERNS, default_patterns
from gatesearch.methods.space import task_values
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts, parts_of
from gatesearch.pruning import CompactNet, load_compact
from gatesearch.pruning.description import Description
from gatesearch.results import SINGLE_TASK
from gatesearch.study import Study
from gatesearch.training import Hooks, ParameterGroup, evaluate, recompute_statistics
from gatesearch.training.split_data import normalize

SUPERNET = "supernet"
# Number of drawn (r, c) over which the cost of a step of the weight hypernetwork is averaged.
_POINTS = 64


def build(parts: Parts, options: DymuOptions) -> DymuNet:
    """Build the supernet.

    Raises:
        UsageError: It has more edges than a tree is chosen from.
    """
    net = DymuNet(parts, options)
    check_size(tasks=len(net.tasks), blocks=len(net.blocks))
    return net


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
    options, epochs = options_of(study, DYMU), training_of(study, DYMU).epochs
    edges, end = options.phases(epochs)
    if request.spec.part == SUPERNET:
        return [
            Phase(
                name="edges",
                span=(0, edges),
                begin=lambda before: TrainedNetwork(_with_affinity(request, trained=edges > 0)),
                hooks=lambda module: _edge_hooks(supernet_of(module), request, options),
                groups=lambda module: [_group(supernet_of(module).edges, request)],
                weighting=DRAWN_PREFERENCE,
                forward_gflops=lambda module: _edge_gflops(supernet_of(module), request, edges),
                describe=lambda module: {},
                rebuild=lambda described: _untrained(request),
            ),
            Phase(
                name="weights",
                span=(edges, end),
                begin=lambda before: _with_mean_cost(before, request),
                hooks=lambda module: _weight_hooks(supernet_of(module)),
                groups=lambda module: [_group(supernet_of(module).weights, request)],
                weighting=DRAWN_PREFERENCE,
                forward_gflops=lambda module: supernet_of(module).mean_gflops,
                describe=lambda module: {"mean_gflops": supernet_of(module).mean_gflops},
                rebuild=lambda described: _rebuilt(request, described),
            ),
        ]
    tasks = study.task_names
    return [
        Phase(
            name="tree",
            span=(end, epochs),
            begin=lambda before: _cut_out(request),
            weighting=fixed_preference(preference_of(request.spec.params, tasks)),
            describe=_description,
            rebuild=lambda described: CompactNet(Description.model_validate(described)),
        )
    ]


def supernet_of(module: nn.Module) -> DymuNet:
    """Assert that a module is the controlled supernet."""
    assert isinstance(module, DymuNet)
    return module


def preference_of(params: Mapping[str, float | str], tasks: Sequence[str]) -> list[float]:
    """Return the preferences r of a configuration, which sum to 1; equal if all weights are 0.

    >>> preference_of({"prefer.a": 0.5, "prefer.b": 0.5, "prefer.c": 1.0}, ["a", "b", "c"])
    [0.25, 0.25, 0.5]
    """
    weights = task_values(params, "prefer", tasks)
    total = sum(weights)
    return [weight / total if total > 0 else 1 / len(weights) for weight in weights]


def trained_supernet(request: TrainingRequest) -> DymuNet:
    """Load the trained supernet that a trial starts from."""
    study, state = request.study, request.start_state()
    supernet = build(
        parts_of(study, seed=request.spec.seed, pretrained=False), options_of(study, DYMU)
    )
    assert state is not None
    supernet.load_state_dict(state)
    return supernet.eval()


class SteeredSupernet:
    """A trained supernet whose trees are measured; see `gatesearch.methods.base.Supernet`.

    Args:
        request: Request for any trial of the search.
        budgets: Budgets of the search.
    """

    def __init__(self, request: TrainingRequest, budgets: Sequence[Budget]) -> None:
        self._request, self._budgets = request, budgets
        self._supernet = trained_supernet(request)
        self._cost = TreeCost.of(self._supernet, request.context.input_shape)
        options, context = options_of(request.study, DYMU), request.context
        self._statistics = options.statistics
        self.patterns = options.patterns or default_patterns(
            epochs=options.phases(training_of(request.study, DYMU).epochs)[1],
            train=len(context.train),
            validation=len(context.validation),
            statistics=options.statistics,
        )
        self.most_patterns = options.patterns or MOST_PATTERNS

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """Compute (multiply-adds, largest share of any budget) of a configuration's tree."""
        tree = _Point(self._supernet, params, self._request).tree
        return float(self._cost.macs(tree)), self._cost.share(tree, self._budgets)

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """Measure (task -> metric on the validation part, multiply-adds) of a configuration.

        Batch norm statistics are computed anew on `dymu.statistics` training frames.
        """
        context, point = self._request.context, _Point(self._supernet, params, self._request)
        network = context.runtime.place(point.network(point.tree))
        size = context.study.training.batch_size
        recompute_statistics(
            network, context.train, runtime=context.runtime, batch_size=size,
            max_frames=self._statistics,
            augmented=context.augmented(training_of(context.study, DYMU)),
        )  # fmt: skip
        metrics = evaluate(
            network, context.validation, context.tasks, runtime=context.runtime, batch_size=size
        )
        return metrics, float(self._cost.macs(point.tree))


class _Point:
    """The tree and the norms of one configuration.

    Attributes:
        tree: Its tree, under no budget.
    """

    def __init__(
        self, supernet: DymuNet, params: Mapping[str, float | str], request: TrainingRequest
    ) -> None:
        self.supernet = supernet
        self.preference = torch.tensor(preference_of(params, supernet.tasks))
        self.cost = torch.tensor(float(params["cost_weight"]))
        _, _, height, width = request.context.input_shape
        self.tree = supernet.tree(self.preference, self.cost, (height, width))

    def within(self, cost: TreeCost, budgets: Sequence[Budget]) -> Tree:
        """Return the tree, with streams merged until it keeps to the budgets."""
        scores = self.supernet.scores(self.preference, self.cost)
        return merged(self.tree, scores, cost.limits(budgets))

    def network(self, tree: Tree) -> CompactNet:
        """Cut out the plain network of a tree with the norms of this configuration."""
        return cut(self.supernet, tree, self.preference, self.cost)


def _cut_out(request: TrainingRequest) -> TrainedNetwork:
    supernet, spec = trained_supernet(request), request.spec
    point, tree = _Point(supernet, spec.params, request), None
    if spec.budgets:
        cost = TreeCost.of(supernet, request.context.input_shape)
        tree = point.within(cost, spec.budgets)
    tree = tree or point.tree
    layers = tuple(block.name for block in supernet.blocks)
    return TrainedNetwork(point.network(tree), layers, shares_alone(supernet, tree))


def _description(module: nn.Module) -> Mapping[str, object]:
    assert isinstance(module, CompactNet)
    return module.description.model_dump(mode="json")


def _untrained(request: TrainingRequest) -> DymuNet:
    """Build the supernet from the trained single-task networks."""
    study, state = request.study, request.start_state()
    assert state is not None
    return build(parts_of(study, seed=request.spec.seed, stl=state), options_of(study, DYMU))


def _rebuilt(request: TrainingRequest, described: Mapping[str, object]) -> DymuNet:
    supernet, gflops = _untrained(request), described["mean_gflops"]
    assert isinstance(gflops, float)
    supernet.mean_gflops = gflops
    return supernet


def _with_affinity(request: TrainingRequest, *, trained: bool) -> DymuNet:
    """Build the supernet; measure the affinity of tasks if the edge hypernetwork is trained."""
    supernet = _untrained(request)
    if trained:
        _measure_affinity(supernet, request)
    return supernet


@torch.no_grad()
def _measure_affinity(supernet: DymuNet, request: TrainingRequest) -> None:
    context = request.context
    context.runtime.place(supernet).eval()
    batches: list[list[list[Tensor]]] = []
    for batch in context.train.in_order(
        context.study.training.batch_size, options_of(request.study, DYMU).frames
    ):
        with context.runtime.autocast():
            features = supernet.anchor_features(context.runtime.image(normalize(batch["image"])))
            batches.append([[pooled(x) for x in stream] for stream in features])
    tasks = range(len(supernet.tasks))
    for block in range(len(supernet.blocks)):
        rows = [torch.cat([batch[task][block] for batch in batches]) for task in tasks]
        supernet.get_buffer("affinity")[block].copy_(affinity(rows))


def _with_mean_cost(before: TrainedNetwork | None, request: TrainingRequest) -> TrainedNetwork:
    """Note the mean cost of the trees that are about to be trained."""
    assert before is not None
    supernet = supernet_of(before.module)
    draws = Draws(
        tasks=len(supernet.tasks),
        blocks=len(supernet.blocks),
        concentration=supernet.draws.concentration,
        seed=supernet.draws.seed + 1,
    ).to(supernet.draws.preference.device)
    shape = request.context.input_shape
    cost, total = TreeCost.of(supernet, shape), 0
    for _ in range(_POINTS):
        draws.draw()
        total += cost.macs(supernet.tree(draws.preference, draws.cost, (shape[2], shape[3])))
    supernet.mean_gflops = 2e-9 * total / _POINTS
    return before


def _edge_gflops(supernet: DymuNet, request: TrainingRequest, epochs: int) -> float:
    """Compute the GFLOPs of a step's pass through all streams, with a share of the affinity's.

    The affinity takes one forward pass of its frames; a training step counts three per frame.
    """
    context = request.context
    cost = TreeCost.of(supernet, context.input_shape)
    streams = 2e-9 * cost.separate_macs(len(supernet.tasks))
    size, train = training_of(context.study, DYMU).batch_size, len(context.train)
    frames = min(options_of(request.study, DYMU).frames, train)
    return streams * (1 + frames / max(1, 3 * epochs * (train // size * size)))


def _group(hypernetwork: nn.Module, request: TrainingRequest) -> ParameterGroup:
    rate = options_of(request.study, DYMU).lr / training_of(request.study, DYMU).lr
    return ParameterGroup(
        tuple(hypernetwork.parameters()), rate=rate, optimizer="adam", weight_decay=0.0
    )


def _edge_hooks(supernet: DymuNet, request: TrainingRequest, options: DymuOptions) -> Hooks:
    """Make the hooks of the first phase.

    They draw (r, c) and noise before each step, lower the temperature, add the branching
    regularisers, and record the GFLOPs of the learned trees for equal preferences and c = 0 and 1,
    before the bound that c sets.
    """
    start, end = options.temperature
    cost = TreeCost.of(supernet, request.context.input_shape)

    def before_step(share: float) -> None:
        supernet.draws.draw()
        supernet.temperature = start * (end / start) ** share

    def penalty(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        draws = supernet.draws
        probabilities = supernet.logits(draws.preference, draws.cost).softmax(2)
        active = active_tasks(draws.preference, options.threshold)
        return draws.cost * options.active * active_loss(
            probabilities, supernet.get_buffer("affinity"), active
        ) + options.inactive * inactive_loss(probabilities, active)

    def observe(epoch: int) -> dict[str, float]:
        equal = torch.full_like(supernet.draws.preference, 1 / len(supernet.tasks))
        trees = {
            f"tree_gflops.c{c}": Tree.best(supernet.scores(equal, equal.new_tensor(float(c))))
            for c in (0, 1)
        }
        return {name: 2e-9 * cost.macs(tree) for name, tree in trees.items()}

    return Hooks(penalty=penalty, before_step=before_step, observe=observe)


def _weight_hooks(supernet: DymuNet) -> Hooks:
    """Draw (r, c) before each step, and train on the tree that the edge hypernetwork predicts."""

    def before_step(share: float) -> None:
        supernet.draws.draw()
        supernet.temperature = 0.0

    return Hooks(before_step=before_step)


def most_trials(study: Study) -> tuple[int, str]:
    """Return how many configurations trials are chosen from, and the option that states it."""
    return options_of(study, DYMU).patterns or MOST_PATTERNS, "dymu.patterns"


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
    supernet=SteeredSupernet,
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
        "the form of the branching losses, the bound on cost that c sets, affinity from features "
        "on a 4 x 4 grid, heads whose norms are shifted too, and shares of the epochs"
    ),
)
