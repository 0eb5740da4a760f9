"""Events as the log and a worker's file keep them."""

import json

import pytest

from gatesearch.events import Event, Log, NetworkTrained, Progress, Warned, from_json, to_json

# The form is that of gatesearch 0.1.0, whose logs and unfinished jobs must stay readable.
STORED: list[tuple[Event, str]] = [
    (Log("computing on cpu"), '{"event": "log", "message": "computing on cpu"}'),
    (
        Log("trial 3: λ 0.1", {"lambda_s": 0.1, "regulariser": "hinge"}),
        '{"event": "log", "message": "trial 3: λ 0.1", '
        '"params": {"lambda_s": 0.1, "regulariser": "hinge"}}',
    ),
    (Warned("mtl failed: nan"), '{"event": "warning", "message": "mtl failed: nan"}'),
    (
        NetworkTrained("trial 3: +1.2 %", trial=True),
        '{"event": "trial", "message": "trial 3: +1.2 %"}',
    ),
    (NetworkTrained("stl: 4 G", trial=False), '{"event": "baseline", "message": "stl: 4 G"}'),
    (
        NetworkTrained("stl: 4 G", trial=False, metrics={"depth": 0.5}),
        '{"event": "baseline", "message": "stl: 4 G", "metrics": {"depth": 0.5}}',
    ),
    (
        Progress("trial 3", 2, 9, "epochs", "depth 0.500", {"loss.depth": 0.5, "lr": 1e-3}),
        '{"event": "progress", "stage": "trial 3", "done": 2, "total": 9, "unit": "epochs", '
        '"message": "depth 0.500", "loss.depth": 0.5, "lr": 0.001}',
    ),
    (
        Progress("search", 1, 4, "trials"),
        '{"event": "progress", "stage": "search", "done": 1, "total": 4, "unit": "trials", '
        '"message": ""}',
    ),
]


@pytest.mark.parametrize(("event", "text"), STORED)
def test_an_event_is_written_in_its_stored_form(event: Event, text: str) -> None:
    assert json.dumps(to_json(event), ensure_ascii=False) == text


@pytest.mark.parametrize(("event", "text"), STORED)
def test_a_stored_event_is_read_back_equal(event: Event, text: str) -> None:
    assert from_json(json.loads(text)) == event


@pytest.mark.parametrize(
    "stored",
    [
        {"event": "rumour", "message": "x"},
        {"event": "warning"},
        {"event": "progress", "message": "x"},
        {},
    ],
)
def test_what_is_no_event_is_refused(stored: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must have one of the forms of `to_json`, found"):
        from_json(stored)
