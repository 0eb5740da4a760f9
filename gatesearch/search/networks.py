"""The networks of a store while a run trains them: jobs, results, and what is told of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gatesearch.events import Emit, NetworkTrained, Warned
from gatesearch.execution.jobs import Job, forget_result
from gatesearch.measures import Gain, gain, shown_gflops
from gatesearch.methods import NetworkSpec, start_of
from gatesearch.plugins import loaded_plugins
from gatesearch.results import SINGLE_TASK, Result
from gatesearch.store.status import TrialOutcome
from gatesearch.store.store import PendingTrial, Store
from gatesearch.study import Study
from gatesearch.tasks import Task
from gatesearch.training import TrainingError


class StartFailedError(TrainingError):
    """The network that all trials of a method start from failed."""


class SearchContext(Protocol):
    """What a search knows of the networks that are trained for it; see `Context`."""

    @property
    def study(self) -> Study:
        """The definition."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Task name -> task."""

    @property
    def data(self) -> Mapping[str, object]:
        """Description of the data, with their SHA-256 as `sha256`."""


class Networks:
    """Knows the networks of a store, describes jobs that train more, and keeps their results.

    Args:
        store: The store.
        context: Study, tasks and data.
        emit: Receives events.
        data: Folder of packs, for workers.
        changed: Called after every change of the store.
        devices: Number of devices that train one network together.
    """

    def __init__(
        self,
        store: Store,
        context: SearchContext,
        emit: Emit,
        *,
        data: Path,
        changed: Callable[[], None],
        devices: int = 1,
    ) -> None:
        self.store, self.context, self.emit = store, context, emit
        self._data, self._changed, self._devices = data, changed, devices
        self._bases = store.bases

    def known(self, spec: NetworkSpec) -> Result | None:
        """Find the stored result of a baseline, a start or a control; None where there is none."""
        folder = spec.folder(Path())
        return next((r for r in self._bases if NetworkSpec.of(r).folder(Path()) == folder), None)

    def job(self, spec: NetworkSpec) -> Job:
        """Describe the training of a network."""
        study, store = self.context.study, self.store
        start = start_of(spec, study)
        return Job(
            store=store.identity,
            definition=study.definition(),
            spec=spec,
            start=None if start is None else self.known(start),
            out=store.folder,
            data=self._data,
            sha256=str(self.context.data["sha256"]),
            runtime=store.attribute("runtime"),
            execution=study.execution,
            devices=self._devices,
            study_folder="" if study.folder is None else str(study.folder),
            plugins=loaded_plugins(),
        )

    def with_starts(self, specs: Sequence[NetworkSpec]) -> list[NetworkSpec]:
        """Insert before each network the start networks of its method that are not trained yet."""
        chain: list[NetworkSpec] = []
        for spec in specs:
            start = start_of(spec, self.context.study)
            if start is not None and start.part and self.known(start) is None:
                chain += [s for s in self.with_starts([start]) if s not in chain]
            chain.append(spec)
        return chain

    def keep(self, job: Job, result: Result) -> None:
        """Keep the result of a baseline, a start network or a control in the store.

        Raises:
            TrainingError: The single-task networks failed.
            StartFailedError: A start network failed.
        """
        label = job.spec.label
        if result.state != "complete":
            if (result.method == SINGLE_TASK and result.width == 1) or result.part:
                forget_result(job)
                error = StartFailedError if result.part else TrainingError
                raise error(f"{label} failed: {result.reason}")
            self.emit(Warned(f"{label} failed: {result.reason}"))
        self.store.keep_result(result)
        self._bases = self.store.bases
        self._changed()

    def keep_trial(self, trial: PendingTrial, result: Result) -> Result:
        """Keep the result of a trial in the store, and tell of it.

        Returns:
            The result as it is stored: `failed` if its Δ_MTL is undefined.
        """
        values = None
        if result.state == "complete":
            gained = self.gain(result)
            values = [gained.percent, result.gflops][: self.store.objectives(trial.search)]
            if gained.fault:
                values = None
                reason = f"Δ_MTL is undefined: {gained.fault}"
                result = replace(result, state="failed", reason=reason)
        label = f"trial {trial.number}"
        if result.state == "failed":
            self.emit(Warned(f"{label} failed: {result.reason}"))
        self.store.finish(trial, result, values)
        self._changed()
        self.tell(label, result, trial=True)
        return result

    def gain(self, result: Result) -> Gain:
        """Compute Δ_MTL on the validation part against the single-task networks of its seed."""
        single_task = self.known(NetworkSpec(SINGLE_TASK, result.seed))
        base = None if single_task is None else single_task.metrics.get("validation")
        higher = {name: task.higher_is_better for name, task in self.context.tasks.items()}
        return gain(result.metrics.get("validation"), base, higher)

    def best(self, results: Sequence[Result]) -> Result | None:
        """Choose the result of the highest Δ_MTL on validation, the first of equal ones."""
        gains = [(self.gain(r).percent, r) for r in results if r.state == "complete"]
        defined = [item for item in gains if math.isfinite(item[0])]
        return max(defined, key=lambda item: item[0])[1] if defined else None

    def outcome(self, result: Result) -> TrialOutcome:
        """Return what the status shows of a trial."""
        percent = self.gain(result).percent if result.state == "complete" else math.nan
        return TrialOutcome(result.trial or 0, result.state, percent, result.gflops)

    def tell(self, label: str, result: Result, *, trial: bool) -> None:
        """Emit that a network has been trained, with its figures on the validation part."""
        metrics = result.metrics.get("validation", {})
        self.emit(NetworkTrained(self._line(label, result), trial, metrics))

    def _line(self, label: str, result: Result) -> str:
        if result.state != "complete":
            return f"{label}: {result.state}: {result.reason}"
        if not result.metrics:  # a part that is no network to compare
            return f"{label}: trained"
        metrics = " ".join(f"{k} {v:.4g}" for k, v in result.metrics.get("validation", {}).items())
        compared = metrics and self.known(NetworkSpec(SINGLE_TASK, result.seed)) is not None
        gained = self.gain(result) if compared else None
        shown = ""
        if gained is not None:
            shown = "undefined, " if gained.fault else f"{gained.percent:+.2f} %, "
            shown = f"Δ_MTL {shown}"
        return f"{label}: {shown}{shown_gflops(result.gflops)} GFLOPs, validation {metrics}"
