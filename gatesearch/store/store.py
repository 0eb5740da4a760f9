"""The store of a study, in one database of Optuna. Needs no torch.

The main Optuna study has no trials. Its attributes are the definition, the results of baselines,
start networks and controls, and the test figures of trials (attributes of a finished trial cannot
change).

Each search has an Optuna study of its own: one per method and set of budgets, because good
hyperparameters of one say little of another's. Its trials carry their results.

Optuna commits every parameter that it draws. A kill between two commits would leave half a trial.
So trials are drawn in a mirror of their search in memory, and then written in one commit.
"""

import functools
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from gatesearch.results import MULTI_TASK, SINGLE_TASK, Result, StudyRecord, TaskInfo
from gatesearch.store import names
from gatesearch.store.database import close_database
from gatesearch.store.integrity import seal, unseal
from gatesearch.store.optuna_trials import (
    GAIN_AND_COST,
    ask,
    begun_trials,
    distributions_as_json,
    ended_trials,
    name_metrics,
    rows_of,
    without_garbage_collection,
    without_results,
)
from gatesearch.store.tidy import entries_of, exists, is_regular
from gatesearch.study import Study

PREDICTIONS = "predictions.npz"


@dataclass(frozen=True)
class PendingTrial:
    """A trial that was drawn and has no result yet.

    Attributes:
        search: Name of its search.
        number: Its number in the store, counted over all searches.
        params: Drawn parameter -> value.
        index: Its number within its search; -1 for one that is not in the search yet (`adopt`).
        drawn_from: Parameter -> distribution that it was drawn from, as JSON.
    """

    search: str
    number: int
    params: Mapping[str, float | str]
    index: int
    drawn_from: Mapping[str, str]


class Store:
    """An opened store, which one process writes to.

    Args:
        folder: The store's folder.
        handle: The main Optuna study, which has the study's name. Names of searches in the database
            begin with that name.
        storage: The database of the main study and the searches.

    Attributes:
        handle: The main Optuna study, which holds the store's attributes.
        searches: Name of a search -> Optuna study of its trials.
        storage: The database.
    """

    def __init__(self, folder: Path, handle: optuna.Study, storage: RDBStorage) -> None:
        self.folder = folder
        self.handle = handle
        self.storage = storage
        self._parsed_results: dict[int, Result] = {}
        self._mirrors: dict[str, optuna.Study] = {}
        prefix = f"{handle.study_name} "
        self.searches = {
            name.removeprefix(prefix): optuna.load_study(study_name=name, storage=storage)
            for name in sorted(optuna.get_all_study_names(storage))
            if name.startswith(prefix) and not name.startswith(f"{prefix}{names.PATTERNS} ")
        }

    def open_search(self, name: str, objectives: Sequence[StudyDirection]) -> None:
        """Make the Optuna study of a search, unless there is one."""
        # A run may have been killed after it had made the study, and before it had listed it.
        if name not in self.searches or name not in (self.attribute(names.SEARCHES) or {}):
            self.searches[name] = self._study(name, objectives)

    def objectives(self, name: str) -> int:
        """Count the objectives of a search: 1 is Δ_MTL, 2 are Δ_MTL and GFLOPs."""
        return len(self.searches[name].directions)

    def patterns(self, method: str, seed: int) -> optuna.Study:
        """Open the Optuna study of a supernet's configurations that are tried without training."""
        return self._study(names.patterns_name(method, seed), GAIN_AND_COST)

    def _study(self, name: str, objectives: Sequence[StudyDirection]) -> optuna.Study:
        handle = optuna.create_study(
            study_name=f"{self.handle.study_name} {name}",
            storage=self.storage,
            directions=list(objectives),
            load_if_exists=True,
        )
        name_metrics(handle)
        known = self.attribute(names.SEARCHES) or {}
        if name not in known:
            self.keep(names.SEARCHES, {**known, name: len(objectives)})
        return handle

    @functools.cached_property
    def numbers(self) -> set[int]:
        """Numbers of all trials that were ever begun."""
        return {
            trial.user_attrs[names.NUMBER]
            for search in self.searches.values()
            for trial in begun_trials(search)
        }

    @functools.cached_property
    def _next_numbers(self) -> Iterator[int]:
        return itertools.count(max(self.numbers, default=-1) + 1)

    def begin(
        self,
        name: str,
        sampler: optuna.samplers.BaseSampler,
        draw: Callable[[optuna.Trial], Mapping[str, float | str]],
        params: Mapping[str, float | str] | None = None,
    ) -> PendingTrial:
        """Draw the next trial of a search and write it.

        Args:
            name: Name of the search.
            sampler: The sampler of this trial.
            draw: Suggests every parameter on the trial; returns parameter -> value.
            params: Fixed parameters; the sampler draws the others, or all of them when None.
        """
        mirror = self._mirror(name)
        try:
            asked, drawn = ask(mirror, sampler, draw, params)
            frozen = mirror.get_trials(deepcopy=False)[asked.number]
            pending = PendingTrial(
                name,
                next(self._next_numbers),
                drawn,
                asked.number,
                distributions_as_json(frozen.distributions),
            )
            # Some samplers keep their state in the system attributes.
            self._write(pending, frozen.system_attrs)
        except BaseException:
            # The mirror has one trial more than the search; it is built anew when next needed.
            del self._mirrors[name]
            raise
        return pending

    def _write(self, trial: PendingTrial, system_attrs: Mapping[str, Any] | None = None) -> None:
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(trial.params),
            distributions={
                name: json_to_distribution(text) for name, text in trial.drawn_from.items()
            },
            user_attrs={names.NUMBER: trial.number},
            system_attrs=dict(system_attrs or {}),
        )
        search = self.searches[trial.search]
        template.user_attrs[names.BEGUN] = rows_of(search, template).seal_begun(trial.number)
        search.add_trial(template)
        self.numbers.add(trial.number)

    def _mirror(self, name: str) -> optuna.Study:
        """Copy a search into memory without results; its trials have the same indices there."""
        if name not in self._mirrors:
            search = self.searches[name]
            self._mirrors[name] = optuna.create_study(directions=search.directions)
            self._mirrors[name].add_trials(map(without_results, search.get_trials(deepcopy=False)))
        return self._mirrors[name]

    def unfinished(self) -> list[PendingTrial]:
        """List trials of all searches that have no result, in the order in which they began."""
        pending = [
            PendingTrial(
                name,
                trial.user_attrs[names.NUMBER],
                dict(trial.params),
                trial.number,
                distributions_as_json(trial.distributions),
            )
            for name, search in self.searches.items()
            for trial in begun_trials(search)
            if not trial.state.is_finished()
        ]
        return sorted(pending, key=lambda trial: trial.number)

    def adopt(self, trial: PendingTrial, *, objectives: int) -> None:
        """Add a trial that was begun after the backup from which the database was restored.

        Args:
            trial: The trial as described by the files in its folder.
            objectives: Number of objectives of its search.
        """
        self.open_search(trial.search, GAIN_AND_COST[:objectives])
        self._write(trial)
        self._mirrors.pop(trial.search, None)
        self.__dict__.pop("_next_numbers", None)

    def close(self) -> None:
        """Close the connections to the database."""
        close_database(self.storage)

    @property
    def identity(self) -> str:
        """Random identifier of this store, which its jobs carry; see `Job.store`."""
        return str(self.attribute(names.IDENTITY))

    def attribute(self, name: str) -> Any:
        """Return an attribute of the store; None where it was never set."""
        stored = self.handle.user_attrs.get(name)
        return None if stored is None else unseal(name, stored)

    @property
    def _attributes(self) -> dict[str, Any]:
        """All attributes of the store: name -> value."""
        return {name: unseal(name, stored) for name, stored in self.handle.user_attrs.items()}

    def keep(self, name: str, value: Any) -> None:
        """Set an attribute of the store; it is committed before this returns."""
        self.handle.set_user_attr(name, seal(name, value))

    def keep_result(self, result: Result) -> None:
        """Keep the result of a baseline, a start network or a control.

        It replaces an earlier result of the same `names.result_key`.
        """
        self.keep(names.result_key(result), result.to_json())

    def keep_test(
        self,
        result: Result,
        metrics: Mapping[str, float],
        details: Mapping[str, Mapping[str, float]] = MappingProxyType({}),
    ) -> None:
        """Keep the test figures of a baseline, a control or a trial.

        Args:
            result: Its result.
            metrics: Task -> metric on the test part.
            details: Task -> further figures there, by name.
        """
        if result.trial is None:
            self.keep_result(
                replace(
                    result,
                    metrics={**result.metrics, "test": metrics},
                    details={**result.details, "test": details},
                )
            )
            return
        # The metrics last: by these a run tells that it need not measure again.
        if details:
            told = {task: dict(figures) for task, figures in details.items()}
            self.keep(names.test_details_key(result.trial), told)
        self.keep(names.test_key(result.trial), dict(metrics))

    def finish(self, trial: PendingTrial, result: Result, values: Sequence[float] | None) -> None:
        """Write a trial's result, which ends the trial.

        Args:
            trial: The trial.
            result: Its result.
            values: Its objectives, in the order of the search; None where the trial failed or was
                stopped early.
        """
        search, storage = self.searches[trial.search], self.storage
        study = storage.get_study_id_from_name(search.study_name)
        trial_id = storage.get_trial_id_from_study_id_trial_number(study, trial.index)
        state = TrialState.COMPLETE
        if values is None:
            # Optuna's name for a trial that was stopped early.
            state = TrialState.PRUNED if result.state == "stopped" else TrialState.FAIL
        rows = rows_of(search, storage.get_trial(trial_id), state=state, values=values or ())
        rows.attributes[names.VALIDATION] = dict(result.metrics.get("validation", {}))
        sealed = rows.seal_result(trial.number, json.dumps(result.to_json()))
        for name, value in (
            (names.VALIDATION, rows.attributes[names.VALIDATION]),
            (names.RESULT, sealed),
        ):
            storage.set_trial_user_attr(trial_id, name, value)
        for optuna_study in (search, self._mirrors.get(trial.search)):
            if optuna_study is not None:
                told = None if values is not None else state
                optuna_study.tell(trial.index, values, state=told)

    @without_garbage_collection()
    def results(self, name: str) -> list[Result]:
        """List the results of a search, failures included, in the order in which trials began."""
        if name not in self.searches:
            return []
        return [self._result(trial) for trial in ended_trials(self.searches[name])]

    def _result(self, trial: FrozenTrial) -> Result:
        """Parse the result of a trial that ended; once, because it cannot change any more."""
        if trial._trial_id not in self._parsed_results:
            text = trial.user_attrs[names.RESULT]["json"]
            self._parsed_results[trial._trial_id] = Result.from_text(text)
        return self._parsed_results[trial._trial_id]

    @property
    def bases(self) -> list[Result]:
        """Results of the baselines, then of the start networks, then of the controls."""
        return [result for results in self._bases(self._attributes) for result in results]

    @staticmethod
    def _bases(attributes: Mapping[str, Any]) -> tuple[list[Result], list[Result], list[Result]]:
        """Parse the results of (baselines, start networks, controls)."""
        baselines, starts, controls = (
            [
                Result.from_json(value)
                for name, value in attributes.items()
                if name.startswith(f"{kind}/")
            ]
            for kind in (names.BASELINE, names.START, names.CONTROL)
        )
        first = (SINGLE_TASK, MULTI_TASK)
        baselines.sort(
            key=lambda r: (
                r.seed, [r.method != name for name in first], r.method, r.weighting != "uniform",
                r.width,
            )
        )  # fmt: skip
        return baselines, starts, controls

    @without_garbage_collection()
    def methods(self) -> set[str]:
        """Names of the methods that have a result in the store."""
        trials = [t for search in self.searches.values() for t in ended_trials(search)]
        return {result.method for result in (*self.bases, *map(self._result, trials))}

    def keep_definition(self, study: Study) -> None:
        """Keep the definition that all results of the store belong to, and its fingerprint."""
        self.keep(names.FINGERPRINT, study.fingerprint)
        self.keep(names.DEFINITION, study.definition())

    @without_garbage_collection()
    def record(self) -> StudyRecord:
        """Read everything in the store, for reports."""
        attributes = self._attributes
        baselines, starts, controls = self._bases(attributes)
        trials = [
            _with_test_figures(self._result(trial), attributes)
            for name, search in self.searches.items()
            for trial in ended_trials(search)
            if not names.searches_weights(name)
        ]
        ended = {
            trial.user_attrs[names.NUMBER]
            for search in self.searches.values()
            for trial in ended_trials(search)
        }
        predictions = self.folder / PREDICTIONS
        return StudyRecord(
            name=attributes["name"],
            fingerprint=attributes["fingerprint"],
            definition=attributes["definition"],
            protocol=attributes["definition"]["protocol"]["name"],
            published=attributes["definition"]["protocol"]["published"],
            tasks=tuple(map(TaskInfo.from_json, attributes["tasks"])),
            baselines=tuple(baselines),
            trials=tuple(sorted(trials, key=lambda result: result.trial or 0)),
            starts=tuple(starts),
            controls=tuple(controls),
            data=attributes.get("data", {}),
            predictions=predictions if is_regular(predictions) else None,
            untaken=_numbers_of_results(self.folder / "trials", besides=ended),
        )


def _numbers_of_results(trials: Path, *, besides: Collection[int]) -> tuple[int, ...]:
    """List the numbers of trials with a result in their folder, except some."""
    numbers = {int(path.name): path for path in entries_of(trials) if path.name.isdecimal()}
    unknown = sorted(set(numbers) - set(besides))
    return tuple(number for number in unknown if exists(numbers[number] / "result.json"))


def _with_test_figures(result: Result, attributes: Mapping[str, Any]) -> Result:
    number = result.trial or 0
    test = attributes.get(names.test_key(number))
    if not test:
        return result
    details = attributes.get(names.test_details_key(number))
    return replace(
        result,
        metrics={**result.metrics, "test": test},
        details={**result.details, "test": details} if details else result.details,
    )
