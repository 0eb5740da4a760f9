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
from tests.search.tiny import tiny

ROWS = {"semseg": [1, 1, 0, 1, 1, 1, 1, 1], "depth": [1, 1, 1, 1, 1, 0, 1, 1]}


def written(tmp_path, content: object, *overrides: str) -> Study:
    (tmp_path / "policy.json").write_text(
        content if isinstance(content, str) else json.dumps(content)
    )
    return tiny(tmp_path, "adashare.policy=policy.json", *overrides)


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


def test_a_policy_in_the_study_itself(tmp_path) -> None:
    overrides = [f"adashare.policy.{task}={row}" for task, row in ROWS.items()]
    study = check_study(tiny(tmp_path, *overrides))
    assert study.options_of("adashare").own == {"policy": ROWS}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"semseg": ROWS["semseg"]}, "a row for each task of the study, semseg, depth, found sem"),
        (ROWS | {"edges": ROWS["depth"]}, "found semseg, depth, edges; a policy belongs to one"),
        (ROWS | {"depth": [1] * 16}, "residual block of the backbone, 8, found 16 for depth"),
        (ROWS | {"depth": [1] * 7 + [2]}, "must hold a JSON object"),
        ([[1, 0]], "must hold a JSON object"),
        ("{", "must hold a JSON object"),
    ],
)
def test_a_policy_of_another_network_is_refused(tmp_path, content, fault: str) -> None:
    with pytest.raises(UsageError, match=fault) as error:
        check_study(written(tmp_path, content))
    assert "policy.json" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_published_policy_in_another_study_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="the policy 'nyu3' is of 3 tasks, found 2"):
        check_study(tiny(tmp_path, "adashare.policy=nyu3"))
    with pytest.raises(UsageError, match=r"policy 'cityscapes2' must have 0 or 1 .* 8, found 16"):
        check_study(tiny(tmp_path, "adashare.policy=cityscapes2"))


def test_what_is_no_policy_is_refused(tmp_path) -> None:
    with pytest.raises(UsageError, match="unknown policy 'nyu2'; did you mean 'nyu3'"):
        check_study(tiny(tmp_path, "adashare.policy=nyu2"))
    with pytest.raises(UsageError, match=r"no file of a policy .*absent.json"):
        check_study(tiny(tmp_path, "adashare.policy=absent.json"))


def test_the_cost_of_a_learned_policy_is_not_known(tmp_path) -> None:
    with pytest.raises(UsageError, match="the policy is learned; give one by"):
        costs(tiny(tmp_path), ("adashare",))
    with torch.device("meta"):
        given = build_model(tiny(tmp_path, *[f"adashare.policy.{t}={r}" for t, r in ROWS.items()]),
                            "adashare")  # fmt: skip
    assert all(p.is_meta for p in given.parameters())
