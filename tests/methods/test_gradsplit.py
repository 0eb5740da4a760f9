"""GradSplit: the gradient of every group of filters against jacobians of the tasks' losses."""

import pytest
import torch
from torch import Tensor, nn

from gatesearch.errors import UsageError
from gatesearch.methods import NetworkSpec, TrainingRequest, build_model, check_study
from gatesearch.methods.gradsplit import GradSplit, GradSplitOptions, build, kept_filters
from gatesearch.methods.mtl import MultiTaskNet
from gatesearch.search.setup import ExecutionOptions, check_run
from gatesearch.training.weightings import Basis, TrainingView
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from gatesearch.trials.trial import train_network
from tests.methods.toys import parts, random_image, scattered
from tests.search.tiny import ignore, tiny

OMEGA = {"a": 1.0, "b": 2.0}


def losses_of(model: nn.Module) -> list[Tensor]:
    outputs = model(random_image())
    return [(outputs["a"] - 1).square().mean(), (outputs["b"] + 1).abs().mean()]


def combined(
    model: MultiTaskNet, *, present: tuple[bool, bool] | None = None, **options
) -> GradSplit:
    """One step of the weighting on a network; its gradients are left in the parameters."""
    weighting = GradSplit(Basis(OMEGA), **options)
    view = TrainingView(model, torch.optim.SGD(model.parameters(), lr=0.1))
    losses = losses_of(model)
    with weighting.attached(view):
        shares = None
        if present is not None:
            weighting.present = torch.tensor(present)
            shares = weighting.present.double()
            losses = [
                loss if there else torch.zeros(())
                for loss, there in zip(losses, present, strict=True)
            ]
        weighting.backward(losses, shares=shares)
        weighting.combine(torch.stack(losses).detach().double())
    return weighting


def test_two_groups_by_hand() -> None:
    # Filters 0 and 1 are a's, 2 and 3 are b's. On a's, g_a g_b = 1*-2 + 1*1 = -1: b is left out.
    # On b's, 3*1 + 0*5 = 3: a is kept.
    weight = {
        0: torch.tensor([[1.0], [1.0], [3.0], [0.0]]),
        1: torch.tensor([[-2.0], [1], [1], [5]]),
    }
    kept = kept_filters([weight], [2, 2])
    assert kept[0].tolist() == [True, True, True, True]
    assert kept[1].tolist() == [False, False, True, True]
    # The norm's entries count in the same product: -1 + 2 * 1 = 1.
    norm = {0: torch.tensor([2.0, 0, 0, 0]), 1: torch.tensor([1.0, 0, 0, 0])}
    assert kept_filters([weight, norm], [2, 2])[1].tolist() == [True, True, True, True]


def test_gradients_equal_a_jacobian_masked_by_hand() -> None:
    """Every group of every layer, from gradients that autograd gives for each loss by itself."""
    model = scattered(MultiTaskNet(parts()))
    left_out = 0
    jacobian = []
    for loss, omega in zip(losses_of(model), OMEGA.values(), strict=True):
        grads = torch.autograd.grad(
            omega * loss, list(model.parameters()), retain_graph=True, allow_unused=True
        )
        names = [name for name, _ in model.named_parameters()]
        jacobian.append(dict(zip(names, grads, strict=True)))
    combined(model)
    found = {name: p.grad for name, p in model.named_parameters()}
    layers = [name.removesuffix(".conv.weight") for name in found if name.endswith("conv.weight")]
    for layer in [name for name in layers if name.startswith("encoder.")]:
        keys = [f"{layer}.{end}" for end in ("conv.weight", "bn.weight", "bn.bias")]
        half = found[keys[0]].shape[0] // 2
        for own, group in enumerate((slice(None, half), slice(half, None))):
            flat = [torch.cat([row[key][group].flatten() for key in keys]) for row in jacobian]
            conflict = bool(flat[0] @ flat[1] < 0)
            left_out += conflict
            for key in keys:
                both = jacobian[0][key][group] + jacobian[1][key][group]
                expected = jacobian[own][key][group] if conflict else both
                torch.testing.assert_close(found[key][group], expected, rtol=1e-4, atol=1e-6)
    assert 5 < left_out < 35, "groups with and without a conflict"
    for name in [name for name in found if name.startswith("heads.")]:
        own = jacobian[0 if name.startswith("heads.a.") else 1][name]
        torch.testing.assert_close(found[name], own)


def test_factors_are_the_shares_of_filters_that_were_trained() -> None:
    weighting = combined(scattered(MultiTaskNet(parts())))
    shares = weighting.weights / weighting.omega
    assert ((shares > 0.4) & (shares < 1)).all()


def test_an_absent_task_takes_no_part() -> None:
    """Then the other task alone trains all filters."""
    model = scattered(MultiTaskNet(parts()))
    names = [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    wanted = [p for name, p in model.named_parameters() if name in names]
    alone = torch.autograd.grad(losses_of(model)[0], wanted)
    combined(model, present=(True, False))
    found = dict(model.named_parameters())
    for name, gradient in zip(names, alone, strict=True):
        torch.testing.assert_close(found[name].grad, gradient)
    assert all(p.grad is None for name, p in found.items() if name.startswith("heads.b."))


def test_filters_of_an_absent_task_learn_from_all_others() -> None:
    weight = {0: torch.tensor([[1.0], [1.0], [1.0]]), 2: torch.tensor([[-1.0], [-1.0], [-1.0]])}
    kept = kept_filters([weight], [1, 1, 1])
    assert kept[0].tolist() == [True, True, False]
    assert kept[2].tolist() == [False, True, True]


def test_stages_before_the_first_one_split_learn_from_all_losses() -> None:
    model = scattered(MultiTaskNet(parts()))
    stem = model.encoder.layers["conv1"].conv.weight
    plain = sum(
        torch.autograd.grad(omega * loss, stem, retain_graph=True)[0]
        for loss, omega in zip(losses_of(model), OMEGA.values(), strict=True)
    )
    whole = combined(model, first_stage=1)
    torch.testing.assert_close(stem.grad, plain)
    model.zero_grad()
    last = combined(model, first_stage=4)
    assert (last.weights >= whole.weights).all()
    with pytest.raises(UsageError, match=r"first_stage must be .* 0 \(its stem\) to 4, found 5"):
        build(parts(), GradSplitOptions(first_stage=5))


def test_its_phase_weighs_by_it_and_counts_its_backward_passes(tmp_path, data) -> None:
    study = check_study(tiny(tmp_path, "options.gradsplit.first_stage=2"))
    context = open_context(study, data=data, stored=None, emit=ignore)
    request = TrainingRequest(NetworkSpec("gradsplit", 0), context, None, ignore)
    (phase,) = phases_of(request)
    weighting = phase.weighting.build(Basis(OMEGA))
    assert (type(weighting), weighting.first_stage) == (GradSplit, 2)
    assert phase.weighting.passes(2, 0.5) == 1.0
    network, twin = phase.begin(None).module, build_model(study, "mtl")
    assert all(torch.equal(t, twin.state_dict()[n]) for n, t in network.state_dict().items())


@pytest.mark.slow("trains")
def test_training_costs_what_its_passes_do(tmp_path, data) -> None:
    study = check_study(tiny(tmp_path))
    context = open_context(study, data=data, stored=None, emit=ignore)
    ours, plain = (
        train_network(NetworkSpec(name, 0), context, out=tmp_path, start=None, emit=ignore)
        for name in ("gradsplit", "mtl")
    )
    assert (ours.gflops, ours.params_m) == (plain.gflops, plain.params_m)
    extra = 2 * ours.backbone_gflops / ours.gflops
    assert ours.train_pflops == pytest.approx(plain.train_pflops * (3 + extra) / 3)
    assert 0 < ours.curves["weight.depth"][0] < 1


def test_it_is_not_searched(tmp_path) -> None:
    study = tiny(tmp_path).model_copy(update={"tune": ("gradsplit",)})
    with pytest.raises(UsageError, match=r"'gradsplit' has none; .* --methods gradsplit"):
        check_run(study, [], ExecutionOptions())
