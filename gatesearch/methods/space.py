"""Search spaces: the hyperparameters of a method that a search chooses, and their ranges."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from gatesearch.errors import UsageError, unknown
from gatesearch.study import Study


@dataclass(frozen=True)
class Range:
    """A hyperparameter that is a number.

    Attributes:
        low: Lowest value that is drawn.
        high: Highest value that is drawn.
        log: Draw log-uniformly instead of uniformly.
        per_task: Each task has a value of its own, the parameter `NAME.<task>`.
        legal: (lowest, highest) value that a study may allow.
    """

    low: float
    high: float
    log: bool = False
    per_task: bool = False
    legal: tuple[float, float] = (-math.inf, math.inf)

    def narrowed(self, name: str, values: tuple[float | str, ...]) -> "Range":
        """Replace the bounds by those that a study gives.

        Raises:
            UsageError: The values are not an ascending pair of finite numbers within `legal`.
        """
        low, high = self.legal
        numbers = [float(v) for v in values if isinstance(v, int | float)]
        ascending = len(values) == len(numbers) == 2 and numbers[0] <= numbers[1]
        if (
            not ascending
            or (self.log and numbers[0] <= 0)
            or not low <= numbers[0] <= numbers[1] <= high
            or not all(map(math.isfinite, numbers))
        ):
            kind = "ascending positive" if self.log else "ascending"
            finite = f" within [{low:g}, {high:g}]" if math.isfinite(low) else " of finite numbers"
            raise UsageError(
                f"search.{name} must be an {kind} range{finite}, found {_shown(values)}"
            )
        return replace(self, low=numbers[0], high=numbers[1])


@dataclass(frozen=True)
class Choice:
    """A hyperparameter that is one of several words. With one word there is nothing to draw.

    Attributes:
        values: Words that are drawn from.
        legal: Words that a study may allow.
    """

    values: tuple[str, ...]
    legal: tuple[str, ...]

    def narrowed(self, name: str, values: tuple[float | str, ...]) -> "Choice":
        """Replace the words by those that a study gives.

        Raises:
            UsageError: There are none, or one is not in `legal`.
        """
        if not values or any(value not in self.legal for value in values):
            raise UsageError(
                f"search.{name} must be a list of {', '.join(self.legal)}; found {_shown(values)}"
            )
        return replace(self, values=tuple(str(value) for value in values))


Space = Mapping[str, Range | Choice]


def space_of(declared: Space, study: Study) -> dict[str, Range | Choice]:
    """Apply a study's ranges to a method's search space, with an entry per task where it has one.

    Args:
        declared: The method's search space.
        study: Its `search.space` replaces the ranges of the parameters that it names.

    Raises:
        UsageError: A bad range.
    """
    space: dict[str, Range | Choice] = {}
    for name, default in declared.items():
        values = study.search.space.get(name)
        item = default if values is None else default.narrowed(name, values)
        if isinstance(item, Range) and item.per_task:
            space |= {f"{name}.{task}": item for task in study.task_names}
        else:
            space[name] = item
    return space


def choice_of(declared: Space, study: Study, params: Mapping[str, float | str], name: str) -> str:
    """Return the word of a `Choice` in a trial: the one that it drew, or the only one."""
    item = space_of(declared, study)[name]
    assert isinstance(item, Choice)
    return str(params.get(name, item.values[0]))


def task_values(params: Mapping[str, float | str], name: str, tasks: Iterable[str]) -> list[float]:
    """List the values of a per-task parameter in the order of the tasks."""
    return [float(params[f"{name}.{task}"]) for task in tasks]


def first_of(declared: Space, study: Study) -> list[dict[str, float | str]]:
    """List the configurations of `search.first` for a method: those whose names are all its own.

    Args:
        declared: The method's search space.
        study: The definition.
    """
    written = zip(study.search.first, study.search.first_params, strict=True)
    return [dict(params) for table, params in written if table.keys() <= declared.keys()]


def check_first(declared: Space, study: Study) -> None:
    """Refuse configurations of `search.first` that a method's search cannot try.

    Raises:
        UsageError: A parameter is missing or out of its range, or of another kind.
    """
    space = space_of(declared, study)
    for table, params in zip(study.search.first, study.search.first_params, strict=True):
        if not table.keys() <= declared.keys():
            continue  # of another method
        for name, item in space.items():
            if isinstance(item, Range):
                if item.per_task:
                    _check_names_every_task(name.partition(".")[0], table, study)
                value = params.get(name)
                if not isinstance(value, int | float) or not item.low <= value <= item.high:
                    raise UsageError(
                        f"search.first: {name} must be in [{item.low}, {item.high}], found {value}"
                    )
            elif params.get(name, item.values[0]) not in item.values:
                raise UsageError(
                    f"search.first: {name} must be one of {', '.join(item.values)}, found "
                    f"{params[name]}"
                )


def check_first_names(known: Iterable[Space], study: Study) -> None:
    """Refuse configurations of `search.first` that are of no method.

    Args:
        known: The search spaces of all methods.
        study: The definition.

    Raises:
        UsageError: A name is unknown, or no method has all names of a configuration.
    """
    spaces = list(known)
    names = dict.fromkeys(name for space in spaces for name in space)
    for table in study.search.first:
        for name in table:
            if name not in names:
                raise unknown("key of search.first", name, names)
        if not any(table.keys() <= space.keys() for space in spaces):
            raise UsageError(
                "search.first must have configurations of one method each, and no method has all "
                f"of {', '.join(table)}; name the hyperparameters of one method, as "
                "`gatesearch methods` lists them"
            )


def _check_names_every_task(name: str, table: Mapping[str, object], study: Study) -> None:
    given = table.get(name, {})
    tasks = given.keys() if isinstance(given, Mapping) else set()
    if tasks != study.tasks.keys():
        raise UsageError(
            f"search.first: {name} must name every task ({', '.join(study.tasks)}), found "
            f"{', '.join(tasks) or 'none'}"
        )


def _shown(values: tuple[float | str, ...]) -> str:
    return f"({', '.join(map(str, values))})"
