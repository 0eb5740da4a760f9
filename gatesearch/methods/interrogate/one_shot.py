"""InterroGate's one-shot form: one supernet is trained for all budgets, under nested gate patterns.

Gate patterns are measured on the trained supernet without further training. A trial cuts the
network of one pattern from it and fine-tunes that network. InterroGate trains one supernet per
budget; this is ours.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gatesearch.cost import Budget, Cost, count_macs
from gatesearch.cost.budget import read_budget, reference_of
from gatesearch.errors import UsageError
from gatesearch.methods.base import Method, Phase, TrainedNetwork, TrainingRequest
from gatesearch.methods.definitions import options_of, single_task_start
from gatesearch.methods.interrogate.gate_selection import apply_open_shares
from gatesearch.methods.interrogate.method import (
    INTERROGATE,
    WARM_UP,
    build,
    compact_phase,
    gate_groups,
    latency_table,
    pattern_cost,
    untrained_supernet,
    warm_up_phase,
)
from gatesearch.methods.interrogate.nested import Nested
from gatesearch.methods.interrogate.options import (
    MOST_PATTERNS,
    ONE_SHOT_SPACE,
    OneShotOptions,
    default_patterns,
)
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import GatedSupernet, Parts, graph_of, parts_of
from gatesearch.pruning import extract, load_compact
from gatesearch.study import Study, TrainingSpec
from gatesearch.study.validation import merged, validated
from gatesearch.training import Hooks, evaluate, recompute_statistics

SUPERNET = "supernet"


def training_of_one_shot(study: Study) -> TrainingSpec:
    """Return InterroGate's training settings, with those that the one-shot form changes."""
    changed = study.options_of(ONE_SHOT.name).training
    epochs = options_of(study, ONE_SHOT).epochs
    if epochs is not None:
        changed = {**changed, "epochs": epochs}
    whole = merged(study.training_of(INTERROGATE.name).model_dump(), changed)
    where = f"study {study.name}, options.{ONE_SHOT.name}.training"
    spec: TrainingSpec = validated(TrainingSpec, whole, where=where)
    return spec


def most_trials(study: Study) -> tuple[int, str]:
    """Return how many patterns trials are chosen from, at most, and the option that states it."""
    return options_of(study, ONE_SHOT).patterns or MOST_PATTERNS, "one_shot.patterns"


def start_of(spec: NetworkSpec, study: Study) -> NetworkSpec | None:
    """Let a trial start from the supernet, and the supernet from the warm-up if there is one.

    Where the first of these starts from is decided by InterroGate's option `start`.
    """
    if not spec.part:
        return NetworkSpec(spec.method, spec.seed, part=SUPERNET)
    if spec.part == SUPERNET and _phase_ends(study)[0] > 0:
        return NetworkSpec(spec.method, spec.seed, part=WARM_UP)
    return single_task_start(spec, study, INTERROGATE)


def phases(request: TrainingRequest) -> Sequence[Phase]:
    """Plan the phases of the warm-up, of the supernet, or of a trial's network cut from it."""
    study = request.study
    gates, options = options_of(study, INTERROGATE), options_of(study, ONE_SHOT)
    warm, nested, epochs = _phase_ends(study)
    if request.spec.part == WARM_UP:
        return [warm_up_phase(request, epochs=warm)]
    if request.spec.part == SUPERNET:
        return [
            Phase(
                name="nested",
                span=(warm, nested),
                begin=lambda before: TrainedNetwork(
                    Nested(
                        untrained_supernet(request, warmed=warm > 0),
                        ends=options.ends,
                        seed=request.spec.seed,
                    )
                ),
                hooks=lambda module: _nested_hooks(_nested(module), request, options),
                groups=lambda module: gate_groups(_nested(module).supernet, rate=gates.lr),
                forward_gflops=lambda module: _mean_gflops(_nested(module), request, options),
            ),
            Phase(name="unwrapped", span=(nested, nested), begin=_unwrap),
        ]

    def chosen(before: TrainedNetwork | None) -> GatedSupernet:
        supernet = trained_supernet(request)
        apply_open_shares(supernet, request.spec.params)
        return supernet

    return [compact_phase(request, gates, span=(nested, epochs), begin=chosen, tried=True)]


def trained_supernet(request: TrainingRequest) -> GatedSupernet:
    """Load the trained supernet that a trial starts from."""
    study, state = request.study, request.start_state()
    parts = parts_of(study, seed=request.spec.seed, pretrained=False)
    supernet = build(parts, options_of(study, INTERROGATE))
    assert state is not None
    supernet.load_state_dict(state)
    return supernet


class OneShotSupernet:
    """A trained supernet whose gate patterns are measured; see `gatesearch.methods.base.Supernet`.

    Args:
        request: Request for any trial of the search.
        budgets: Budgets of the search.
    """

    def __init__(self, request: TrainingRequest, budgets: Sequence[Budget]) -> None:
        self._request, self._budgets = request, budgets
        self._supernet = trained_supernet(request).eval()
        self._cost = pattern_cost(self._supernet, request)
        study = request.study
        self._multiple = options_of(study, INTERROGATE).round_to
        options, context = options_of(study, ONE_SHOT), request.context
        self._statistics = options.statistics
        self.patterns = options.patterns or default_patterns(
            epochs=_phase_ends(study)[1],
            train=len(context.train),
            validation=len(context.validation),
            statistics=options.statistics,
        )
        self.most_patterns = options.patterns or MOST_PATTERNS

    def network(self, params: Mapping[str, float | str]) -> tuple[tuple[str, float | str], ...]:
        """Identify a pattern by its parameters, which determine it."""
        return tuple(sorted(params.items()))

    def cost(self, params: Mapping[str, float | str]) -> tuple[float, float]:
        """Compute (multiply-adds, largest share of any budget) of a pattern's network."""
        gates = self._gates(params)
        share = float(self._cost.share(gates, self._budgets)) if self._budgets else 0.0
        return float(self._cost.macs(gates)), share

    def measure(self, params: Mapping[str, float | str]) -> tuple[dict[str, float], float]:
        """Measure (task -> metric on the validation part, multiply-adds) of a pattern's network.

        Its weights are the supernet's; its batch norm statistics are computed anew on
        `one_shot.statistics` training frames.
        """
        context = self._request.context
        gates = self._gates(params)
        network = context.runtime.place(extract(self._supernet))
        size = context.study.training.batch_size
        recompute_statistics(
            network, context.train, runtime=context.runtime, batch_size=size,
            max_frames=self._statistics,
            augmented=context.augmented(training_of_one_shot(context.study)),
        )  # fmt: skip
        metrics = evaluate(
            network, context.validation, context.tasks, runtime=context.runtime, batch_size=size
        )
        return metrics, float(self._cost.macs(gates))

    def _gates(self, params: Mapping[str, float | str]) -> dict[str, Tensor]:
        return apply_open_shares(self._supernet, params, multiple=self._multiple)


class _AllGates(nn.Module):
    """A supernet with all gates open or all closed."""

    def __init__(self, supernet: GatedSupernet, is_open: bool) -> None:
        super().__init__()
        self.supernet, self.is_open = supernet, is_open

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.supernet.plain(image, own=self.is_open)


def _build(parts: Parts, options: OneShotOptions) -> nn.Module:
    """Build the supernet with default gate options, to count its cost and to check a study."""
    return GatedSupernet(parts)


def _check(study: Study, budgets: Sequence[str]) -> None:
    """Refuse gates that the backbone cannot have, and budgets below the multi-task network.

    Raises:
        UsageError: `interrogate.granularity` is `head`, and the backbone has no attention; or a
            budget is less than 1xMTL.
    """
    one = Cost(macs=1, backbone_macs=1, params=1)
    for text in budgets:
        if reference_of(text) == "mtl" and read_budget(text, mtl=one, stl=one).limit < 1:
            raise UsageError(
                "budgets of 'one_shot' must be at least 1xMTL, as one supernet for all budgets has "
                f"one width, found {text}; raise the budget, or tune interrogate, which narrows "
                "the encoder below that"
            )
    graph_of(study).gated(options_of(study, INTERROGATE).granularity)


def _phase_ends(study: Study) -> tuple[int, int, int]:
    """Return the last epochs of warm-up, supernet and fine-tuning."""
    epochs = training_of_one_shot(study).epochs
    return (*options_of(study, ONE_SHOT).phases(epochs), epochs)


def _nested(module: nn.Module) -> Nested:
    assert isinstance(module, Nested)
    return module


def _unwrap(before: TrainedNetwork | None) -> TrainedNetwork:
    assert before is not None
    return TrainedNetwork(_nested(before.module).supernet)


def _nested_hooks(nested: Nested, request: TrainingRequest, options: OneShotOptions) -> Hooks:
    """Make the hooks of the supernet phase: draw a pattern before each step, and distil into it.

    The penalty is the distance between the predictions of the pattern and those with all gates
    open; it is 0 in steps with all gates open.
    """
    context, supernet = request.context, nested.supernet

    def distill(image: Tensor, outputs: Mapping[str, Tensor]) -> Tensor:
        if nested.richest or not options.distillation:
            return torch.zeros((), device=image.device)
        with torch.no_grad(), context.runtime.autocast():
            teacher = supernet.plain(image, own=True)
        distances = [
            context.weights[name] * task.distillation_loss(outputs[name], teacher[name].float())
            for name, task in context.tasks.items()
        ]
        return options.distillation * torch.stack(distances).sum()

    return Hooks(penalty=distill, before_step=lambda share: nested.draw())


def _mean_gflops(nested: Nested, request: TrainingRequest, options: OneShotOptions) -> float:
    """Compute the mean GFLOPs of a step's forward passes, the teacher's included.

    The teacher has no backward pass, which costs twice a forward pass, so its cost counts a third.
    """
    supernet = nested.supernet
    closed, opened, mixed = (
        count_macs(module, request.context.input_shape, cross_check=False).gflops
        for module in (_AllGates(supernet, False), _AllGates(supernet, True), supernet)
    )
    teacher = (1 - options.ends) * opened / 3 if options.distillation else 0.0
    return options.ends * (closed + opened) + (1 - 2 * options.ends) * mixed + teacher


ONE_SHOT = Method(
    name="one_shot",
    paper="Yu & Huang, ICCV 2019, on InterroGate",
    year=2024,
    summary="one gated supernet for all budgets, out of which networks are cut and fine-tuned",
    build=_build,
    options=OneShotOptions,
    start_of=start_of,
    training=training_of_one_shot,
    phases=phases,
    space=ONE_SHOT_SPACE,
    bounds=frozenset({"macs", "params", "latency"}),
    bounds_tasks=True,
    unmeasured_parts=frozenset({SUPERNET}),
    most_trials=most_trials,
    outline=(
        "warm-up as a multi-task network, once per seed (option)",
        "one supernet for all budgets, under nested gate patterns",
        "compact network of a trial, fine-tuned",
    ),
    effort="T + 1 encoders once, then each compact network's",
    ours="all of it: InterroGate trains one supernet per budget",
    supernet=OneShotSupernet,
    default_trials=8,
    baseline=False,
    unpriced=INTERROGATE.unpriced,
    read=load_compact,
    latency_table=latency_table,
    check=_check,
    built_on=INTERROGATE.name,
)
