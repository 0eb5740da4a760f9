"""What is drawn lies in its range, and a resumed study draws what it would have drawn."""

import math

import optuna
import pytest

from gatesearch.search.space import directions, draw, sampler, taus
from gatesearch.study import SearchSpec

TASKS = ("semseg", "depth")


def spec(name: str, **options) -> SearchSpec:
    return SearchSpec(sampler=name, **{"lambda_s": (0.02, 5.0), "tau": (0.25, 0.75), "startup": 4,
                      **options})  # fmt: skip


def searched(space: SearchSpec, count: int, *, seed: int = 3, stops: tuple[int, ...] = (),
             budget: str = ""):  # fmt: skip
    """Draws of a search; at `stops` a trial is cut off and the process starts anew."""
    study = optuna.create_study(directions=directions(budget))
    drawn, stops = [], list(stops)
    while len(drawn) < count:
        study.sampler = sampler(space, seed=seed, index=len(drawn))
        trial = study.ask()
        params = draw(trial, space, TASKS)
        if stops and stops[0] == len(drawn):
            stops.pop(0)
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        drawn.append(params)
        values = [-sum(taus(params, TASKS)), -math.log(params["lambda_s"])]
        study.tell(trial, values[: len(study.directions)])
    return drawn


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_draws_lie_in_their_ranges(name) -> None:
    drawn = searched(spec(name), 14)
    for params in drawn:
        assert list(params) == ["lambda_s", "tau.semseg", "tau.depth"]
        assert 0.02 <= params["lambda_s"] <= 5
        assert all(0.25 <= params[f"tau.{task}"] <= 0.75 for task in TASKS)
    # crossover of NSGA-II may give what a parent was
    distinct = len({tuple(params.values()) for params in drawn})
    assert distinct == 14 or (name == "nsga2" and distinct > 10)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
@pytest.mark.parametrize("stops", [(0,), (3, 3), (2, 6, 9)])
@pytest.mark.parametrize("budget", ["", "1.3xMTL"])
def test_a_search_that_was_cut_off_draws_the_same(name, stops, budget) -> None:
    whole = searched(spec(name), 11, budget=budget)
    assert searched(spec(name), 11, stops=stops, budget=budget) == whole


def test_a_regulariser_is_drawn_where_there_is_a_choice() -> None:
    drawn = searched(spec("random", regulariser=("hinge", "flops")), 12)
    assert {params["regulariser"] for params in drawn} == {"hinge", "flops"}


def test_seeds_differ() -> None:
    assert searched(spec("tpe"), 2, seed=0) != searched(spec("tpe"), 2, seed=1)


def test_lambda_is_uniform_in_its_logarithm() -> None:
    drawn = searched(spec("random", lambda_s=(0.01, 100.0)), 120)
    below = sum(params["lambda_s"] < 1 for params in drawn)
    assert 40 < below < 80


def test_a_range_of_one_value() -> None:
    drawn = searched(spec("tpe", lambda_s=(1.0, 1.0), tau=(0.0, 0.0)), 3)
    assert drawn == [{"lambda_s": 1.0, "tau.semseg": 0.0, "tau.depth": 0.0}] * 3


@pytest.mark.parametrize("name", ["tpe", "nsga2", "random"])
def test_the_smallest_startup_that_a_study_may_ask_for(name) -> None:
    assert len(searched(spec(name, startup=1), 4)) == 4


def test_taus_follow_the_order_of_the_tasks() -> None:
    assert taus({"tau.b": 1.0, "lambda_s": 3.0, "tau.a": 0.5}, ("a", "b")) == [0.5, 1.0]
