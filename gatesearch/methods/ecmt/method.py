"""ECMT (Aich et al., ICCV 2023, https://arxiv.org/abs/2308.11744).

One slimmable multi-task network is trained for all budgets and preferences: a wider head for a task
that is preferred, and an encoder as wide as the budget then allows. No code is public, and what is
not in the paper's abstract is ours.
"""

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from gatesearch.cost import Budget, Cost
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, single_task_start, training_of
from gatesearch.methods.ecmt.heads import check_graph, check_heads
from gatesearch.methods.ecmt.slimmable import (
    SlimmableNet,
    Widths,
    compact_slice,
    feature_distance,
    plain_slice,
)
from gatesearch.methods.ecmt.widths import Grid, SliceCost, share_of, widths_of
from gatesearch.methods.interrogate.options import MOST_PATTERNS, default_patterns
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.methods.space import Range, task_values
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import Parts, parts_of
from gatesearch.pruning import (
    describe_compact,
    load_compact,
    rebuild_compact,
)
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.training import Hooks, evaluate, recompute_statistics

SUPERNET = "supernet"


class ECMTOptions(Strict):
    """Options of ECMT; the paper's abstract states none of them.

    Attributes:
        smallest: Smallest width of the encoder and of each head.
        levels: Number of widths, evenly from the smallest to 1.
        ends: Probability of a step with all widths at the smallest, and of one with all at 1. In
            all others each width is drawn by itself, evenly from all levels. A step trains one
            configuration, so over the steps this is the sandwich rule, at the cost of plain
            training.
        distillation: Weight of the distance between the features of a narrow encoder and those of
            the full one (see `feature_distance`).
        patterns: Number of configurations that are tried on the validation part without training;
            by default as many as take about a quarter of the training (see `default_patterns`).
        statistics: Number of training frames for the batch norm statistics of a tried slice.
        finetune: Share of the epochs, the last, in which each slice is trained by itself; 0 keeps
            the weights of the slimmable network, as the paper does.
    """

    smallest: float = Field(default=0.25, gt=0, lt=1)
    levels: int = Field(default=31, ge=2, le=100)
    ends: float = Field(default=0.2, ge=0, le=0.5)
    distillation: float = Field(default=1.0, ge=0, le=1e6)
    patterns: int | None = Field(default=None, ge=1, le=10**6)
    statistics: int = Field(default=256, ge=2, le=10**9)
    finetune: float = Field(default=0.0, ge=0, lt=1)

    @property
    def grid(self) -> Grid:
        """The widths."""
        return Grid(self.smallest, self.levels)

    def slimmable_epochs(self, epochs: int) -> int:
        """Return the last epoch before a slice is trained by itself; at least 1."""
        return max(1, epochs - int(self.finetune * epochs))


def build(parts: Parts, options: ECMTOptions) -> MultiTaskNet:
    """Build the whole network.

    Raises:
        UsageError: A head, or the encoder, cannot be made narrower.
    """
    check_heads(parts)
    check_graph(parts.graph)
    return MultiTaskNet(parts)


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a trial start from the trained slimmable network; else the option `start` decides."""
    if _is_slice(spec):
        return NetworkSpec(spec.method, spec.seed, part=SUPERNET)
    return single_task_start(spec, study, ECMT)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the training of the slimmable network, of a slice of it, or, as a baseline, of both."""
    study, options = request.study, options_of(request.study, ECMT)
    epochs = training_of(study, ECMT).epochs
    slimmable = options.slimmable_epochs(epochs)
    parts = parts_of(study, seed=request.spec.seed, pretrained=False)

    def begin(before: TrainedNetwork | None) -> TrainedNetwork:
        seed = request.spec.seed
        whole = parts_of(study, seed=seed, stl=request.start_state())
        generator = torch.Generator().manual_seed(seed)
        return TrainedNetwork(SlimmableNet(build(whole, options), whole, generator))

    def unwrap(before: TrainedNetwork | None) -> TrainedNetwork:
        assert before is not None
        return TrainedNetwork(_slimmable(before.module).network)

    def cut(before: TrainedNetwork | None) -> TrainedNetwork:
        state = request.start_state()
        if before is not None:
            state = _slimmable(before.module).network.cpu().state_dict()
        assert state is not None
        return TrainedNetwork(compact_slice(state, parts, chosen_widths(request)))

    train = Phase(
        name="slimmable",
        span=(0, slimmable),
        begin=begin,
        hooks=lambda module: _hooks(_slimmable(module), request, options),
        forward_gflops=lambda module: _mean_gflops(parts, request, options),
    )
    if request.spec.part == SUPERNET:
        return [train, Phase(name="unwrapped", span=(slimmable, slimmable), begin=unwrap)]
    slice_ = Phase(
        name="slice",
        span=(slimmable, epochs),
        begin=cut,
        describe=describe_compact,
        rebuild=rebuild_compact,
    )
    return [slice_] if _is_slice(request.spec) else [train, slice_]


def chosen_widths(request: TrainingRequest) -> Widths:
    """Return the widths of a trial's slice, or full widths for a baseline."""
    parts = parts_of(request.study, pretrained=False)
    if not _is_slice(request.spec):
        return Widths(1.0, (1.0,) * len(parts.tasks))
    return _widths(
        request.spec.params,
        request.study,
        cost=SliceCost(parts, request.study.protocol.size),
        budgets=request.spec.budgets,
    )


class ECMTSupernet:
    """A trained slimmable network whose slices are measured; see `methods.base.Supernet`.

    Args:
        request: Request for any trial of the search.
        budgets: Budgets of the search.
    """

    def __init__(self, request: TrainingRequest, budgets: Sequence[Budget]) -> None:
        self._request, self._budgets = request, budgets
        study, context = request.study, request.context
        self._parts = parts_of(study, pretrained=False)
        state = request.start_state()
        assert state is not None
        self._state = state
        self._cost = SliceCost(self._parts, study.protocol.size)
        self._measured: dict[Widths, dict[str, float]] = {}
        options = options_of(study, ECMT)
        self._statistics = options.statistics
        self.patterns = options.patterns or default_patterns(
            epochs=options.slimmable_epochs(training_of(study, ECMT).epochs),
            train=len(context.train),
            validation=len(context.validation),
            statistics=options.statistics,
        )
        self.most_patterns = options.patterns or MOST_PATTERNS

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """Compute (multiply-adds, largest share of any budget) of a slice."""
        cost = self._cost.of(self.network(params))
        return float(cost.macs), share_of(cost, self._budgets)

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """Measure (task -> metric on the validation part, multiply-adds) of a slice.

        Its batch norm statistics are computed anew on `ecmt.statistics` training frames.
        """
        widths = self.network(params)
        if widths not in self._measured:
            self._measured[widths] = self._metrics(widths)
        return self._measured[widths], float(self._cost.of(widths).macs)

    def network(self, params: Mapping[str, float | str]) -> Widths:
        """Return the widths of a configuration's slice."""
        return _widths(params, self._request.study, cost=self._cost, budgets=self._budgets)

    def _metrics(self, widths: Widths) -> dict[str, float]:
        context = self._request.context
        network = context.runtime.place(plain_slice(self._state, self._parts, widths))
        size = context.study.training.batch_size
        recompute_statistics(
            network, context.train, runtime=context.runtime, batch_size=size,
            max_frames=self._statistics,
            augmented=context.augmented(training_of(context.study, ECMT)),
        )  # fmt: skip
        return evaluate(
            network, context.validation, context.tasks, runtime=context.runtime, batch_size=size
        )


def most_trials(study: Study) -> tuple[int, str]:
    """Return how many slices trials are chosen from, at most, and the option that states it."""
    return options_of(study, ECMT).patterns or MOST_PATTERNS, "ecmt.patterns"


def least_cost(study: Study) -> Cost:
    """Count the cost of the slice with all widths at the smallest."""
    parts, smallest = parts_of(study, pretrained=False), options_of(study, ECMT).smallest
    cost = SliceCost(parts, study.protocol.size)
    return cost.of(Widths(smallest, (smallest,) * len(parts.tasks)))


def draw_widths(slimmable: SlimmableNet, options: ECMTOptions) -> None:
    """Set the widths of the next step; see `ECMTOptions.ends`."""
    grid, heads = options.grid, len(slimmable.parts.tasks)
    u, encoder, *drawn = torch.rand(2 + heads, generator=slimmable.generator).tolist()
    levels = [int(value * grid.levels) for value in (encoder, *drawn)]
    if u < 2 * options.ends:
        levels = [0 if u < options.ends else grid.levels - 1] * len(levels)
    encoder, *drawn = map(grid.width, levels)
    slimmable.widths = Widths(encoder, tuple(drawn))


def _is_slice(spec: NetworkSpec) -> bool:
    """Tell whether a network is a trial that is cut out of the trained slimmable network."""
    return spec.trial is not None and not spec.tries_weights


def _widths(
    params: Mapping[str, float | str],
    study: Study,
    *,
    cost: SliceCost,
    budgets: Sequence[Budget],
) -> Widths:
    return widths_of(
        task_values(params, "prefer", study.task_names),
        float(params["encoder_width"]),
        grid=options_of(study, ECMT).grid,
        cost=cost,
        budgets=budgets,
    )


def _slimmable(module: nn.Module) -> SlimmableNet:
    assert isinstance(module, SlimmableNet)
    return module


def _hooks(slimmable: SlimmableNet, request: TrainingRequest, options: ECMTOptions) -> Hooks:
    """Make the hooks: draw widths before each step, and distil full features into narrow ones."""

    def distill(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        narrow, slimmable.features = slimmable.features, None
        assert narrow is not None
        if slimmable.widths.encoder == 1:
            return narrow.new_zeros(())
        with torch.no_grad(), request.context.runtime.autocast():
            full = slimmable.full_features(image)
        return options.distillation * feature_distance(narrow, full)

    return Hooks(
        penalty=distill if options.distillation else None,
        before_step=lambda share: draw_widths(slimmable, options),
    )


def _mean_gflops(parts: Parts, request: TrainingRequest, options: ECMTOptions) -> float:
    """Compute the mean GFLOPs of a step's forward passes, the full encoder's included.

    That pass has no backward pass, which costs twice a forward pass, so its cost counts a third.
    """
    grid, cost = options.grid, SliceCost(parts, request.study.protocol.size)
    heads = len(parts.tasks)
    ends = [cost.of(Widths(w, (w,) * heads)).macs for w in (options.smallest, 1.0)]
    narrow = options.ends + (1 - 2 * options.ends) * (1 - 1 / grid.levels)
    teacher = narrow * cost.encoder_macs(1.0) / 3 if options.distillation else 0.0
    drawn = (1 - 2 * options.ends) * cost.mean_macs(grid)
    return 2e-9 * (options.ends * sum(ends) + drawn + teacher)


ECMT = Method(
    name="ecmt",
    paper="Aich et al., ICCV",
    year=2023,
    summary="one slimmable network, cut to widths for a budget and preferences among the tasks",
    build=build,
    options=ECMTOptions,
    start_of=start_of,
    phases=phases,
    # From the smallest width (0) to the full one (1): of each task's head, and of the encoder.
    space={
        "prefer": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
        "encoder_width": Range(0.0, 1.0, legal=(0.0, 1.0)),
    },
    bounds=frozenset({"macs", "params"}),
    least_cost=least_cost,
    unmeasured_parts=frozenset({SUPERNET}),
    most_trials=most_trials,
    supernet=ECMTSupernet,
    default_trials=8,
    read=load_compact,
    outline=(
        "all epochs with a configuration of widths drawn for each step",
        "a slice is cut out, and trained by itself if ecmt.finetune says so",
    ),
    effort="under 1, once for all trials",
    ours="everything beyond the abstract: the widths and how they are drawn, the form of the "
    "distillation, and the search's order where the narrowest encoder exceeds a budget",
)
