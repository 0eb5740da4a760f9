"""Policies as data: the published ones, files, and the refusal of those of other networks."""

import json

import pytest
import torch

from gatesearch.errors import UsageError
from gatesearch.methods import build_model, check_study, method_of
from gatesearch.methods.adashare.policies import PUBLISHED, policy_of, shown
from gatesearch.methods.definitions import options_of
from gatesearch.pruning import CompactNet
from gatesearch.study import Study
from gatesearch.trials.costs import costs
from tests.search.tiny import residual

ROWS = {"semseg": [1, 1, 0, 1, 1, 1, 1, 1], "depth": [1, 1, 1, 1, 1, 0, 1, 1]}


def written(tmp_path, content: object, *overrides: str) -> Study:
    (tmp_path / "policy.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return residual(tmp_path, "adashare.policy=policy.json", *overrides)


def test_the_published_policies_select_the_blocks_of_a_resnet_34() -> None:
    assert {name: len(rows) for name, rows in PUBLISHED.items()} == {"nyu3": 3, "cityscapes2": 2}
    assert all(len(row) == 16 for rows in PUBLISHED.values() for row in rows)
    skipped = {name: [row.count("0") for row in rows] for name, rows in PUBLISHED.items()}
    assert skipped == {"nyu3": [1, 3, 3], "cityscapes2": [4, 2]}


def test_a_file_relative_to_the_study_is_read_into_its_options(tmp_path) -> None:
    study = check_study(written(tmp_path, ROWS))
    assert study.options_of("adashare").own == {"policy": ROWS}
    (tmp_path / "policy.json").unlink()
    again = Study.from_definition(study.definition())
    options = options_of(again, method_of("adashare"))
    policy = policy_of(options.policy, again.task_names)
    assert shown(policy, again.task_names) == "semseg 11011111, depth 11111011"
    network = build_model(again, "adashare")
    assert isinstance(network, CompactNet)
    assert "layer2_0_conv1" in network.convs, "one of the tasks selects it"
    (cost,) = costs(again, ("adashare",)).values()
    assert cost.params == sum(p.numel() for p in network.parameters())


def test_a_file_in_the_working_folder_is_found_too(tmp_path, monkeypatch) -> None:
    for name in ("study", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "policy.json").write_text(json.dumps(ROWS))
    monkeypatch.chdir(tmp_path / "work")
    study = check_study(residual(tmp_path / "study", "adashare.policy=policy.json"))
    assert study.options_of("adashare").own == {"policy": ROWS}
    other = {**ROWS, "depth": [0] * 8}
    study = check_study(written(tmp_path / "study", other))
    assert study.options_of("adashare").own == {"policy": other}, "beside the study comes first"


def test_a_policy_in_the_study_itself(tmp_path) -> None:
    overrides = [f"adashare.policy.{task}={row}" for task, row in ROWS.items()]
    study = check_study(residual(tmp_path, *overrides))
    assert study.options_of("adashare").own == {"policy": ROWS}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"semseg": ROWS["semseg"]}, "a row for each task of the study, semseg, depth, found sem"),
        (ROWS | {"edges": ROWS["depth"]}, "found semseg, depth, edges; a policy belongs to one"),
        (ROWS | {"depth": [1] * 16}, "residual block of the backbone, 8, found 16 for depth"),
        (
            ROWS | {"depth": [1] * 7 + [2]},
            "found a fault: depth.7: Input should be less than or eq",
        ),
        (ROWS | {"depth": ["1"] * 8}, "found a fault: depth.0: Input should be a valid integer"),
        (ROWS | {"depth": [True] * 8}, "found a fault: depth.0: Input should be a valid integer"),
        ([[1, 0]], "found a fault: Input should be an object; mend the file"),
        ("{", "found a fault: Invalid JSON: EOF while parsing"),
        ("[" * 10**5, "found a fault: Invalid JSON: recursion limit exceeded"),
        (ROWS | {f"task{i}": [1] for i in range(10**4)}, r"task\d*, t?a?s?k?\d*\.\.\.; a policy"),
        (ROWS | {"a\nb": [1]}, "found semseg, depth, a b; a policy belongs to one"),
        (
            '{"depth": [1], "semseg": [1], "depth": [0]}',
            "one row for each task, found several for d",
        ),
    ],
)
def test_a_policy_of_another_network_is_refused(tmp_path, content, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as error:
        check_study(written(tmp_path, content))
    assert "policy.json" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_a_published_policy_in_another_study_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="the policy 'nyu3' is of 3 tasks, found 2"):
        check_study(residual(tmp_path, "adashare.policy=nyu3"))
    with pytest.raises(UsageError, match=r"policy 'cityscapes2' must have 0 or 1 .* 8, found 16"):
        check_study(residual(tmp_path, "adashare.policy=cityscapes2"))


def test_what_is_no_policy_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="unknown policy 'nyu2'; did you mean 'nyu3'"):
        check_study(residual(tmp_path, "adashare.policy=nyu2"))
    with pytest.raises(UsageError, match=r"no file of a policy .*absent.json"):
        check_study(residual(tmp_path, "adashare.policy=absent.json"))
    with pytest.raises(UsageError, match=r"no file of a policy '.*a\\x00b.json' \(embedded null"):
        check_study(residual(tmp_path, r'adashare.policy="a\u0000b.json"'))


@pytest.mark.parametrize(
    ("written", "found"),
    [("3", "3"), ("[[1]]", r"\[1\]"), ("{semseg='11'}", "'11'"), ("{semseg=[2]}", "2")],
)
def test_a_value_that_is_no_policy_is_refused_in_one_line(tmp_path, written, found) -> None:
    with pytest.raises(UsageError, match=f"policy: must be a name .*found {found}$") as error:
        check_study(residual(tmp_path, f"options.adashare.policy={written}"))
    assert str(error.value).count("\n") == 1, "the table's name, and what is wrong"


def test_the_cost_of_a_learned_policy_is_not_known(tmp_path) -> None:
    with pytest.raises(UsageError, match="the policy is learned; give one by"):
        costs(residual(tmp_path), ("adashare",))
    given = [f"adashare.policy.{task}={row}" for task, row in ROWS.items()]
    with torch.device("meta"):
        model = build_model(residual(tmp_path, *given), "adashare")
    assert all(p.is_meta for p in model.parameters())
