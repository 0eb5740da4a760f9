"""Trials that lag behind: the rules by hand, and which epochs and rivals they look at."""

import math
from types import SimpleNamespace

import pytest

from gatesearch.results import Result
from gatesearch.study import SearchSpec
from gatesearch.tasks import build_tasks
from gatesearch.trials import early_stopping
from gatesearch.trials.early_stopping import COST, GAIN, Stopper, halving_bar, judged, rivals_of
from tests.search.tiny import tiny

SINGLE_TASK = {"semseg": 20.0, "depth": 0.5}


@pytest.fixture
def stopper(tmp_path, monkeypatch):
    """Makes a stopper of a rule; a trial's network is its own mIoU."""
    study = tiny(tmp_path)
    monkeypatch.setattr(
        early_stopping, "evaluate", lambda network, *args, **options: {**SINGLE_TASK, **network}
    )

    def made(rivals, **rule) -> Stopper:
        search = SearchSpec(**{"stop_every": 1, "stop_after": 1, **rule})
        context = SimpleNamespace(
            study=study.model_copy(update={"search": search}), tasks=build_tasks(study.tasks),
            validation=None, runtime=None,
        )  # fmt: skip
        return Stopper(context, SINGLE_TASK, rivals)

    return made


def network_of(gain: float) -> dict[str, float]:
    """A network of that Δ_MTL in percent: half of it is mIoU's, of 20."""
    return {"semseg": 20 * (1 + 2 * gain / 100)}


@pytest.mark.parametrize(
    ("gain", "stops"), [(2.01, False), (2.0, False), (1.99, True), (-5.0, True), (math.nan, True)]
)
def test_the_median_by_hand(stopper, gain, stops) -> None:
    own = stopper([(1, 1.0, g) for g in (1.0, 2.0, 9.0)], stop="median")
    values = own.judge(1, network_of(gain), 1.0)
    assert values[GAIN] == pytest.approx(gain, nan_ok=True)
    assert values[COST] == 1.0
    assert bool(own.verdict) == stops
    if stops:
        now = (
            f"{gain:+.2f} %"
            if math.isfinite(gain)
            else "is undefined (the metric of semseg is nan)"
        )
        assert f"Δ_MTL {now}" in own.verdict
        assert "below +2.00, the median of 3 earlier trials that cost no more" in own.verdict
        assert own.verdict.startswith("stopped after epoch 1: ")


def test_a_single_task_metric_of_zero_stops_no_trial(stopper) -> None:
    own = stopper([], stop="median")
    own.single_task = {"semseg": 0.0, "depth": 0.5}
    values = own.judge(1, network_of(2.0), 1.0)
    assert math.isnan(values[GAIN])
    assert values[COST] == 1.0
    assert own.verdict == ""


@pytest.mark.parametrize(
    ("rivals", "gain", "stops"),
    [
        # Of two at a rung the better one goes on.
        ((1.0,), 2.0, False),
        ((1.0,), 0.5, True),
        # Of three too: one of three // 2.
        ((1.0, 2.0), 3.0, False),
        ((1.0, 2.0), 1.5, True),
        # Of four the better two.
        ((1.0, 2.0, 4.0), 3.0, False),
        ((1.0, 2.0, 4.0), 1.5, True),
        ((1.0, math.nan, math.nan), 0.5, False),
    ],
)
def test_successive_halving_by_hand(stopper, rivals, gain, stops) -> None:
    own = stopper([(1, 1.0, rival) for rival in rivals], stop="halving")
    own.judge(1, network_of(gain), 1.0)
    assert bool(own.verdict) == stops
    if stops:
        assert "the bar of successive halving over" in own.verdict


def test_the_bar_counts_what_is_no_number_as_worst() -> None:
    assert halving_bar([math.nan, 1.0, math.nan, 0.0]) == 0.0
    assert math.isnan(halving_bar([math.nan]))


def test_cheaper_networks_are_compared_with_cheaper_ones_alone(stopper) -> None:
    rivals = [(1, 2.0, 9.0), (1, 1.0, 1.0)]
    cheap, dear = (stopper(rivals, stop="median") for _ in range(2))
    cheap.judge(1, network_of(2.0), 1.5)
    assert cheap.verdict == ""
    dear.judge(1, network_of(2.0), 2.0)
    assert "below +5.00, the median of 2" in dear.verdict
    free = stopper(rivals, stop="median")
    free.judge(1, network_of(-9.0), 0.5)
    assert free.verdict == "", "nobody cost as little"


def test_only_rivals_at_the_same_epoch_and_enough_of_them_count(stopper) -> None:
    rivals = [(1, 1.0, 9.0), (2, 1.0, 9.0)]
    few = stopper(rivals, stop="median", stop_after=2)
    few.judge(2, network_of(0.0), 1.0)
    assert few.verdict == ""
    other = stopper(rivals, stop="median")
    other.judge(3, network_of(0.0), 1.0)
    assert other.verdict == ""


def test_epochs_that_are_not_judged_are_not_measured(stopper, monkeypatch) -> None:
    own = stopper([(2, 1.0, 9.0)], stop="median", stop_every=3)
    monkeypatch.setattr(early_stopping, "evaluate", None)
    values = own.judge(2, network_of(0.0), 1.0)
    assert all(map(math.isnan, values.values()))
    assert own.verdict == ""


@pytest.mark.parametrize(
    ("rule", "epochs"), [("median", [2, 4, 6, 8, 10, 12, 14, 16]), ("halving", [2, 4, 8, 16])]
)
def test_which_epochs_are_judged(rule, epochs) -> None:
    spec = SearchSpec(stop=rule, stop_every=2)
    assert [epoch for epoch in range(1, 18) if judged(epoch, spec)] == epochs


def test_rivals_are_the_judged_epochs_of_the_last_trials() -> None:
    def trial(*gains: float) -> Result:
        return Result("mtl", 0, 0, curves={GAIN: gains, COST: [1.5] * len(gains)})

    results = [trial(math.nan, 2.0), Result("mtl", 0, 1, state="failed"), trial(3.0, math.nan)]
    assert rivals_of(results) == [(2, 1.5, 2.0), (1, 1.5, 3.0)]
    many = [trial(float(number)) for number in range(130)]
    assert [gain for _, _, gain in rivals_of(many)] == [float(n) for n in range(30, 130)]
