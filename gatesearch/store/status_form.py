"""The form of `status.json`, by which it is validated when it is read."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, FiniteFloat, NonNegativeInt

from gatesearch.store.status import MOST_SECONDS
from gatesearch.strict import Strict


def _check_time(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a time must have its zone")
    return text


# A time as ISO 8601.
Time = Annotated[str, AfterValidator(_check_time)]


class _Strict(Strict):
    model_config = ConfigDict(strict=True)


class _Counts(_Strict):
    complete: NonNegativeInt
    failed: NonNegativeInt
    stopped: NonNegativeInt
    running: NonNegativeInt


class _Best(_Strict):
    trial: NonNegativeInt
    delta_mtl: FiniteFloat
    gflops: FiniteFloat


class _Networks(_Strict):
    done: NonNegativeInt
    wanted: NonNegativeInt | None


class _Worker(_Strict):
    name: str
    job: str
    attempt: NonNegativeInt
    since: Time
    stage: str
    seen: Time


class _Process(_Strict):
    pid: NonNegativeInt
    host: str


class StatusForm(_Strict):
    """Contents of `status.json`."""

    format: Literal[3]
    study: str
    fingerprint: str
    tune: list[str]
    budget: str
    seeds: list[NonNegativeInt]
    with_controls: bool | None
    headroom: NonNegativeInt
    storage: str
    wanted: NonNegativeInt
    n_trials: NonNegativeInt | None
    trials: _Counts
    per_hour: Annotated[FiniteFloat, Field(ge=0)] | None
    seconds_left: Annotated[FiniteFloat, Field(ge=0, le=MOST_SECONDS)] | None
    best: _Best | None
    front: NonNegativeInt
    baselines: _Networks
    controls: _Networks
    workers: list[_Worker]
    started: Time
    updated: Time
    process: _Process
