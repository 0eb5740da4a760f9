"""Reading, validating and fingerprinting study definitions."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatesearch.errors import UsageError, nearest
from gatesearch.methods import METHODS, check_study
from gatesearch.methods.definitions import options_of
from gatesearch.study import Study, builtin_studies, differences, load_study

MINIMAL = """
name = "mine"
protocol = { name = "mine-8", size = [8, 8] }
data = { dataset = "scenes", validation = 4 }
model = { backbone = "resnet18" }
training = { epochs = 2, batch_size = 4, lr = 1e-3 }

[tasks.depth]
kind = "depth"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL)
    return path


def refused(path: Path, text: str) -> str:
    """Why a definition is refused: by its own tables, or by the methods that it names."""
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        check_study(load_study(path))
    return str(caught.value)


def test_builtin_studies_are_valid_and_named_after_their_files() -> None:
    assert {"scenes", "nyud", "nyud-small", "pascal"} <= builtin_studies().keys()
    for name, path in builtin_studies().items():
        assert check_study(load_study(name)).name == name
        assert path.read_text().startswith("# gatesearch "), "the first line is the command"


def test_paper_scale_studies_follow_the_published_networks() -> None:
    nyud, pascal = load_study("nyud"), load_study("pascal")
    assert (nyud.model.backbone, nyud.protocol.size) == ("resnet50", (480, 640))
    assert (pascal.model.backbone, pascal.protocol.size) == ("resnet18", (512, 512))
    assert {study.model.head_channels for study in (nyud, pascal)} == {256}
    assert {study.model.output_stride for study in (nyud, pascal)} == {8}


def test_a_file_needs_little(mine: Path) -> None:
    study = load_study(mine)
    assert study.task_names == ("depth",)
    assert (study.seed, study.search.sampler, study.tune, study.options) == (0, "tpe", (), {})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epochs = 2, ", "missing key 'training.epochs'"),
        ('[tasks.depth]\nkind = "depth"', "tasks"),
        ('name = "mine"\n', "missing key 'name'"),
    ],
)
def test_a_missing_key_is_named(mine: Path, change: str, said: str) -> None:
    assert said in refused(mine, MINIMAL.replace(change, "", 1))


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[traning]", "unknown key 'traning'; did you mean 'training'?"),
        ("[search]\nlambda = [1, 2]", "unknown key of search 'lambda'; did you mean 'lambda_s'?"),
        ("[search]\nlambda = 1", "unknown key 'search.lambda'"),
        ("[interrogate]\nestimater = 'ste'", "did you mean 'estimator'?"),
        ("[interrogate]\nestimator = 'soft'", "options.interrogate:\n  estimator: "),
        ("[options.interrogate]\nestimator = 'soft'", "options.interrogate:\n  estimator: "),
        ("[interogate]\nestimator = 'ste'", "unknown method 'interogate'; did you mean"),
        ("[options.mtan]\nstart = 'here'", "options.mtan.start"),
        ("[tasks.seg]\nkind = 'semseg'\nclass = 3", "did you mean 'classes'?"),
        ("[tasks.seg]\nkind = 'semseg'\nclasses = 0", "tasks.seg.classes"),
        ("[search]\nlambda_s = [2.0, 1.0]", "ascending positive range"),
        ("[search]\nlambda_s = [0.0, 1.0]", "ascending positive range"),
        ("[search]\nlambda_s = [1.0, inf]", "range of finite numbers, found (1.0, inf)"),
        ("[search]\nscalar = [1.0, inf]", "range of finite numbers, found (1.0, inf)"),
        ("[search]\ntau = [0.0, 1.5]", "within [0, 1]"),
        ("[[search.first]]\nlambda_ = 1.0\ntau = {}", "did you mean 'lambda_s'?"),
        ("[[search.first]]\nlambda_s = 1.0\ntau = { dept = 1.0 }", "tau must name every task"),
        ("[[search.first]]\nlambda_s = 99.0\ntau = {}", "first: lambda_s must be in [0.01, 10.0]"),
        (
            "[[search.first]]\nlambda_s = 1.0\ntau = { depth = 2 }",
            "tau.depth must be in [0.0, 1.0], found 2",
        ),
        ("[options.mtan]\ntraining = { epoch = 3 }", "did you mean 'epochs'?"),
        ("[options.mtan]\ntraining = { epochs = 0 }", "options.mtan.training"),
    ],
)
def test_a_bad_key_or_value_is_named_with_its_cure(mine: Path, added: str, said: str) -> None:
    assert said in refused(mine, MINIMAL + added)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x\n"])
def test_a_name_that_is_no_folder_name_is_refused(mine: Path, name: str) -> None:
    assert "name" in refused(mine, MINIMAL.replace('"mine"', repr(name).replace("'", '"'), 1))


def test_every_mistake_is_told_at_once(mine: Path) -> None:
    message = refused(mine, MINIMAL.replace("epochs = 2", "epoch = 2") + "[searchh]")
    assert all(word in message for word in ("'training.epoch'", "'training.epochs'", "'searchh'"))


@pytest.mark.parametrize("content", [b"name = ", b"\xff\xfe", b"name = 1\nname = 2"])
def test_a_file_that_is_not_toml_is_named(mine: Path, content: bytes) -> None:
    mine.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.toml is not valid TOML"):
        load_study(mine)


DEEP = 5000
TOO_DEEP = [
    "x = " + "[" * DEEP + "]" * DEEP,
    "x = " + "{a=" * DEEP + "1" + "}" * DEEP,
    "x = " + "[" * 21 + "]" * 21,
    "x = " + "{a=" * 25 + "1" + "}" * 25,
    ".".join("a" * DEEP) + " = 1",
    "[" + ".".join("a" * DEEP) + "]",
    "[[" + ".".join("a" * DEEP) + "]]",
    "x = " + "[{a=" * DEEP + "1" + "}]" * DEEP,
]


@pytest.mark.parametrize("text", TOO_DEEP)
def test_a_file_nested_deep_is_refused_in_one_line(mine: Path, text: str) -> None:
    said = refused(mine, f"{MINIMAL}\n[interrogate]\n{text}")
    assert said == (f"{mine}: tables and lists may be nested 20 deep, found more; write it flatter")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a=" + "[" * DEEP + "]" * DEEP, "--set takes one value, nested 20 deep at most, found"),
        ("a=" + "[" * DEEP, "--set takes one value, nested 20 deep at most, found"),
        ("a=" + "{b=" * DEEP, "--set takes one value, nested 20 deep at most, found"),
        ("a=" + "[" * 25 + "]" * 25, "--set takes one value, nested 20 deep at most, found"),
        (".".join("a" * DEEP) + "=1", "--set takes a key of 20 parts at most, found"),
        ("seed=1" + "0" * 5000, "--set takes whole numbers below 1e100 in size, found 'seed=1000"),
        ("seed=0x1" + "0" * 5000, "--set takes whole numbers below 1e100 in size, found 'seed=0x1"),
        ("a=[{b=0x1" + "0" * 84 + "}]", "--set takes whole numbers below 1e100 in size, found"),
        ("a={" + "b." * 50_000 + "b=1}", "--set takes one value, nested 20 deep at most, found"),
        ("seed=1\nname=2", "--set takes one value, nested 20 deep at most, found 'seed=1 name"),
        ("a" * DEEP, "--set takes key=value, found 'aaa"),
        ("preset=" + "a" * DEEP, "unknown preset 'aaa"),
    ],
)
def test_an_override_nested_deep_is_refused_in_one_line(mine: Path, override: str, said) -> None:
    with pytest.raises(UsageError) as caught:
        load_study(mine, [override])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_key_of_60_000_parts_is_refused_before_it_is_parsed(mine: Path) -> None:
    """It took 6 GB of memory and more than a minute."""
    tracemalloc.start()
    try:
        said = refused(mine, MINIMAL + "\n[interrogate]\n" + "a." * 60_000 + "a = 1")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert said == (f"{mine}: tables and lists may be nested 20 deep, found more; write it flatter")


@pytest.mark.parametrize("name", ["a/b", "a.b", "", "a\nb", "..", "a" * 101, "a:b"])
def test_names_of_tasks_that_files_cannot_have_are_refused(mine: Path, name: str) -> None:
    said = refused(mine, f"{MINIMAL}\n[tasks.{json.dumps(name)}]\nkind = 'depth'")
    assert "a task's name must be of 1 to 100 letters, digits, blanks, '-' and '_', found" in said


@pytest.mark.parametrize("name", ["a b", "tiefe-ü", "a_1", "a" * 100])
def test_names_of_tasks_that_files_can_have_are_kept(mine: Path, name: str) -> None:
    mine.write_text(f"{MINIMAL}\n[tasks.{json.dumps(name)}]\nkind = 'depth'")
    assert name in load_study(mine).tasks


def test_presets_must_be_tables(mine: Path) -> None:
    mine.write_text("presets = 3\n" + MINIMAL)
    with pytest.raises(UsageError, match="unknown preset 'x'"):
        load_study(mine, ["preset=x"])
    mine.write_text(MINIMAL + "[presets]\nx = 3")
    with pytest.raises(UsageError, match="preset 'x' must be a table, found 3"):
        load_study(mine, ["preset=x"])


@pytest.mark.parametrize(
    ("number", "said"),
    [("1" + "0" * 5000, "Exceeds the limit"), ("0x1" + "0" * 5000, "whole numbers must be below")],
)
def test_a_number_of_thousands_of_digits_is_refused(mine: Path, number: str, said: str) -> None:
    mine.write_text(f"seed = {number}\n" + MINIMAL)
    with pytest.raises(UsageError, match=f"is not valid TOML: {said}") as caught:
        load_study(mine)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device", "a link to a pipe"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine.toml"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path if kind == "a named pipe" else tmp_path / "pipe")
        if kind == "a link to a pipe":
            path.symlink_to("pipe")
    found = kind.replace("a link to a pipe", "a named pipe")
    with pytest.raises(UsageError) as caught:
        load_study(path)
    assert str(caught.value) == f"{path} must be a regular file, found {found}; move it away"


def test_a_link_to_a_file_is_followed(mine: Path) -> None:
    (mine.parent / "link.toml").symlink_to(mine)
    assert load_study(mine.parent / "link.toml") == load_study(mine)


def test_a_file_of_gigabytes_is_refused_before_it_is_read(mine: Path) -> None:
    os.truncate(mine, 2**34)
    with pytest.raises(UsageError, match=r"mine\.toml must have at most 0\.125 MiB, found more"):
        load_study(mine)


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'nyud'"):
        load_study("nyuds")
    with pytest.raises(UsageError, match="no study file"):
        load_study("elsewhere/none.toml")


def test_overrides_are_toml_values_or_bare_words() -> None:
    study = load_study(
        "scenes",
        [
            "training.epochs=3",
            "training.optimizer=sgd",
            "training.augment.flip=false",
            "model.weights='a=b.safetensors'",
            "search.lambda_s=[0.5, 2]",
            "options.mtan.reduction=2",
            "interrogate.initial=0.6",
        ],
    )
    assert (study.training.epochs, study.training.optimizer) == (3, "sgd")
    assert study.training.augment.flip is False
    assert study.model.weights == "a=b.safetensors"
    assert study.search.space["lambda_s"] == (0.5, 2.0)
    assert study.options_of("mtan").own == {"reduction": 2}
    assert options_of(study, METHODS["interrogate"]).initial == 0.6


def test_later_overrides_win_over_presets_before_them() -> None:
    assert load_study("scenes", ["preset=quick"]).training.epochs == 1
    both = load_study("scenes", ["preset=quick", "training.epochs=5"])
    assert (both.training.epochs, both.data.train_frames) == (5, 64)
    # a preset lays over only what it names
    assert both.data.dataset == "scenes"


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("epochs", "--set takes key=value, found 'epochs'"),
        ("=3", "--set takes key=value"),
        ("preset=quik", "did you mean 'quick'?"),
        ("training.epoch=3", "did you mean 'epochs'?"),
        ("training.epochs=many", "training.epochs"),
        ("training=3", "training"),
        ("options.mtan.training.epoch=3", "did you mean 'epochs'?"),
    ],
)
def test_a_bad_override_is_named(item: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_study("scenes", [item])
    assert said in str(caught.value)


def test_a_method_trains_as_the_study_but_for_its_own_keys() -> None:
    nyud = load_study("nyud")
    own, shared = nyud.training_of("cross_stitch"), nyud.training_of("mtl")
    assert shared == nyud.training
    assert (own.epochs, own.optimizer, own.lr) == (50, "sgd", 1e-3)
    assert own.batch_size == nyud.training.batch_size
    assert nyud.options_of("cross_stitch").own == {"diagonal": 0.9}


def test_fingerprint_ignores_what_only_adds_results() -> None:
    scenes = load_study("scenes")
    first = "search.first=[{lambda_s=1, tau={semseg=1, depth=0, normals=0, edges=0}}]"
    for item in ["seed=7", "summary=other", "methods=['stl']", "report_frames=0", first]:
        assert load_study("scenes", [item]).fingerprint == scenes.fingerprint, item
    assert scenes.model_copy(update={"seed": 3}).fingerprint == scenes.fingerprint


@pytest.mark.parametrize(
    "item",
    [
        "name=other",
        "protocol.size=[32, 32]",
        "tasks.depth.weight=2.0",
        "data.validation_seed=1",
        "model.width=0.5",
        "interrogate.initial=0.6",
        "training.augment.flip=false",
        "search.startup=5",
        "options.mtan.training.epochs=3",
    ],
)
def test_fingerprint_changes_with_whatever_changes_results(item: str) -> None:
    scenes, other = load_study("scenes"), load_study("scenes", [item])
    assert other.fingerprint != scenes.fingerprint
    told = differences(other.definition(), scenes.definition())
    assert [line.split(":")[0].removeprefix("options.") for line in told] == [
        item.split("=")[0].removeprefix("options.")
    ]


def test_fingerprint_does_not_depend_on_how_a_value_is_written() -> None:
    left = load_study("scenes", ["training.lr=2e-3", "model.width=0.25"])
    assert left.fingerprint == load_study("scenes", ["training.lr=0.002"]).fingerprint
    assert len(left.fingerprint) == 12


def test_definition_survives_json_and_gives_the_study_back() -> None:
    for name in builtin_studies():
        study = load_study(name)
        kept = study.definition()
        del kept["results_version"]
        assert Study.model_validate(kept).fingerprint == study.fingerprint


def test_differences_name_what_is_absent_on_either_side() -> None:
    assert differences({"a": 1, "b": {"c": 2}}, {"b": {"c": 3}, "d": {"e": 4}}) == [
        "a: absent -> 1",
        "b.c: 3 -> 2",
        "d.e: 4 -> absent",
    ]


trees = st.recursive(
    st.integers(0, 3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
)
mappings = st.dictionaries(st.sampled_from("abc"), trees, max_size=3)


@given(mappings)
def test_equal_definitions_do_not_differ(tree: dict) -> None:
    assert differences(tree, tree) == []


@given(mappings, mappings)
def test_differences_are_the_same_keys_from_either_side(left: dict, right: dict) -> None:
    def keys(lines: list[str]) -> list[str]:
        return [line.split(":")[0] for line in lines]

    assert keys(differences(left, right)) == keys(differences(right, left))
    assert bool(differences(left, right)) == (left != right)


def test_nearest_word() -> None:
    assert nearest("epoch", ["epochs", "lr"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "lr"]) == ""


def test_a_one_shot_supernet_needs_epochs() -> None:
    shares = ["one_shot.warmup=0.8", "one_shot.finetune=0.25"]
    with pytest.raises(
        UsageError, match=r"  warmup \+ finetune must leave a share .*, found 0\.8 \+ 0\.25"
    ):
        check_study(load_study("scenes", shares))


def test_the_methods_that_are_searched_are_not_in_the_fingerprint() -> None:
    usual, one_shot = (
        load_study("scenes", [f'tune=["{name}"]']) for name in ("interrogate", "one_shot")
    )
    assert usual.fingerprint == one_shot.fingerprint == load_study("scenes").fingerprint
    assert load_study("scenes", ["one_shot.ends=0.1"]).fingerprint != one_shot.fingerprint


@pytest.mark.parametrize("key", ["interrogate.initial", "options.interrogate.initial"])
def test_options_of_a_method_are_a_table_of_its_name(key: str) -> None:
    study = load_study("scenes", [f"{key}=0.6"])
    assert study.options_of("interrogate").own["initial"] == 0.6
    assert study.options_of("stl").own == {}


TWO = """
name = "two"
mixing = "share"
protocol = { name = "mine-8", size = [8, 8] }
model = { backbone = "resnet18" }
training = { epochs = 2, batch_size = 4, lr = 1e-3 }

[[data]]
dataset = "scenes"
validation = 2
tasks = ["semseg"]
share = 1

[[data]]
dataset = "nyud"
validation = 3
tasks = ["depth"]
share = 3

[tasks.semseg]
kind = "semseg"
classes = 8

[tasks.depth]
kind = "depth"
"""


def test_several_data_sets(tmp_path):
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    study = load_study(path)
    assert (study.data.dataset, [data.dataset for data in study.more_data]) == ("scenes", ["nyud"])
    first, second = study.sources
    assert (first.data.validation, list(first.tasks)) == (2, ["semseg"])
    assert (second.data.dataset, list(second.tasks)) == ("nyud", ["depth"])
    again = Study.from_definition(study.definition())
    assert [s.data for s in again.sources] == [s.data for s in study.sources]
    assert again.fingerprint == study.fingerprint
    for change in (
        ("share = 3", "share = 2"),
        ('"share"', '"task"'),
        ("validation = 3", "validation = 4"),
    ):
        other = tmp_path / "other.toml"
        other.write_text(TWO.replace(*change))
        assert load_study(other).fingerprint != study.fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('["depth"]', '["dept"]'), "data.tasks must name tasks of the study, .*, found 'dept'"),
        (('["depth"]', '["semseg"]'), "no data set has labels of task 'depth'"),
        (("share = 3", ""), "share must be given for every data set or none"),
        (('mixing = "share"', ""), "share must be given .* with mixing = 'share' or 'task'"),
        (("share = 3", "share = 0"), "share: Input should be greater than 0"),
        (("share = 3", "shares = 3"), "unknown key 'shares'; did you mean 'share'"),
    ],
)
def test_several_data_sets_that_do_not_go_together(tmp_path, change, message):
    assert change[0] in TWO
    path = tmp_path / "two.toml"
    path.write_text(TWO.replace(*change))
    with pytest.raises(UsageError, match=message):
        load_study(path)


def as_dict() -> dict[str, object]:
    """What a study needs at least, in Python."""
    return {
        "name": "mine",
        "protocol": {"size": (64, 48)},
        "tasks": {"depth": {"kind": "depth"}},
        "data": {"dataset": "scenes", "validation": 4},
        "training": {"epochs": 2},
    }


def test_a_study_is_a_dict_too(tmp_path: Path) -> None:
    study = Study(as_dict())
    assert study == Study(**as_dict()) == Study({**as_dict(), "name": "other"}, name="mine")
    assert (study.protocol.name, study.protocol.size) == ("mine", (64, 48))
    assert (study.model.backbone, study.training.lr, study.training.batch_size) == (
        "resnet18", 1e-3, 8,
    )  # fmt: skip
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nprotocol.size = [64, 48]\ntasks.depth.kind = "depth"\n'
        'data = { dataset = "scenes", validation = 4 }\ntraining.epochs = 2\n'
    )
    assert load_study(path).model_dump() == study.model_dump()
    assert load_study(path).fingerprint == study.fingerprint
    assert Study(load_study("nyud").model_dump()).fingerprint == load_study("nyud").fingerprint


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"traning": {}}, "unknown key 'traning'; did you mean 'training'?"),
        ({"training": {"epoch": 2}}, "unknown key 'training.epoch'; did you mean 'epochs'?"),
        ({"training": {"epochs": 0}}, "training.epochs: "),
        ({"protocol": {"size": (0, 48)}}, "protocol.size.0: "),
        ({"name": "a b"}, "name: String should match"),
        ({"mtan": {"training": {"lr": -1}}}, "options.mtan.training"),
        ({"search": {"scalar": [2.0, 1.0]}}, "scalar must be an ascending positive range"),
    ],
)
def test_a_dict_is_refused_for_what_a_file_is(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        Study(as_dict(), **change)
    assert said in str(caught.value)
    assert str(caught.value).startswith("study ")


def test_all_missing_keys_are_named() -> None:
    with pytest.raises(UsageError) as caught:
        Study()
    lines = str(caught.value).split("\n  ")
    assert lines == ["study:", *(f"missing key '{key}'" for key in (
        "name", "protocol", "tasks", "data", "training"))]  # fmt: skip


@pytest.mark.parametrize("given", ["mine.toml", 3, ["name"], {3: 4}])
def test_a_study_is_made_of_a_dict(given: object) -> None:
    with pytest.raises(UsageError, match="a study is defined by a dict"):
        Study(given)
