"""Every method on imported networks: it works as on any other, or is refused before training."""

import pytest
import torch
from torch import nn

from gatesearch.errors import UsageError
from gatesearch.methods import METHODS, Context, build_model, check_study
from gatesearch.models.imported.sources import REGISTERED, import_backbone
from gatesearch.study import Study
from gatesearch.trials.context import open_context
from gatesearch.trials.costs import costs
from gatesearch.trials.trial import train_network
from tests.methods.backbones import OneMap, SmallConvolutions, SmallTransformer
from tests.methods.test_every_method import PHASES, chain_of, check_kept, check_resumes
from tests.methods.toys import count_steps, random_image
from tests.search.tiny import tiny

BACKBONES = {"small-convolutions": SmallConvolutions, "small-transformer": SmallTransformer}
# Method -> words of the reason for which it is refused on the transformer.
REFUSED = {
    "ecmt": "'ecmt' keeps the first channels of every layer.*found blocks.0.route, which joins",
    "lomt": r"must then give a map \(B, C, H, W\); found rearrange, which gives tokens",
}
pairs = pytest.mark.parametrize(
    ("name", "backbone"),
    [(n, b) for b in BACKBONES for n in METHODS if n not in REFUSED or "conv" in b],
)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, build in BACKBONES.items():
        monkeypatch.setitem(REGISTERED, name, build)


# Method -> words of the reason for which it is refused where stages end in tokens.
NEED_MAPS = {
    name: rf"{name} needs maps \(B, C, H, W\) at the end of every stage; found .* of stage 1, which"
    for name in ("mtan", "sluice")
}


def study_of(backbone: str, folder, *overrides: str) -> Study:
    model = (f"model.backbone={backbone}", "model.width=1", "model.output_stride=8")
    return check_study(tiny(folder, *model, *PHASES, *overrides))


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(name: str, tmp_path) -> None:
    with pytest.raises(UsageError, match=f"(?s){REFUSED[name]}.* or leave {name} out"):
        build_model(study_of("small-transformer", tmp_path), name)


@pytest.mark.parametrize("name", NEED_MAPS)
def test_stages_without_maps_are_refused_when_built(
    name: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTERED, "one-map", OneMap)
    study = study_of("one-map", tmp_path)
    for method in METHODS.keys() - NEED_MAPS.keys() - REFUSED.keys():
        build_model(study, method, pretrained=False)
    with pytest.raises(UsageError, match=f"{NEED_MAPS[name]}.* or leave {name} out"):
        build_model(study, name)


@pairs
def test_it_is_built_priced_and_learns(name: str, backbone: str, tmp_path) -> None:
    study = study_of(backbone, tmp_path)
    with torch.device("meta"):
        shape = build_model(study, name, pretrained=False)
    model = build_model(study, name)
    assert {n: x.shape for n, x in model.state_dict().items() if hasattr(x, "shape")} == {
        n: x.shape for n, x in shape.state_dict().items() if hasattr(x, "shape")
    }
    for training in (False, True):
        outputs = model.train(training)(random_image(16))
        assert {task: tuple(y.shape) for task, y in outputs.items()} == {
            "semseg": (2, 8, 16, 16),
            "depth": (2, 1, 16, 16),
        }
        assert all(y.isfinite().all() for y in outputs.values())
    sum(y.square().mean() for y in outputs.values()).backward()
    learned = [p.grad for p in model.parameters() if p.grad is not None]
    assert learned
    assert all(gradient.isfinite().all() for gradient in learned)
    if not METHODS[name].unpriced:
        (cost,) = costs(study, (name,)).values()
        assert 0 < cost.backbone_macs < cost.macs
        assert not cost.uncounted
        assert not cost.disagreements


@pairs
@pytest.mark.slow("trains")
def test_it_trains_and_is_read_again(name: str, backbone: str, tmp_path, data) -> None:
    study = study_of(backbone, tmp_path, "dymu.patterns=4", "options.lomt.lambda_group=0.01")
    context: Context = open_context(study, data=data, stored=None, emit=lambda event: None)
    result = None
    for spec in chain_of(name, study):
        result = train_network(
            spec, context, out=tmp_path / "out", start=result, emit=lambda event: None
        )
        assert result.state == "complete", result
    check_kept(result, context, tmp_path / "out")


@pytest.mark.slow("trains")
def test_a_transformer_that_drops_images_resumes_to_the_bit(
    tmp_path, data, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REGISTERED, "vit", vit)
    study = study_of("vit", tmp_path, "interrogate.granularity=head")
    assert any(node.drops_images for node in import_backbone("vit", (16, 16)).graph)
    context: Context = open_context(study, data=data, stored=None, emit=lambda event: None)
    check_resumes("interrogate", study, context, tmp_path, count_steps(monkeypatch))


def vit() -> nn.Module:
    """timm's ViT-tiny with two narrow blocks, for images of 16x16."""
    timm = pytest.importorskip("timm")
    module = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=12, depth=2, drop_path_rate=0.5
    )
    module.forward = lambda image: module.forward_features(image)[:, 1:].mT.unflatten(2, (2, 2))
    return module


@pytest.mark.parametrize("backbone", BACKBONES)
def test_shortcuts_are_found_in_any_order_of_a_sum(backbone: str) -> None:
    graph = import_backbone(backbone, (16, 16)).graph
    assert len(graph.shortcuts) == (4 if "conv" in backbone else 8)
    for block, shortcut in graph.shortcuts.items():
        layers = [node.name for node in graph.branch(block) if node.has_weights]
        assert layers, "the branch has what is computed"
        assert shortcut not in layers
        assert not graph.alone(shortcut, graph.branch(block)[-1].name)
