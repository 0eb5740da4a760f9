"""NDDR-CNN: its layer by hand, its rates, and the convolution that it is folded into."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gatesearch.errors import UsageError
from gatesearch.files import FileRefusedError
from gatesearch.methods import NetworkSpec, TrainingRequest, build_model, check_study
from gatesearch.methods.nddr import Fusion, NDDRNet, as_compact
from gatesearch.pruning import load_compact
from gatesearch.pruning.compact import save_compact
from gatesearch.study import load_study
from gatesearch.training.optimizer import build_optimizer
from gatesearch.trials.context import open_context
from gatesearch.trials.phase_training import phases_of
from tests.methods.toys import assert_same_outputs, parts, random_image, scattered
from tests.search.tiny import tiny


@torch.no_grad()
def test_a_layer_by_hand() -> None:
    layer = Fusion(0, tasks=2, channels=1, diagonal=0.9).eval()
    layer.conv.bias.fill_(0.5)
    norm = layer.bn
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0 - norm.eps)
    norm.weight.fill_(3.0)
    norm.bias.fill_(0.25)
    # 0.9 x 2 + 0.1 x 5 + 0.5 = 2.8; (2.8 - 1) / 2 x 3 + 0.25 = 2.95
    x = torch.tensor([2.0, 5.0]).view(1, 2, 1, 1)
    assert layer(x).item() == pytest.approx(2.95)
    # 0.9 x -4 + 0.1 x 5 + 0.5 = -2.6, which the ReLU cuts off
    assert layer(torch.tensor([-4.0, 5.0]).view(1, 2, 1, 1)).item() == 0
    weight, bias = layer.folded()
    assert weight.flatten().tolist() == pytest.approx([0.9 * 1.5, 0.1 * 1.5])
    assert bias.item() == pytest.approx(1.5 * (0.5 - 1) + 0.25)
    assert norm.momentum == 0.05


@pytest.mark.parametrize(
    ("tasks", "shares"), [(1, [[1.0]]), (2, [[0.9, 0.1], [0.1, 0.9]]), (3, [[0.9, 0.05, 0.05]])]
)
def test_layers_begin_with_the_diagonal(tasks: int, shares: list[list[float]]) -> None:
    for task, row in enumerate(shares):
        layer = Fusion(task, tasks=tasks, channels=4, diagonal=0.9)
        expected = torch.cat([share * torch.eye(4) for share in row], 1)
        torch.testing.assert_close(layer.conv.weight.detach()[:, :, 0, 0], expected)
        assert not layer.conv.bias.any()


@torch.no_grad()
def test_unit_diagonals_leave_separate_networks() -> None:
    study = load_study("scenes", ["model.width=0.05", "model.head_channels=4"])
    stl = scattered(build_model(study, "stl"))
    model = build_model(study.model_copy(), "nddr")
    model.encoders.load_state_dict(stl.encoders.state_dict())
    model.heads.load_state_dict(stl.heads.state_dict())
    for fusions in model.fusions:
        for task, layer in enumerate(fusions):
            own = Fusion(task, tasks=4, channels=layer.bn.num_features, diagonal=1.0)
            layer.load_state_dict(own.state_dict())
            layer.bn.running_var.fill_(1 - layer.bn.eps)
    assert len(model.fusions) == 5  # stem and four stages
    assert_same_outputs(model, stl, random_image())


def study_and_network(backbone: str = "resnet18", tasks: int = 4, seed: int = 0):
    study = load_study(
        "scenes", [f"model.backbone={backbone}", "model.width=0.04", "model.head_channels=4"]
    )
    kept = dict(list(study.tasks.items())[:tasks])
    study = study.model_copy(update={"tasks": kept})
    model = scattered(build_model(study, "nddr"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.fusions.named_parameters():
            parameter.normal_(std=0.5) if "conv" in name else parameter.uniform_(-1, 1.5)
    return study, model.eval()


@settings(max_examples=8, deadline=None)
@given(
    backbone=st.sampled_from(["resnet18", "resnet50", "deeplab_resnet34", "efficientnet_lite0"]),
    tasks=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
@torch.no_grad()
def test_the_folded_network_computes_the_same(backbone: str, tasks: int, seed: int) -> None:
    study, model = study_and_network(backbone, tasks, seed)
    compact = as_compact(model, study)
    image = random_image(40)
    expected, found = model(image), compact(image)
    for task, prediction in expected.items():
        off = (found[task] - prediction).abs().max() / prediction.abs().max()
        assert off < 1e-5
    norms = [name for name, _ in compact.named_modules() if name.endswith(".bn")]
    assert len(norms) < len([m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)])


def test_the_folded_network_is_kept_and_checked(tmp_path) -> None:
    study, model = study_and_network(tasks=2)
    compact = as_compact(model, study)
    save_compact(compact, tmp_path / "net")
    again, image = load_compact(tmp_path / "net"), random_image()
    with torch.no_grad():
        expected, found = compact(image), again(image)
    assert all(torch.equal(found[task], prediction) for task, prediction in expected.items())
    file = tmp_path / "net.json"
    file.write_text(file.read_text().replace('"op": "pointwise",', '"op": "pointwise", "x": 1,'))
    with pytest.raises(FileRefusedError):
        load_compact(tmp_path / "net")
    step = next(step for step in compact.description.steps if step.op == "pointwise")
    wrong = step.model_copy(update={"inputs": step.inputs + 1})
    with pytest.raises(ValueError, match=f"must have {step.inputs} inputs"):
        wrong.check([10**6] * 100)


@pytest.mark.parametrize(
    ("params", "diagonal", "rate"),
    [({}, 0.8, 50.0), ({"nddr_diagonal": 0.7, "nddr_rate": 5.0}, 0.7, 5.0)],
)
def test_diagonal_and_rate_are_options_that_a_trial_overrides(
    tmp_path, data, params, diagonal: float, rate: float
) -> None:
    study = check_study(tiny(tmp_path, "options.nddr.diagonal=0.8", "options.nddr.rate=50"))
    context = open_context(study, data=data, stored=None, emit=lambda event: None)
    spec = NetworkSpec("nddr", 0, 0 if params else None, params)
    (phase,) = phases_of(TrainingRequest(spec, context, None, lambda event: None))
    module = phase.begin(None).module
    assert isinstance(module, NDDRNet)
    weight = module.fusions[0][0].conv.weight
    assert weight[0, 0].item() == pytest.approx(diagonal)
    optimizer = build_optimizer(module, study.training, phase.groups(module))
    rates = {
        id(parameter): group["lr"] for group in optimizer.param_groups for parameter in
        group["params"]
    }  # fmt: skip
    assert len(rates) == len(list(module.parameters()))
    for name, parameter in module.named_parameters():
        factor = rate if name.startswith("fusions.") else 1
        assert rates[id(parameter)] == pytest.approx(factor * study.training.lr), name


def test_a_loss_reaches_all_encoders_and_layers() -> None:
    model = NDDRNet(parts())
    model(random_image())["a"].square().mean().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Only the head of the other task and its own last layer are not used.
    assert all(
        name.startswith(("heads.b.", "fusions.4.1.")) for name in still if "bias" not in name
    )
    assert {name.split(".")[0] for name in still} >= {"heads", "fusions"}


@pytest.mark.parametrize(
    ("rate", "optimizer", "warns"), [(50, "adamw", True), (50, "sgd", False), (1, "adamw", False)]
)
def test_a_high_rate_without_sgd_is_told(tmp_path, data, rate, optimizer, warns) -> None:
    overrides = (f"options.nddr.rate={rate}", f"training.optimizer={optimizer}")
    study = check_study(tiny(tmp_path, *overrides))
    context = open_context(study, data=data, stored=None, emit=lambda event: None)
    told: list[str] = []
    request = TrainingRequest(
        NetworkSpec("nddr", 0), context, None, lambda event: told.append(event.message)
    )
    (phase,) = phases_of(request)
    phase.begin(None)
    assert ["50 times the rate" in message for message in told] == [True] * warns


@pytest.mark.parametrize("bad", ["diagonal=1.5", "diagonal=-0.1", "rate=0", "rate='fast'"])
def test_options_out_of_range_are_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=bad.partition("=")[0]):
        check_study(load_study("scenes", [f"options.nddr.{bad}"]))
