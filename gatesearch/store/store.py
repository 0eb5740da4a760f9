"""The store: one Optuna study holds definition, baselines, test figures and the free search.

Baselines and test figures are attributes of the Optuna study, since attributes of finished trials
cannot change. Trials under a budget are in an Optuna study of their own beside it: what is good
under one budget says little of another. Nothing here needs torch.

Optuna commits every parameter that it draws. So trials are drawn in a mirror of their search, in
memory, and written whole: one commit begins a trial.
"""

import contextlib
import functools
import gc
import itertools
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.results import Result, StudyRecord, TaskInfo
from gatesearch.search.space import directions, is_scalar
from gatesearch.store.backup import DATABASE
from gatesearch.store.database import close_database, explained, open_database
from gatesearch.study import Study, completed, differences

PREDICTIONS = "predictions.npz"
_BASELINE = "baseline"
_STARTS = ("warmup", "supernet_warmup", "supernet")
_PATTERNS = "patterns"
_TEST = "test"
_NUMBER = "trial"
_VALIDATION = "validation"
_RESULT = "result"


@dataclass(frozen=True)
class PendingTrial:
    """A trial that was drawn and has no result yet.

    Attributes:
        search: Name of its search.
        number: In the store.
        params: What was drawn.
        handle: Number in its Optuna study.
        drawn_from: Parameter -> distribution as JSON.
    """

    search: str
    number: int
    params: Mapping[str, float | str]
    handle: int
    drawn_from: Mapping[str, str]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking again and again at all that is being read."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


class Store:
    """An opened store, which one process writes to.

    Args:
        folder: The store's folder.
        handle: The main Optuna study in it, of the study's name; the others' names begin with it.
        storage: Where both are.

    Attributes:
        handle: Holds the attributes, and the trials without a budget.
        searches: Name of a search (`search_of`) -> Optuna study of its trials.
    """

    def __init__(self, folder: Path, handle: optuna.Study, storage: RDBStorage) -> None:
        self.folder = folder
        self.handle = handle
        self._storage = storage
        self._read: dict[int, Result] = {}
        self._mirrors: dict[str, optuna.Study] = {}
        prefix = f"{handle.study_name} "
        self.searches = {"": handle} | {
            name.removeprefix(prefix): optuna.load_study(study_name=name, storage=storage)
            for name in sorted(optuna.get_all_study_names(storage))
            if name.startswith(prefix) and not name.startswith(f"{prefix}{_PATTERNS} ")
        }

    def search(self, name: str) -> optuna.Study:
        """The Optuna study of a search."""
        if name not in self.searches:
            self.searches[name] = self._study(name, directions(name))
        return self.searches[name]

    def patterns(self, seed: int) -> optuna.Study:
        """The Optuna study of the gate patterns of a one-shot supernet."""
        return self._study(f"{_PATTERNS} seed {seed}", directions(""))

    def _study(self, name: str, directions: list[StudyDirection]) -> optuna.Study:
        handle = optuna.create_study(
            study_name=f"{self.handle.study_name} {name}",
            storage=self._storage,
            directions=directions,
            load_if_exists=True,
        )
        _name_metrics(handle)
        return handle

    @functools.cached_property
    def numbers(self) -> set[int]:
        """Of all trials that were ever begun."""
        return {
            trial.user_attrs[_NUMBER]
            for search in self.searches.values()
            for trial in _begun(search)
        }

    @functools.cached_property
    def _coming(self) -> Iterator[int]:
        return itertools.count(max(self.numbers, default=-1) + 1)

    def begin(
        self,
        name: str,
        sampler: optuna.samplers.BaseSampler,
        draw: Callable[[optuna.Trial], Mapping[str, float | str]],
        params: Mapping[str, float] | None = None,
    ) -> PendingTrial:
        """Draw the next trial of a search.

        Args:
            name: The search.
            sampler: What draws.
            draw: Suggests every parameter.
            params: What to draw instead.
        """
        mirror = self._mirror(name)
        mirror.sampler = sampler
        try:
            if params is not None:
                mirror.enqueue_trial(dict(params))
            trial = mirror.ask()
            drawn = dict(draw(trial))
            frozen = mirror.get_trials(deepcopy=False)[trial.number]
            begun = PendingTrial(
                name, next(self._coming), drawn, trial.number, _as_json(frozen.distributions)
            )
            # Some samplers keep notes of their own there.
            self._write(begun, frozen.system_attrs)
        except BaseException:
            del self._mirrors[name]  # which has one trial more than the search
            raise
        return begun

    def _write(self, begun: PendingTrial, system_attrs: Mapping[str, Any] | None = None) -> None:
        template = create_trial(
            state=TrialState.RUNNING,
            params=dict(begun.params),
            distributions={
                name: json_to_distribution(text) for name, text in begun.drawn_from.items()
            },
            user_attrs={_NUMBER: begun.number},
            system_attrs=dict(system_attrs or {}),
        )
        self.search(begun.search).add_trial(template)
        self.numbers.add(begun.number)

    def _mirror(self, name: str) -> optuna.Study:
        """What samplers must know of a search, with the numbers that it has there."""
        if name not in self._mirrors:
            search = self.search(name)
            self._mirrors[name] = optuna.create_study(directions=search.directions)
            self._mirrors[name].add_trials(map(_without_results, search.get_trials(deepcopy=False)))
        return self._mirrors[name]

    def unfinished(self) -> list[PendingTrial]:
        """Trials of all searches that were begun and have no result, in the order of beginning."""
        found = [
            PendingTrial(
                name,
                trial.user_attrs[_NUMBER],
                dict(trial.params),
                trial.number,
                _as_json(trial.distributions),
            )
            for name, search in self.searches.items()
            for trial in _begun(search)
            if not trial.state.is_finished()
        ]
        return sorted(found, key=lambda begun: begun.number)

    def adopt(self, begun: PendingTrial) -> None:
        """Take up a trial that an earlier state of the store, put back since, did not know."""
        self._write(begun)
        self._mirrors.pop(begun.search, None)
        self.__dict__.pop("_coming", None)

    def close(self) -> None:
        """Let go of the database."""
        close_database(self._storage)

    def attribute(self, name: str) -> Any:
        """An attribute of the store, None where it was never set."""
        return self.handle.user_attrs.get(name)

    def keep(self, name: str, value: Any) -> None:
        """Set an attribute of the store, at once and durably."""
        self.handle.set_user_attr(name, value)

    def keep_baseline(self, result: Result) -> None:
        """Keep the result of a baseline, in place of an older one of the same name and seed."""
        self.keep(f"{_BASELINE}/{result.method}/{result.weighting}/{result.seed}", result.to_json())

    def keep_start(self, result: Result) -> None:
        """Keep the result of what trials of its seed start from."""
        self.keep(f"{result.part}/{result.seed}", result.to_json())

    def keep_test(self, result: Result, metrics: Mapping[str, float]) -> None:
        """Keep the test figures of a network."""
        if result.trial is None:
            both = {**result.metrics, "test": metrics}
            self.keep_baseline(replace(result, metrics=both))
        else:
            self.keep(f"{_TEST}/{result.trial}", dict(metrics))

    def finish(self, begun: PendingTrial, result: Result, values: list[float] | None) -> None:
        """Tell a trial's result; without values it has failed, or was stopped early."""
        search, storage = self.search(begun.search), self._storage
        study = storage.get_study_id_from_name(search.study_name)
        own = storage.get_trial_id_from_study_id_trial_number(study, begun.handle)
        for name, value in (
            (_VALIDATION, dict(result.metrics.get("validation", {}))),
            (_RESULT, result.to_json()),
        ):
            storage.set_trial_user_attr(own, name, value)
        state = None
        if values is None:
            state = TrialState.PRUNED if result.state == "stopped" else TrialState.FAIL
        for told in (search, self._mirrors.get(begun.search)):
            if told is not None:
                told.tell(begun.handle, values, state=state)

    @_uncollected()
    def results(self, name: str) -> list[Result]:
        """Results of a search, failures included, in the order in which its trials were begun."""
        if name not in self.searches:
            return []
        return [self._result(trial) for trial in _ended(self.searches[name])]

    def _result(self, trial: FrozenTrial) -> Result:
        """Of a trial that ended, which nothing can change; read once."""
        if trial._trial_id not in self._read:
            self._read[trial._trial_id] = Result.from_json(trial.user_attrs[_RESULT])
        return self._read[trial._trial_id]

    @property
    def bases(self) -> list[Result]:
        """Baselines, then what trials start from."""
        baselines, starts = self._bases(self.handle.user_attrs)
        return [*baselines, *starts]

    @staticmethod
    def _bases(attributes: Mapping[str, Any]) -> tuple[list[Result], list[Result]]:
        baselines, starts = (
            [
                Result.from_json(value)
                for kind in kinds
                for name, value in attributes.items()
                if name.startswith(f"{kind}/")
            ]
            for kinds in ((_BASELINE,), _STARTS)
        )
        first = ("stl", "mtl")
        baselines.sort(
            key=lambda r: (
                r.seed, [r.method != name for name in first], r.method, r.weighting != "uniform",
            )
        )  # fmt: skip
        return baselines, starts

    @property
    def one_shot(self) -> bool:
        """Whether something of the one training for the whole front is in it."""
        _, starts = self._bases(self.handle.user_attrs)
        return any(start.part.startswith("supernet") for start in starts)

    def keep_definition(self, study: Study) -> None:
        """Write what all its results belong to."""
        self.keep("fingerprint", study.fingerprint)
        self.keep("definition", study.definition())

    @_uncollected()
    def record(self) -> StudyRecord:
        """Everything in it, for reports."""
        attributes = self.handle.user_attrs
        baselines, starts = self._bases(attributes)
        trials = [
            _tested(self._result(trial), attributes)
            for name, search in self.searches.items()
            for trial in _ended(search)
            if not is_scalar(name)
        ]
        predictions = self.folder / PREDICTIONS
        return StudyRecord(
            name=attributes["name"],
            fingerprint=attributes["fingerprint"],
            definition=attributes["definition"],
            protocol=attributes["definition"]["protocol"]["name"],
            published=attributes["definition"]["protocol"]["published"],
            tasks=tuple(TaskInfo(**task) for task in attributes["tasks"]),
            baselines=tuple(baselines),
            trials=tuple(sorted(trials, key=lambda result: result.trial or 0)),
            starts=tuple(starts),
            data=attributes.get("data", {}),
            predictions=predictions if predictions.is_file() else None,
        )


def open_store(
    study: Study, *, folder: Path, tasks: tuple[TaskInfo, ...], storage: str = ""
) -> Store:
    """Open a study's store, or make it.

    Args:
        study: The definition.
        folder: Holds `study.db`, and everything else where the database is on a server.
        tasks: What a report must know of the tasks; written into a new store.
        storage: `postgresql://...` of a server; empty for SQLite in the folder.

    Raises:
        StudyRefusedError: The store was made with another definition, naming what differs; or it
            is damaged, and left as it is.
        DataError: The folder cannot be written, or the server not be reached.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with explained(folder):
        opened = open_database(folder, storage)
        handle = optuna.create_study(
            study_name=study.name,
            storage=opened,
            directions=directions(""),
            load_if_exists=True,
        )
        store = Store(folder, handle, opened)
        theirs = store.attribute("definition")
        if theirs is None:
            _name_metrics(handle)
            store.keep("name", study.name)
            store.keep("identity", uuid.uuid4().hex)
            store.keep("tasks", [vars(task) for task in tasks])
            store.keep_definition(study)
            return store
    if store.attribute("fingerprint") != study.fingerprint:
        lines = differences(study.definition(), completed(theirs))
        # Options of the one-shot supernet bind nobody before there is one.
        if not store.one_shot:
            lines = [line for line in lines if not line.startswith("one_shot.")]
        if not lines:
            store.keep_definition(study)
            return store
        raise StudyRefusedError(
            f"{folder} was made with another definition (fingerprint "
            f"{store.attribute('fingerprint')}, now {study.fingerprint}); results would not be "
            "comparable. What differs (store -> now):\n  "
            + "\n  ".join(lines)
            + "\nName another folder with --out, where --reuse with this one takes over baselines "
            "that would be trained the same; or go back to the old definition."
        )
    return store


def read_store(folder: Path, *, storage: str = "", name: str = "") -> StudyRecord:
    """Everything in a store, for reports.

    Args:
        folder: The store's folder.
        storage: As for `open_store`.
        name: The study's, where a server holds several.

    Raises:
        UsageError: There is no store in that folder.
        StudyRefusedError: It is damaged, or not one of ours.
    """
    if not storage and not (folder / DATABASE).is_file():
        raise UsageError(f"no store in {folder}; run the study first: gatesearch run --study NAME")
    with explained(folder), contextlib.ExitStack() as stack:
        try:
            opened = open_database(folder, storage)
            stack.callback(close_database, opened)
            # Names of studies have no spaces, those of their searches do.
            names = [n for n in optuna.get_all_study_names(opened) if " " not in n]
            handle = optuna.load_study(study_name=name or "".join(names[:1]), storage=opened)
            return Store(folder, handle, opened).record()
        except KeyError as error:
            raise StudyRefusedError(
                f"{storage or folder / DATABASE} holds no finished set-up of a study ({error} is "
                "missing); run the study again, or name another folder with --out"
            ) from error


def _name_metrics(handle: optuna.Study) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        handle.set_metric_names(["delta_mtl", "gflops"][: len(handle.directions)])


def _as_json(distributions: Mapping[str, BaseDistribution]) -> dict[str, str]:
    return {name: distribution_to_json(drawn) for name, drawn in distributions.items()}


def _without_results(trial: FrozenTrial) -> FrozenTrial:
    """A trial as samplers see it; what has no number was never begun."""
    return create_trial(
        state=trial.state if _NUMBER in trial.user_attrs else TrialState.FAIL,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


@_uncollected()
def _begun(handle: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in handle.get_trials(deepcopy=False) if _NUMBER in trial.user_attrs]


def _ended(handle: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in _begun(handle) if trial.state.is_finished()]


def _tested(result: Result, attributes: Mapping[str, Any]) -> Result:
    test = attributes.get(f"{_TEST}/{result.trial}")
    return replace(result, metrics={**result.metrics, "test": test}) if test else result
