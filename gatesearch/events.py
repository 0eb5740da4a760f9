"""What a run tells while it works: a small union of events, told to whoever called it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


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
    """

    message: str
    trial: bool


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
