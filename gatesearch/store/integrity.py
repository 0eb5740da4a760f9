"""Checksums of what a store's database holds: made when it is written, verified when it is read.

SQLite keeps no checksums, so that a changed byte of a figure would be taken for the figure. Each
attribute of the store therefore carries a checksum of its name and value, and each trial carries
two: of what it began with, and of what it ended with. Both cover what Optuna's tables hold of the
trial. Needs no Optuna.

| attribute | holds |
|---|---|
| of the store | `{"name": NAME, "value": VALUE, "checksum": ...}` |
| `trial` of a trial | its number in the store |
| `begun` | checksum of its search, number, parameters, and system attributes |
| `validation` | metrics on the validation part, for Optuna's dashboard |
| `result` | `{"json": RESULT, "checksum": ...}`: the result as text, and the checksum of it, search, number, state, objective values and `validation` |
| `metrics` of a pattern | `{"value": METRICS, "fault": ..., "checksum": ...}`: the metrics, why Δ_MTL is undefined if it is, and the checksum of both, search, index, parameters and objective values |
"""  # noqa: E501 - a table

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from gatesearch.checksums import checksum, with_checksum, without_checksum
from gatesearch.errors import first_line
from gatesearch.store import names

# Executes a query, and yields its rows.
Rows = Callable[[str], Iterable[Sequence[Any]]]
# Directions of the objectives, as Optuna's tables name them.
DIRECTIONS = ("MAXIMIZE", "MINIMIZE")
# Prefixes of attributes that Optuna's dashboard writes; they are no part of a store.
_FOREIGN = ("dashboard:", "artifacts:")
# Optuna's states of a trial that has ended.
_ENDED = ("COMPLETE", "FAIL", "PRUNED")


@dataclass
class TrialRows:
    """A trial, as Optuna's tables hold it.

    Attributes:
        search: Name of its search in the store; empty in the main Optuna study.
        index: Its number within the search.
        state: Optuna's name of its state.
        values: Values of the objectives, in their order.
        params: Parameter -> [Optuna's internal value, distribution as JSON].
        system: System attribute -> value.
        attributes: Attribute -> value.
    """

    search: str
    index: int
    state: str
    values: list[float] = field(default_factory=list)
    params: dict[str, list[Any]] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)

    def seal_begun(self, number: int) -> str:
        """Make the attribute `begun`.

        Args:
            number: The trial's number in the store.
        """
        system = {k: value for k, value in self.system.items() if not k.startswith(_FOREIGN)}
        return checksum(["begun", self.search, number, self.params, system])

    def seal_result(self, number: int, result: str) -> dict[str, str]:
        """Make the attribute `result`.

        Args:
            number: The trial's number in the store.
            result: Its result as JSON.
        """
        validation = self.attributes.get(names.VALIDATION)
        ended = [self.search, number, self.state, self.values, validation, result]
        return {"json": result, "checksum": checksum(["ended", *ended])}

    def seal_metrics(self, metrics: Any, fault: str = "") -> dict[str, Any]:
        """Make the attribute `metrics` of a configuration that was tried on a supernet.

        Args:
            metrics: Task -> metric on the validation part.
            fault: Why its Δ_MTL is undefined; empty if it is defined.
        """
        tried = [self.search, self.index, self.params, self.values, metrics, fault]
        return {"value": metrics, "fault": fault, "checksum": checksum(["pattern", *tried])}


def seal(name: str, value: Any) -> dict[str, Any]:
    """Add its checksum to the value of an attribute of the store."""
    return with_checksum({"name": name, "value": value})


def unseal(name: str, stored: Any) -> Any:
    """Verify the checksum of an attribute of the store, and return its value.

    Raises:
        ValueError: The attribute has no checksum, or that of another name or value.
    """
    if not is_sealed(stored):
        raise ValueError(f"its attribute '{name}' has no checksum")
    try:
        table = without_checksum(stored)
    except ValueError as error:
        raise ValueError(f"attribute '{name}': {error}") from error
    if table["name"] != name:
        raise ValueError(f"attribute '{name}' is that of the name '{table['name']}'")
    return table["value"]


def is_sealed(stored: Any) -> bool:
    """Tell whether a stored value has the form that `seal` gives it."""
    return isinstance(stored, dict) and set(stored) == {"name", "value", "checksum"}


def find_fault(rows: Rows, study: str = "") -> str | None:
    """Describe the first value in a database that was changed; None where there is none.

    Stores of another version are not verified: opening them refuses or upgrades them.

    Args:
        rows: Executes a query in a transaction that sees one state of the database.
        study: Name of the study; empty for all studies in the database.
    """
    try:
        studies = {row[0]: row[1] for row in rows("SELECT study_id, study_name FROM studies")}
        mains = [study] if study else [name for name in studies.values() if " " not in name]
        for main in mains:
            _verify_store(rows, main, studies)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return first_line(error)[:200]
    return None


def _verify_store(rows: Rows, main: str, studies: Mapping[int, str]) -> None:
    """Verify a store.

    Raises:
        ValueError: A value in it was changed.
    """
    found = [number for number, name in studies.items() if name == main]
    if len(found) != 1:
        return
    stored = {
        name: _parse(text, f"attribute '{name}'")
        for name, text in rows(
            f"SELECT key, value_json FROM study_user_attributes WHERE study_id = {found[0]}"
        )
    }
    if not any(map(is_sealed, stored.values())):
        return
    version = stored.get(names.FORMAT)
    if version is not None and (
        not is_sealed(version) or unseal(names.FORMAT, version) != names.VERSION
    ):
        return
    values = {name: unseal(name, value) for name, value in stored.items()}
    searches = {
        number: name.removeprefix(f"{main} ")
        for number, name in studies.items()
        if name.startswith(f"{main} ")
    }
    # The main Optuna study has the empty name here.
    searches[found[0]] = ""
    known = {**values.get(names.SEARCHES, {}), "": len(DIRECTIONS)}
    missing = set(known) - set(searches.values())
    if missing:
        raise ValueError(f"its search '{min(missing)}' is missing")
    _verify_directions(rows, searches, known)
    _verify_metric_names(rows, searches, known)
    next_index: dict[str, int] = {}
    for trial in sorted_trials(rows, searches):
        if trial.search not in known:
            raise ValueError(f"it has trials of '{trial.search}', which is none of its searches")
        if trial.index != next_index.setdefault(trial.search, 0):
            missing_trial = f"trial {next_index[trial.search]} of search '{trial.search}'"
            raise ValueError(f"{missing_trial} is missing, found trial {trial.index}")
        next_index[trial.search] += 1
        _verify_trial(trial)


def _verify_directions(rows: Rows, searches: Mapping[int, str], known: Mapping[str, int]) -> None:
    ordered = rows(
        "SELECT study_id, objective, direction FROM study_directions"
        f" WHERE study_id IN ({_listed(searches)}) ORDER BY study_id, objective"
    )
    for number, group in groupby(ordered, itemgetter(0)):
        directions = [(objective, direction) for _, objective, direction in group]
        name = searches[number]
        if directions != list(enumerate(DIRECTIONS))[: known.get(name, len(directions))]:
            raise ValueError(f"search '{name}' has the directions {directions}")


def _verify_metric_names(rows: Rows, searches: Mapping[int, str], known: Mapping[str, int]) -> None:
    """Verify the names of the objectives, and that all other system attributes are JSON."""
    for number, key, text in rows(
        "SELECT study_id, key, value_json FROM study_system_attributes"
        f" WHERE study_id IN ({_listed(searches)})"
    ):
        name = searches[number]
        value = _parse(text, f"system attribute '{key}' of search '{name}'")
        if key == "study:metric_names" and value != names.METRICS[: known.get(name, len(value))]:
            raise ValueError(f"search '{name}' has the objectives {value}")


def _verify_trial(trial: TrialRows) -> None:
    attributes, label = trial.attributes, f"trial {trial.index} of search '{trial.search}'"
    changed = ValueError(f"{label} was changed: its values are not those of its checksum")
    if trial.search.startswith(f"{names.PATTERNS} "):
        if trial.state == "COMPLETE" or attributes:
            if set(attributes) != {names.PATTERN_METRICS}:
                raise ValueError(f"{label} has the attributes {sorted(attributes)}")
            sealed = attributes[names.PATTERN_METRICS]
            # The values of the objectives are written after the metrics.
            written = trial.state == "COMPLETE" or sealed["fault"]
            if written and not _equal(sealed, trial.seal_metrics(sealed["value"], sealed["fault"])):
                raise changed
        return
    if not attributes and trial.state not in ("COMPLETE", "PRUNED") and not trial.values:
        return  # It was never begun: gatesearch 0.1.0 could be killed while it drew a trial.
    ended = trial.state in _ENDED
    needed = {names.NUMBER, names.BEGUN} | ({names.VALIDATION, names.RESULT} if ended else set())
    unknown = set(attributes) - {names.NUMBER, names.BEGUN, names.VALIDATION, names.RESULT}
    if not needed <= set(attributes) or unknown:
        raise ValueError(f"{label} has the attributes {sorted(attributes)}")
    number = attributes[names.NUMBER]
    if attributes[names.BEGUN] != trial.seal_begun(number):
        raise changed
    if ended:
        result = attributes[names.RESULT]
        if not _equal(result, trial.seal_result(number, result["json"])):
            raise changed
    elif trial.state != "RUNNING" or trial.values:
        raise ValueError(f"{label} is {trial.state} and has the values {trial.values}")


def sorted_trials(rows: Rows, searches: Mapping[int, str]) -> Iterator[TrialRows]:
    """Read trials, ordered by search and by their number in it.

    Args:
        rows: Executes a query.
        searches: Number of an Optuna study -> name of the search.

    Raises:
        ValueError: A value is not of the form in which Optuna writes it.
    """
    which = f"trial_id IN (SELECT trial_id FROM trials WHERE study_id IN ({_listed(searches)}))"
    trials: dict[int, TrialRows] = {}
    for number, study, index, state, *times in rows(
        "SELECT trial_id, study_id, number, state, datetime_start, datetime_complete FROM trials"
        f" WHERE study_id IN ({_listed(searches)})"
    ):
        for time in times:
            if isinstance(time, str):
                datetime.fromisoformat(time)
        trials[number] = TrialRows(searches[study], index, state)
    for number, name, value, distribution in rows(
        f"SELECT trial_id, param_name, param_value, distribution_json FROM trial_params"
        f" WHERE {which}"
    ):
        trials[number].params[name] = [float(value), distribution]
    for number, value, kind in rows(
        f"SELECT trial_id, value, value_type FROM trial_values WHERE {which}"
        " ORDER BY trial_id, objective"
    ):
        if kind != "FINITE":
            raise ValueError(f"a value of trial {number} is {kind}")
        trials[number].values.append(float(value))
    for kind in ("system", "user"):
        for number, key, text in rows(
            f"SELECT trial_id, key, value_json FROM trial_{kind}_attributes WHERE {which}"
        ):
            trial = trials[number]
            attributes = trial.system if kind == "system" else trial.attributes
            attributes[key] = _parse(text, f"attribute '{key}' of trial {number}")
    yield from sorted(trials.values(), key=lambda trial: (trial.search, trial.index))


def _equal(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return set(stored) == set(expected) and stored["checksum"] == expected["checksum"]


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(int(number)) for number in numbers)


def _parse(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON") from error
