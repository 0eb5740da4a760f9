"""What is guessed of a task from a user's labels.

Every guess comes with its reason, and is only a line of a study's file, which the user can change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IGNORE = 255
FEW_CLASSES = 20
GIVEN = "kind was given"


@dataclass(frozen=True)
class Guess:
    """What is guessed of a task.

    Attributes:
        kind: A name in `gatesearch.tasks.TASKS`.
        options: Keys of `[tasks.NAME]` beside `kind` and `label`.
        reasons: Why, a line each.
        alternative: Another reading of the same values, as (what it would mean, its options).
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    alternative: tuple[str, Mapping[str, Any]] | None = None
