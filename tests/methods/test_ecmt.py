"""ECMT: slices equal the slimmable network at their widths, cost what is said, keep to budgets."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.cost import Budget, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import METHODS, NetworkSpec, TrainingRequest, check_study
from gatesearch.methods.ecmt.method import (
    ECMT,
    SUPERNET,
    ECMTOptions,
    _hooks,
    _mean_gflops,
    draw_widths,
)
from gatesearch.methods.ecmt.slimmable import (
    SlimmableNet,
    Widths,
    compact_slice,
    feature_distance,
    first_channels,
    plain_slice,
)
from gatesearch.methods.ecmt.widths import Grid, SliceCost, share_of, widths_of
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.models import Parts
from gatesearch.models.backbones import BACKBONES
from gatesearch.models.model_factory import HeadSpec, OwnHead
from gatesearch.search.run import run
from gatesearch.search.setup import parse_budgets
from gatesearch.search.slicing import cut_slice
from gatesearch.training import Checkpoints, Preempted
from gatesearch.training.weightings import TrainingView, build_weighting
from gatesearch.trials.context import open_context
from gatesearch.trials.kept_networks import load_network
from gatesearch.trials.phase_training import TrainingControls
from gatesearch.trials.trial import train_network
from tests.methods.test_every_method import check_kept
from tests.methods.toys import assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import ignore, tiny

GRID = Grid(0.25, 4)
widths = st.floats(0.05, 1.0)


def mixed_parts(backbone: str = "resnet18") -> Parts:
    """One head of each kind that can be slimmed."""
    graph = BACKBONES[backbone](output_stride=16, width=0.1)
    kinds = {"a": ("light", 3), "b": ("deeplabv3", 2), "c": ("pooled", 4)}
    return Parts(
        graph, {task: HeadSpec(kind, graph.outputs, 6, n) for task, (kind, n) in kinds.items()}
    )


def slimmable(of: Parts) -> SlimmableNet:
    network = scattered(MultiTaskNet(of))
    return SlimmableNet(network, of, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_slice_equals_the_whole_at_its_widths(backbone: str) -> None:
    whole = slimmable(mixed_parts(backbone)).eval()
    state, image = whole.network.state_dict(), random_image(32)

    @settings(max_examples=4, deadline=None, derandomize=True)
    @given(widths, st.tuples(widths, widths, widths))
    def equal(encoder: float, heads: tuple[float, ...]) -> None:
        whole.widths = Widths(encoder, heads)
        for cut in (plain_slice, compact_slice):
            assert_same_outputs(cut(state, whole.parts, whole.widths), whole, image)

    equal()


def test_at_full_width_it_is_the_multi_task_network() -> None:
    whole = slimmable(mixed_parts())
    assert whole.widths.full
    assert_same_outputs(whole, whole.network, random_image(32))


def test_only_passes_at_full_width_change_running_statistics() -> None:
    whole = slimmable(mixed_parts()).train()
    before = {name: tensor.clone() for name, tensor in whole.network.named_buffers()}
    whole.widths = Widths(0.5, (0.5, 1.0, 0.25))
    drawn = torch.random.get_rng_state()
    whole.encode(random_image(32))
    assert torch.equal(torch.random.get_rng_state(), drawn), "narrow shapes draw no weights"
    outputs = whole(random_image(32))
    assert all(torch.equal(before[n], t) for n, t in whole.network.named_buffers())
    sum(y.sum() for y in outputs.values()).backward()
    grad = whole.network.encoder.layer("conv1").conv.weight.grad
    assert grad[:3].abs().sum() > 0  # round(0.5 x 6 channels)
    assert not grad[3:].any()
    whole.widths = Widths(1.0, (1.0, 1.0, 1.0))
    whole(random_image(32))
    assert not all(torch.equal(before[n], t) for n, t in whole.network.named_buffers())


@pytest.mark.parametrize("name", ["uniform", "mgda_ub", "pcgrad"])
def test_the_encoder_learns_under_every_kind_of_weighting(name: str) -> None:
    whole = slimmable(parts()).train()
    whole.widths = Widths(0.5, (0.5, 1.0))
    image = random_image(32)

    def losses() -> list[torch.Tensor]:
        return [y.square().mean() for y in whole(image).values()]

    weighting = build_weighting(name, dict.fromkeys(whole.parts.tasks, 1.0))
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    with weighting.attached(TrainingView(whole, optimizer)):
        weighting.before_step(losses=lambda exact=False: torch.stack(losses()), held_out=None)
        found = losses()
        weighting.backward(found)
        weighting.combine(torch.stack(found).detach())
    for part in (whole.network.encoder, *whole.network.heads.values()):
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


def test_first_channels_by_hand() -> None:
    weight = torch.arange(24.0).reshape(2, 12)
    taken = first_channels({"w": weight}, {"w": torch.Size((1, 5))}, {})
    assert taken["w"].tolist() == [[0, 1, 2, 3, 4]]
    # Three tensors of four channels side by side, of each the first two.
    taken = first_channels({"w": weight}, {"w": torch.Size((1, 6))}, {"w": 3})
    assert taken["w"].tolist() == [[0, 1, 4, 5, 8, 9]]


def test_the_distillation_by_hand() -> None:
    full = torch.tensor([1.0, 2.0, 50.0]).reshape(1, 3, 1, 1).requires_grad_()
    narrow = torch.tensor([1.0, 5.0]).reshape(1, 2, 1, 1).requires_grad_()
    distance = feature_distance(narrow, full)
    assert distance.item() == pytest.approx((0 + 9) / (1 + 4))
    distance.backward()
    assert full.grad is None
    assert narrow.grad.flatten().tolist() == pytest.approx([0, 2 * 3 / 5])
    assert feature_distance(full, full).item() == 0


def test_the_penalty_is_zero_at_full_width_alone() -> None:
    whole = slimmable(mixed_parts()).train()
    runtime = SimpleNamespace(autocast=torch.no_grad)
    request = SimpleNamespace(context=SimpleNamespace(runtime=runtime))
    hooks = _hooks(whole, request, ECMTOptions(distillation=2.0))
    image, found = random_image(32), {}
    for width in (0.5, 1.0):
        whole.widths = Widths(width, (0.5, 1.0, 1.0))
        found[width] = hooks.penalty(image, whole(image)).item()
    assert found[1.0] == 0
    whole.widths = Widths(0.5, (1.0, 1.0, 1.0))
    expected = feature_distance(whole.encode(image), whole.full_features(image)).item()
    assert found[0.5] == pytest.approx(2 * expected)
    assert _hooks(whole, request, ECMTOptions(distillation=0.0)).penalty is None


def test_widths_are_drawn_by_the_sandwich_rule() -> None:
    whole, options = slimmable(mixed_parts()), ECMTOptions(ends=0.25, levels=4)
    counts = {"smallest": 0, "full": 0, "other": 0}
    seen = set()
    for _ in range(800):
        draw_widths(whole, options)
        drawn = {whole.widths.encoder, *whole.widths.heads}
        seen |= drawn
        counts["smallest" if drawn == {0.25} else "full" if whole.widths.full else "other"] += 1
    assert seen == {0.25, 0.5, 0.75, 1.0}
    assert counts["smallest"] == pytest.approx(200, abs=40)
    assert counts["full"] == pytest.approx(200, abs=40)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cost_is_what_is_counted_on_the_slice(backbone: str) -> None:
    of = mixed_parts(backbone)
    chosen = Widths(0.55, (0.3, 0.7, 1.0))
    cost = SliceCost(of, (64, 96)).of(chosen)
    counted = count_macs(
        plain_slice(MultiTaskNet(of).state_dict(), of, chosen), (1, 3, 64, 96), cross_check=False
    )
    assert (cost.macs, cost.params) == (counted.macs, counted.params)
    assert cost.backbone_macs == counted.backbone_macs


def test_the_mean_cost_of_a_step_by_enumeration() -> None:
    of, options = parts(), ECMTOptions(levels=2, smallest=0.5, ends=0.1, distillation=1.0)
    cost = SliceCost(of, (32, 32))
    request = SimpleNamespace(study=SimpleNamespace(protocol=SimpleNamespace(size=(32, 32))))
    total = 0.1 * (cost.of(Widths(0.5, (0.5, 0.5))).macs + cost.of(Widths(1.0, (1.0, 1.0))).macs)
    for e, a, b in [(e, a, b) for e in (0.5, 1.0) for a in (0.5, 1.0) for b in (0.5, 1.0)]:
        total += 0.8 / 8 * cost.of(Widths(e, (a, b))).macs
    total += (0.1 + 0.4) * cost.encoder_macs(1.0) / 3  # the smallest, and half of those drawn
    assert _mean_gflops(of, request, options) == pytest.approx(2e-9 * total)


COST = SliceCost(parts(), (32, 32))
ENDS = [COST.of(Widths(w, (w, w))) for w in (0.25, 1.0)]
positions = st.floats(0, 1)


def raised(of: Widths):
    """All widths that are one level more in one place."""
    values = [of.encoder, *of.heads]
    for i, value in enumerate(values):
        if value < 1:
            more = [*values]
            more[i] = GRID.width(GRID.level((value - 0.25) / 0.75) + 1)
            yield i, Widths(more[0], tuple(more[1:]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(positions, positions, positions, st.floats(0, 1.1), st.sampled_from(["macs", "params"]))
def test_budgets_hold_as_near_below_as_the_grid_allows(a, b, encoder, share, measure) -> None:
    least, most = (getattr(cost, measure) for cost in ENDS)
    budgets = [Budget("B", measure, least + share * (most - least))]
    found = widths_of([a, b], encoder, grid=GRID, cost=COST, budgets=budgets)
    assert share_of(COST.of(found), budgets) <= 1
    assert (a - b) * (found.heads[0] - found.heads[1]) >= 0, "a preferred head is never narrower"
    wanted = tuple(GRID.width(GRID.level(value)) for value in (a, b))
    if 0.25 < found.encoder < 1:
        assert found.heads == wanted, "preferences alone decide"
    for i, more in raised(found):
        overtakes = i > 0 and (a - b) * (more.heads[0] - more.heads[1]) < 0
        if i == 0 or found.encoder == 1:
            assert overtakes or share_of(COST.of(more), budgets) > 1


def test_all_widths_are_reached_without_a_budget() -> None:
    thirds = [0, 1 / 3, 2 / 3, 1]
    found = {
        widths_of([a, b], e, grid=GRID, cost=COST, budgets=())
        for a in thirds
        for b in thirds
        for e in thirds
    }
    assert len(found) == 4**3


def test_out_of_reach_even_at_the_smallest_widths() -> None:
    budgets = [Budget("B", "macs", ENDS[0].macs - 1)]
    found = widths_of([1, 0], 1, grid=GRID, cost=COST, budgets=budgets)
    assert found == Widths(0.25, (0.25, 0.25))
    assert share_of(COST.of(found), budgets) > 1


def test_heads_of_unknown_channels_are_refused() -> None:
    graph = BACKBONES["resnet18"](width=0.05)
    own = Parts(graph, {"a": OwnHead(torch.nn.Identity(), graph.outputs)})
    with pytest.raises(UsageError, match=r"knows those of light, .* found head 'own' for task a"):
        ECMT.build(own, ECMTOptions())


def test_budgets_go_below_the_multi_task_network(tmp_path) -> None:
    study = check_study(tiny(tmp_path, 'tune=["ecmt"]', "ecmt.smallest=0.5"))
    assert parse_budgets(study, ["0.8xMTL"])[0].text == "0.8xMTL"
    with pytest.raises(UsageError, match=r"out of reach: this study's networks go from .* \(ecmt"):
        parse_budgets(study, ["0.01xMTL"])
    both = check_study(tiny(tmp_path, 'tune=["ecmt", "branch"]'))
    with pytest.raises(UsageError, match=r"out of reach: this study's networks go from .* \(mtl\)"):
        parse_budgets(both, ["0.8xMTL"])


QUICK = ('tune=["ecmt"]', "ecmt.patterns=10", "ecmt.statistics=4", "ecmt.levels=4")


@pytest.mark.slow("whole run")
def test_one_training_serves_all_slices(tmp_path, data) -> None:
    heavy_heads = ("model.head_channels=48", "model.output_stride=16", "ecmt.levels=8")
    study = tiny(tmp_path, *QUICK, *heavy_heads)
    out = tmp_path / "out"
    record = run(
        study, n_trials=2, out=out, data=data, emit=ignore, budgets=["0.6xMTL"],
        prefer={"depth": 3.0},
    )  # fmt: skip
    (start,) = record.starts
    assert (start.part, start.metrics) == (SUPERNET, {})
    mtl = next(result for result in record.baselines if result.method == "mtl")
    assert start.train_pflops < mtl.train_pflops
    networks = set()
    for trial in record.trials:
        assert trial.state == "complete"
        assert trial.gflops <= 0.6 * mtl.gflops
        assert trial.train_pflops == trial.reused_pflops == start.train_pflops
        networks.add((trial.gflops, trial.params_m))
    assert len(networks) == 2, "no network is chosen twice"
    context = open_context(study, data=data, stored=None, emit=ignore)
    network = load_network(record.trials[0], context, out=out)
    assert not any("stream" in name for name, _ in network.named_parameters())
    asked = {
        "store": out, "data": data, "folder": tmp_path / "slice", "emit": ignore,
        "prefer": {"semseg": 4.0},
    }  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    result, cut = cut_slice(record, "ecmt", budgets=["0.4xMTL"], **asked)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert (result.name, result.params["prefer.semseg"]) == ("ecmt", 1.0)
    assert result.params["prefer.depth"] == 0.25
    assert 0.2 * mtl.gflops < result.gflops <= 0.4 * mtl.gflops
    assert set(cut(random_image(16))) == {"semseg", "depth"}
    with pytest.raises(UsageError, match="out of reach"):
        cut_slice(record, "ecmt", budgets=["0.001xMTL"], **asked)
    with pytest.raises(UsageError, match=r"--slice takes a method .* \(ecmt, dymu\), found 'mtl'"):
        cut_slice(record, "mtl", budgets=[], **asked)
    with pytest.raises(UsageError, match=r"this store has none; train it with: .* --tune ecmt"):
        cut_slice(replace(record, starts=()), "ecmt", budgets=[], **asked)


@pytest.mark.slow("trains")
def test_a_slice_is_finetuned_and_resumes_to_the_bit(tmp_path, data) -> None:
    study = check_study(tiny(tmp_path, *QUICK, "ecmt.finetune=0.5"))
    context = open_context(study, data=data, stored=None, emit=ignore)
    start = train_network(
        NetworkSpec("ecmt", 0, part=SUPERNET), context, out=tmp_path, start=None, emit=ignore
    )
    params = {"prefer.semseg": 1.0, "prefer.depth": 0.0, "encoder_width": 0.5}
    spec = NetworkSpec("ecmt", 0, 0, params)
    assert ECMT.start_of(spec, study) == NetworkSpec("ecmt", 0, part=SUPERNET)
    assert [p.name for p in METHODS["ecmt"].phases(TrainingRequest(spec, context, None, ignore))]
    own = {"out": tmp_path, "start": start, "emit": ignore}
    whole = train_network(spec, context, **own)
    assert (whole.epochs, whole.train_images) == (2, 2 * start.train_images)
    checkpoints = Checkpoints(tmp_path / "c", identity="x", seconds=1e9, stop=lambda: True)
    with pytest.raises(Preempted):
        train_network(spec, context, controls=TrainingControls(checkpoints), **own)
    torch.manual_seed(5)
    again = TrainingControls(Checkpoints(tmp_path / "c", identity="x"))
    resumed = train_network(spec, context, controls=again, **own)
    assert resumed.metrics == whole.metrics
    assert resumed.files == whole.files
    check_kept(whole, context, tmp_path)
