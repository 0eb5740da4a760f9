"""What a study says of methods: options, starts, trainings, what is searched."""

import pytest
import torch

from gatesearch.errors import UsageError
from gatesearch.methods import (
    METHODS,
    NetworkSpec,
    binding_methods,
    build_model,
    check_study,
    start_of,
    training_of,
    tuned_methods,
)
from gatesearch.methods.definitions import options_of, starts_from_single_task
from gatesearch.models import parts_of
from gatesearch.study import load_study
from tests.methods.toys import scattered
from tests.search.tiny import tiny

FROM_STL = ("model.init=stl",)


def test_who_starts_from_single_task_networks() -> None:
    def those_that_do(*overrides: str, name: str = "scenes") -> set[str]:
        study = load_study(name, overrides)
        return {name for name, m in METHODS.items() if starts_from_single_task(study, m)}

    by_default = {"dymu"}
    assert those_that_do() == by_default
    assert those_that_do(name="nyud") == by_default | {"cross_stitch", "nddr"}
    assert those_that_do(*FROM_STL) == METHODS.keys() - {"stl"}
    assert those_that_do("options.mtl.start=stl") == by_default | {"mtl"}
    with pytest.raises(UsageError, match=r"options\.mtl\.start: .*'study' or 'stl', found 'here'"):
        load_study("scenes", ["options.mtl.start=here"])


@pytest.mark.parametrize("method", [m for m in METHODS if m not in ("stl", "one_shot", "dymu")])
def test_what_starts_from_single_task_networks_says_so(tmp_path, method) -> None:
    spec = NetworkSpec(method, seed=3)
    assert start_of(spec, tiny(tmp_path, *FROM_STL)) == NetworkSpec("stl", 3)
    assert start_of(spec, tiny(tmp_path, f"options.{method}.start=study")) is None


def test_starts_are_copies_of_single_task_networks_and_their_mean(tmp_path) -> None:
    study = tiny(tmp_path)
    trained = scattered(build_model(study, "stl")).state_dict()
    parts = parts_of(study, stl=trained)
    shared = parts.encoder().state_dict()
    for name, tensor in shared.items():
        theirs = [trained[f"encoders.{task}.{name}"] for task in study.tasks]
        own = [parts.encoder(task).state_dict()[name] for task in study.tasks]
        assert all(torch.equal(a, b) for a, b in zip(own, theirs, strict=True))
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, sum(theirs) / len(theirs))
    model = build_model(study, "mtl", stl=trained)
    for name, tensor in model.heads.state_dict().items():
        assert torch.equal(tensor, trained[f"heads.{name}"])
    # A copy: training what starts from it leaves the trained ones alone.
    before = trained["heads.depth.layers.0.bn.bias"].clone()
    for parameter in model.parameters():
        parameter.data.add_(1)
    assert torch.equal(trained["heads.depth.layers.0.bn.bias"], before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.backbone=resnet81", "unknown model.backbone 'resnet81'; did you mean 'resnet18'"),
        ("model.head=lihgt", "unknown model.head 'lihgt'; did you mean 'light'"),
        ("options.mtl.diagnal=1", "options.mtl:\n  unknown key 'diagnal'"),
    ],
)
def test_what_cannot_be_built_is_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_model(load_study("scenes", [override]), "mtl")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown method 'mlt'; did you mean 'mtl'"):
        build_model(load_study("scenes"), "mlt")
    for key in ("methods", "tune"):
        with pytest.raises(UsageError, match="unknown method 'one_sot'; did you mean 'one_shot'"):
            check_study(load_study("scenes", [f"{key}=['one_sot']"]))


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if not method.baseline])
def test_a_searched_method_among_the_baselines_is_refused_with_the_cure(name: str) -> None:
    with pytest.raises(UsageError, match=f"'{name}' is not; search it with --tune {name}") as told:
        check_study(load_study("scenes", [f"methods=['stl', '{name}', 'mtl']"]))
    assert "\n" not in str(told.value)
    study = check_study(load_study("scenes", ["methods=['stl', 'mtl']", f"tune=['{name}']"]))
    assert list(tuned_methods(study)) == [name]


def test_the_first_method_with_a_space_is_searched_by_default() -> None:
    scenes = load_study("scenes")
    assert list(tuned_methods(scenes)) == ["interrogate"]
    two = scenes.model_copy(update={"tune": ("one_shot", "interrogate")})
    assert list(tuned_methods(two)) == ["one_shot", "interrogate"]
    with pytest.raises(UsageError, match=r"'mtan' has none; .* with --methods mtan"):
        tuned_methods(scenes.model_copy(update={"tune": ("mtan",)}))


@pytest.mark.parametrize(
    "override",
    [
        "interrogate.initial=0.5",
        "options.mtan.reduction=4",
        "options.cross_stitch.start=stl",
        "search.lambda_s=[0.01, 10]",
        "search.regulariser=['hinge']",
    ],
)
def test_what_is_default_is_left_out(override: str) -> None:
    plain = check_study(load_study("nyud"))
    assert check_study(load_study("nyud", [override])).fingerprint == plain.fingerprint


def test_what_is_not_default_is_kept() -> None:
    study = check_study(load_study("scenes", ["options.mtan.reduction=2", "search.tau=[0, 0.5]"]))
    assert study.options_of("mtan").own == {"reduction": 2}
    assert study.search.space["tau"] == (0.0, 0.5)
    assert check_study(study) == study


def test_a_stored_definition_gives_the_checked_study_back() -> None:
    for name in ("scenes", "nyud", "nyud-small", "pascal"):
        study = check_study(load_study(name, ["interrogate.align=true", "one_shot.ends=0.1"]))
        again = check_study(type(study).from_definition(study.definition()))
        assert again.fingerprint == study.fingerprint
        assert options_of(again, METHODS["interrogate"]).align


def test_a_method_trains_by_its_own_keys(tmp_path) -> None:
    study = tiny(tmp_path, "options.mtl.training.lr=0.5")
    assert training_of(study, "mtl").lr == 0.5
    assert training_of(study, "stl") == study.training


def test_options_bind_a_store_that_holds_results_of_the_method_or_one_built_on_it() -> None:
    given = ["interrogate", "mtan", "one_shot"]
    assert binding_methods(given, []) == []
    assert binding_methods(given, ["mtan", "stl"]) == ["mtan"]
    assert binding_methods(given, ["interrogate"]) == ["interrogate"]
    assert binding_methods(given, ["one_shot"]) == ["interrogate", "one_shot"]
    assert binding_methods(given, ["of another version"]) == []
