"""What a run tells while it works: a small union of events, told to whoever called it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Log:
    """Something worth a line.

    Attributes:
        message: The line.
        params: Parameters of the trial that the line speaks of.
    """

    message: str
    params: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Warned:
    """Something that went wrong and was dealt with."""

    message: str


@dataclass(frozen=True)
class NetworkTrained:
    """A network came to its end, or failed.

    Attributes:
        message: The line.
        trial: Whether it is a trial of a search, or a baseline.
        metrics: Task -> its metric on the validation part; empty where it was not measured.
    """

    message: str
    trial: bool
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """How far a stage is.

    Attributes:
        stage: What it is called, as `trial 3`.
        done: Units done.
        total: Units in all.
        unit: Plural name of the units.
        message: The newest values, as one line.
        values: The same as numbers: `loss.<task>` and the like.
    """

    stage: str
    done: int
    total: int
    unit: str
    message: str = ""
    values: Mapping[str, float] = field(default_factory=dict)


Event = Log | Warned | NetworkTrained | Progress
Emit = Callable[[Event], None]


def to_json(event: Event) -> dict[str, object]:
    """Turn an event into the object that `log.jsonl` and `events.jsonl` keep, one per line.

    >>> to_json(NetworkTrained("trial 3: 1.2 GFLOPs", trial=True))
    {'event': 'trial', 'message': 'trial 3: 1.2 GFLOPs'}
    """
    match event:
        case Log(message, params):
            more = {"params": dict(params)} if params else {}
            return {"event": "log", "message": message, **more}
        case Warned(message):
            return {"event": "warning", "message": message}
        case NetworkTrained(message, trial, metrics):
            more = {"metrics": dict(metrics)} if metrics else {}
            return {"event": "trial" if trial else "baseline", "message": message, **more}
        case Progress(stage, done, total, unit, message, values):
            counts = {"stage": stage, "done": done, "total": total, "unit": unit}
            return {"event": "progress", **counts, "message": message, **values}


def from_json(stored: Mapping[str, Any]) -> Event:
    """Turn an object that `to_json` wrote back into the event.

    Raises:
        ValueError: It is no event of a known kind, or a value has a wrong type.
    """
    match stored:
        case {"event": "log", "message": str(message)}:
            params = stored.get("params", {})
            if isinstance(params, Mapping) and _are(params, float, int, str):
                return Log(message, params)
        case {"event": "warning", "message": str(message)}:
            return Warned(message)
        case {"event": "trial" | "baseline" as kind, "message": str(message)}:
            metrics = stored.get("metrics", {})
            if isinstance(metrics, Mapping) and _are(metrics, float, int):
                return NetworkTrained(message, kind == "trial", metrics)
        case {
            "event": "progress", "stage": str(stage), "done": int(done), "total": int(total),
            "unit": str(unit), "message": str(message), **values,
        } if _are(values, float, int):  # fmt: skip
            return Progress(stage, done, total, unit, message, values)
    raise ValueError(f"a stored event must have one of the forms of `to_json`, found {stored!r}")


def _are(values: Mapping[str, object], *kinds: type) -> bool:
    return all(isinstance(value, kinds) for value in values.values())
