"""What is drawn lies in its range, and a resumed study draws what it would have drawn."""

import math

import optuna
import pytest

from gatesearch.methods.space import Choice, Range, task_values
from gatesearch.search.space import draw, sampler, untried_first, weight_space
from gatesearch.store.optuna_trials import GAIN, GAIN_AND_COST
from gatesearch.study import SearchSpec

TASKS = ("semseg", "depth")
BOTH = Choice(("hinge", "flops"), legal=("hinge", "flops"))


def spec(name: str, **options) -> SearchSpec:
    return SearchSpec(sampler=name, **{"startup": 4, **options})


def space(
    strength: tuple[float, float] = (0.02, 5.0), tau: tuple[float, float] = (0.25, 0.75), **more
) -> dict:
    """A space as `space_of` gives it: one entry per parameter and task."""
    per_task = {f"tau.{task}": Range(*tau, per_task=True) for task in TASKS}
    return {"strength": Range(*strength, log=True), **per_task, **more}


def searched(own: SearchSpec, count: int, *, drawn_from=None, weightings=(), seed: int = 3,
             stops: tuple[int, ...] = (), objectives=GAIN_AND_COST):  # fmt: skip
    """Draws of a search; at `stops` a trial is cut off and the process starts anew."""
    study = optuna.create_study(directions=list(objectives))
    drawn, stops = [], list(stops)
    while len(drawn) < count:
        study.sampler = sampler(own, seed=seed, index=len(drawn))
        trial = study.ask()
        params = draw(trial, drawn_from or space(), weightings)
        if stops and stops[0] == len(drawn):
            stops.pop(0)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        drawn.append(params)
        values = [-sum(task_values(params, "tau", TASKS)), -math.log(params["strength"])]
        study.tell(trial, values[: len(study.directions)])
    return drawn


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_draws_lie_in_their_ranges(name) -> None:
    drawn = searched(spec(name), 14)
    for params in drawn:
        assert list(params) == ["strength", "tau.semseg", "tau.depth"]
        assert 0.02 <= params["strength"] <= 5
        assert all(0.25 <= params[f"tau.{task}"] <= 0.75 for task in TASKS)
    # crossover of NSGA-II may give what a parent was
    distinct = len({tuple(params.values()) for params in drawn})
    assert distinct == 14 or (name == "nsga2" and distinct > 10)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("stops", [(0,), (3, 3), (2, 6, 9)])
@pytest.mark.parametrize("objectives", [GAIN, GAIN_AND_COST])
def test_a_search_that_was_cut_off_draws_the_same(name, stops, objectives) -> None:
    whole = searched(spec(name), 11, objectives=objectives)
    assert searched(spec(name), 11, stops=stops, objectives=objectives) == whole


def test_words_are_drawn_where_there_is_a_choice() -> None:
    drawn = searched(spec("random"), 12, drawn_from=space(regulariser=BOTH))
    assert {params["regulariser"] for params in drawn} == {"hinge", "flops"}
    alone = Choice(("hinge",), legal=BOTH.legal)
    drawn = searched(spec("random"), 3, drawn_from=space(regulariser=alone))
    assert all("regulariser" not in params for params in drawn)


def test_weightings_are_drawn_where_there_is_a_choice() -> None:
    drawn = searched(spec("random"), 12, weightings=("pcgrad", "rlw"))
    assert {params["weighting"] for params in drawn} == {"pcgrad", "rlw"}
    drawn = searched(spec("random"), 3, weightings=("pcgrad",))
    assert all("weighting" not in params for params in drawn)


def test_seeds_differ() -> None:
    assert searched(spec("tpe"), 2, seed=0) != searched(spec("tpe"), 2, seed=1)


def test_a_logarithmic_range_is_uniform_in_the_logarithm() -> None:
    drawn = searched(spec("random"), 120, drawn_from=space(strength=(0.01, 100.0)))
    below = sum(params["strength"] < 1 for params in drawn)
    assert 40 < below < 80


def test_a_range_of_one_value() -> None:
    single = space(strength=(1.0, 1.0), tau=(0.0, 0.0))
    drawn = searched(spec("tpe"), 3, drawn_from=single)
    assert drawn == [{"strength": 1.0, "tau.semseg": 0.0, "tau.depth": 0.0}] * 3


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_the_smallest_startup_that_a_study_may_ask_for(name) -> None:
    assert len(searched(spec(name, startup=1), 4)) == 4


def test_factors_of_weights_have_one_range_for_all_tasks() -> None:
    factors = weight_space(SearchSpec(scalar=(0.5, 2.0)), TASKS)
    assert factors == {f"weight.{task}": Range(0.5, 2.0, log=True) for task in TASKS}


def test_configurations_that_were_tried_are_passed_over() -> None:
    first = [{"a": 1.0}, {"a": 2.0, "b": "x"}, {"a": 3.0}]
    # What a trial drew beside them does not matter.
    tried = [{"a": 2.0, "b": "x", "weighting": "pcgrad"}, {"a": 4.0}]
    choose = untried_first(first, tried)
    assert [choose(index) for index in (2, 3, 4)] == [{"a": 1.0}, {"a": 3.0}, None]
    assert untried_first([], tried)(0) is None
