"""Hyperparameters: ranges, words, and what of a study does not suit them."""

import math

import pytest

from gatesearch.errors import UsageError
from gatesearch.methods.space import (
    Choice,
    Range,
    check_first,
    check_first_names,
    choice_of,
    first_of,
    space_of,
    task_values,
)
from gatesearch.study import SearchSpec
from tests.search.tiny import tiny

SPACE = {
    "strength": Range(0.01, 10.0, log=True),
    "share": Range(0.0, 1.0, per_task=True, legal=(0.0, 1.0)),
    "kind": Choice(("soft",), legal=("soft", "hard")),
}


def study_with(tmp_path, **search):
    """A study of the tasks semseg and depth, none of whose ranges is of this space."""
    return tiny(tmp_path).model_copy(update={"search": SearchSpec(**search)})


def test_one_entry_per_parameter_and_task(tmp_path) -> None:
    space = space_of(SPACE, study_with(tmp_path))
    assert list(space) == ["strength", "share.semseg", "share.depth", "kind"]
    narrowed = space_of(SPACE, study_with(tmp_path, strength=[1, 2], share=[0.5, 0.75]))
    assert narrowed["strength"] == Range(1.0, 2.0, log=True)
    assert narrowed["share.depth"] == narrowed["share.semseg"] != space["share.depth"]
    assert (narrowed["share.depth"].low, narrowed["share.depth"].high) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"strength": [2, 1]},
            r"search.strength must be an ascending positive range of finite .* \(2",
        ),
        ({"strength": [0, 1]}, "ascending positive range"),
        ({"strength": [1, math.inf]}, r"range of finite numbers, found \(1.0, inf\)"),
        ({"strength": [math.nan, 1]}, r"range of finite numbers, found \(nan, 1.0\)"),
        ({"strength": [1, 2, 3]}, "ascending positive range"),
        ({"strength": ["a", "b"]}, "ascending positive range"),
        ({"share": [-0.5, 1]}, r"ascending range within \[0, 1\], found \(-0.5, 1"),
        ({"kind": ["soft", "hrd"]}, r"search.kind must be a list of soft, hard; found \(soft, hrd"),
        ({"kind": []}, "search.kind must be a list of soft, hard"),
    ],
)
def test_a_range_that_does_not_suit_is_refused(tmp_path, search, message) -> None:
    with pytest.raises(UsageError, match=message):
        space_of(SPACE, study_with(tmp_path, **search))


def test_the_only_word_of_a_choice_is_not_drawn(tmp_path) -> None:
    both = study_with(tmp_path, kind=["soft", "hard"])
    assert choice_of(SPACE, study_with(tmp_path), {}, "kind") == "soft"
    assert choice_of(SPACE, both, {"kind": "hard"}, "kind") == "hard"


def test_values_follow_the_order_of_the_tasks() -> None:
    params = {"tau.b": 1.0, "lambda_s": 3.0, "tau.a": 0.5}
    assert task_values(params, "tau", ("a", "b")) == [0.5, 1.0]


GOOD = {"strength": 1.0, "share": {"semseg": 0.5, "depth": 1}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strength": 11.0}, r"strength must be in \[0.01, 10.0\], found 11.0"),
        ({"strength": "much"}, r"strength must be in \[0.01, 10.0\], found much"),
        ({"share": {"semseg": 0.5}}, r"share must name every task \(semseg, depth\), found semseg"),
        ({"share": 0.5}, "share must name every task .*, found none"),
        ({"share": {"semseg": 0.5, "depth": 2}}, r"share.depth must be in \[0.0, 1.0\], found 2"),
        ({"kind": "hard"}, "kind must be one of soft, found hard"),
    ],
)
def test_a_first_configuration_that_cannot_be_tried_is_refused(tmp_path, changed, message) -> None:
    check_first(SPACE, study_with(tmp_path, first=[GOOD]))
    with pytest.raises(UsageError, match=message):
        check_first(SPACE, study_with(tmp_path, first=[GOOD, GOOD | changed]))
    with pytest.raises(UsageError, match=r"strength must be in .*, found None"):
        check_first(SPACE, study_with(tmp_path, first=[{"share": GOOD["share"]}]))


OTHER = {"width": Range(0.0, 1.0)}


def test_a_first_configuration_is_of_the_method_that_has_its_names(tmp_path) -> None:
    study = study_with(tmp_path, first=[GOOD, {"width": 0.5}])
    check_first_names([SPACE, OTHER], study)
    check_first(SPACE, study)
    check_first(OTHER, study)
    assert first_of(OTHER, study) == [{"width": 0.5}]
    assert first_of(SPACE, study) == [{"strength": 1.0, "share.semseg": 0.5, "share.depth": 1}]
    misspelt = study_with(tmp_path, first=[GOOD | {"strnegth": 1.0}])
    with pytest.raises(UsageError, match=r"search\.first 'strnegth'; did you mean 'strength'"):
        check_first_names([SPACE, OTHER], misspelt)
    mixed = study_with(tmp_path, first=[GOOD | {"width": 0.5}])
    with pytest.raises(UsageError, match="no method has all of strength, share, width"):
        check_first_names([SPACE, OTHER], mixed)
