"""Train the baselines and trials of a store; keep each result at its end, and do nothing twice."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from gatesearch.events import Emit, Log, NetworkTrained, Progress, Warned
from gatesearch.execution.jobs import SPEC, Job, forget_result, read_result, read_spec
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import failed
from gatesearch.measures import Gain, gain, shown_gflops
from gatesearch.methods import METHODS, NetworkSpec, start_of
from gatesearch.methods.specification import SCALAR, trial_folder
from gatesearch.plugins import loaded_plugins
from gatesearch.results import SINGLE_TASK, Result
from gatesearch.search.plans import SearchPlan, weights_plan
from gatesearch.search.retries import count_retries, failed_configurations
from gatesearch.search.reuse import take_over
from gatesearch.search.space import sampler
from gatesearch.store.status import StatusFile, TrialOutcome
from gatesearch.store.store import PendingTrial, Store
from gatesearch.study import Study
from gatesearch.tasks import Task
from gatesearch.training import Checkpoints, TrainingError
from gatesearch.trials.early_stopping import rivals_of
from gatesearch.trials.kept_networks import copy_network


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


class Search:
    """Trains the baselines and the trials of a store.

    Args:
        store: The store.
        context: Study, tasks and data.
        pool: Runs the jobs.
        status: Writes the progress of the run.
        data: Folder of packs, for workers.
        changed: Called after every change of the store.
        devices: Number of devices that train one network together.
        reuse: Folder of a store whose baselines are taken over; None without one.
        retry_failed: True to try the configurations of failed trials again, as new trials beyond
            the total that was asked for.
    """

    def __init__(
        self,
        store: Store,
        context: SearchContext,
        pool: WorkerPool,
        status: StatusFile,
        *,
        data: Path,
        changed: Callable[[], None],
        devices: int = 1,
        reuse: Path | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.store, self.context, self.pool, self.status = store, context, pool, status
        self.emit: Emit = pool.emit
        self._changed = changed
        self._data, self._devices, self._reuse = data, devices, reuse
        self._retry_failed = retry_failed
        self._bases = store.bases
        self._controls_done = self._controls_wanted = 0

    def known(self, spec: NetworkSpec) -> Result | None:
        """Find the stored result of a baseline, a start or a control; None where there is none."""
        folder = spec.folder(Path())
        return next((r for r in self._bases if NetworkSpec.of(r).folder(Path()) == folder), None)

    def show_earlier(self, searches: Iterable[str]) -> None:
        """Show in the status which trials of these searches earlier runs ended."""
        for name in searches:
            self.status.search(self._outcome(result) for result in self.store.results(name))

    def train_bases(self, methods: Sequence[str], *, seed: int) -> None:
        """Train the baselines that are missing or that failed in the last run.

        Args:
            methods: Methods, single-task networks first; all others are trained under every
                weighting of the study, but those that balance by themselves (`Method.balances`).
            seed: Of all of them.

        Raises:
            TrainingError: The single-task networks failed.
        """
        study, (single_task, *shared) = self.context.study, methods
        balanced = [name for name in study.weightings if name != SCALAR]
        wanted = [NetworkSpec(single_task, seed)]
        weighted = [m for m in shared if m not in METHODS or not METHODS[m].balances]
        wanted += [
            NetworkSpec(method, seed, weighting=weighting)
            for method in shared
            for weighting in (balanced if method in weighted else ["uniform"])
        ]
        wanted += [
            NetworkSpec(method, seed, width=width)
            for width in dict.fromkeys(study.baselines.widths)
            if width != 1
            for method in dict.fromkeys([single_task, *study.baselines.methods])
        ]
        missing = self._missing(wanted)
        self.status.baselines(len(wanted) - len(missing), len(wanted))
        if self._reuse is not None:
            missing = [spec for spec in missing if not self._taken_over(spec, self._reuse)]
        self._train(self._with_starts(missing), stage="baselines")
        self.status.baselines(len(wanted), len(wanted))
        self._warn_of_undefined_gains(seed)
        if SCALAR in study.weightings and seed == study.seed:
            for method in weighted:
                self._search_weights(method)

    def train_controls(self, specs: Sequence[NetworkSpec]) -> None:
        """Train the controls that are missing or that failed in the last run."""
        missing = self._missing(specs)
        self._controls_wanted += len(specs)
        self._count_controls(len(specs) - len(missing))
        self._train(self._with_starts(missing), stage="controls")

    def _count_controls(self, done: int) -> None:
        self._controls_done += done
        self.status.controls(self._controls_done, self._controls_wanted)

    def _missing(self, wanted: Sequence[NetworkSpec]) -> list[NetworkSpec]:
        """List the networks without a complete result, and forget results of those that failed."""
        missing = [s for s in wanted if (r := self.known(s)) is None or r.state != "complete"]
        for spec in missing:
            if self.known(spec) is not None:
                forget_result(self._job(spec))
        return missing

    def run_trials(self, plan: SearchPlan, n_trials: int) -> None:
        """Bring a search to a total number of ended trials.

        First, trials of any search whose results already lie in their folders are finished. Then
        unfinished trials of this search go on, before new ones are drawn.

        Args:
            plan: The search.
            n_trials: Total number of ended trials, earlier ones included.

        Raises:
            StartFailedError: The network that trials start from failed; there are no new trials.
        """
        self.store.open_search(plan.name, plan.objectives)
        self._adopt_unknown_trials()
        self._finish_trained_trials()
        unfinished = [trial for trial in self.store.unfinished() if trial.search == plan.name]
        earlier = self.store.results(plan.name)
        if plan.asked_for:
            self.status.search(self._outcome(result) for result in earlier)
        ended = len(earlier)
        drawn = ended + len(unfinished)
        retried = count_retries(earlier, unfinished)
        again: list[Mapping[str, float | str]] = []
        if self._retry_failed:
            again = failed_configurations(earlier, unfinished, seed=plan.first.seed)
            n_trials = max(n_trials, drawn) + len(again)
        self._progress(plan.stage, ended, n_trials, "trials")
        if ended >= n_trials:
            return
        self._train_starts(plan.first)
        chooser = None if plan.choose is None else plan.choose()
        # Early stopping compares a trial with those before it.
        results = earlier if self.context.study.search.stop != "none" else []
        trials: dict[str, PendingTrial] = {}  # identity of a running job -> its trial

        def begin_more() -> None:
            nonlocal drawn, retried
            while self.pool.free and ended + len(self.pool.jobs) < n_trials:
                if unfinished:
                    trial = unfinished.pop(0)
                    message = f"trial {trial.number} goes on"
                elif again:
                    trial = self._draw(plan, drawn, again.pop(0))
                    message = f"trial {trial.number} tries again: {_shown(trial.params)}"
                    drawn, retried = drawn + 1, retried + 1
                else:
                    index = drawn - retried
                    trial = self._draw(plan, drawn, None if chooser is None else chooser(index))
                    message = f"trial {trial.number}: {_shown(trial.params)}"
                    drawn += 1
                self.emit(Log(message, dict(trial.params)))
                job = self._trial_job(plan, trial, results)
                trials[job.identity] = trial
                self.pool.begin(job)

        begin_more()
        for job, result in self.pool.results():
            result = self._finish(trials.pop(job.identity), result)
            if plan.asked_for:
                self.status.ended(self._outcome(result))
            results.append(result)
            ended += 1
            self._progress(plan.stage, ended, n_trials, "trials")
            begin_more()

    def _search_weights(self, method: str) -> None:
        """Try weights of a method's losses, and keep the best as its baseline `scalar`.

        The training cost of that baseline is that of all trials.
        """
        study = self.context.study
        plan = weights_plan(method, study)
        baseline = self.known(plan.first)
        if baseline is not None and baseline.state == "complete":
            return
        try:
            self.run_trials(plan, study.search.scalar_trials)
        except StartFailedError as error:
            self._keep(self._job(plan.first), failed(plan.first, str(error)))
            return
        tried = self.store.results(plan.name)
        result = self.best(tried) or failed(
            plan.first, f"none of {len(tried)} trials came to an end; the last: {tried[-1].reason}"
        )
        if result.trial is not None:
            out = self.store.folder
            copy_network(result, NetworkSpec.of(result).folder(out), plan.first.folder(out))
        result = _with_cost_of_all(result, tried)
        self._keep(self._job(plan.first), result)
        self._emit_trained(plan.first.label, result, trial=False)

    def _taken_over(self, spec: NetworkSpec, source: Path) -> bool:
        """Try to take over a baseline of another store; tell whether it was."""
        job = self._job(spec)
        result = take_over(job, source, lambda message: self.emit(Log(message)))
        if result is not None:
            _clear_checkpoints(job)
            self._keep(job, result)
            self._emit_trained(f"{spec.label}, from {source}", result, trial=False)
        return result is not None

    def _train(self, missing: Sequence[NetworkSpec], *, stage: str) -> None:
        """Train baselines, start networks or controls, each after the one that it starts from."""
        waiting = list(missing)
        done, total = 0, len(waiting)
        self._progress(stage, done, total, "networks")

        def begin_ready() -> None:
            for spec in list(waiting):
                start = start_of(spec, self.context.study)
                if self.pool.free and (start is None or self.known(start) is not None):
                    waiting.remove(spec)
                    self.pool.begin(self._job(spec))

        begin_ready()
        for job, result in self.pool.results():
            if stage != "start" and job.spec.part and result.state != "complete":
                forget_result(job)
                reason = f"{job.spec.label} of {job.spec.method} failed: {result.reason}"
                self._fail_followers(job.spec, reason, waiting)
            else:
                self._keep(job, result)
            done += 1
            self._progress(stage, done, total, "networks")
            self._emit_trained(job.spec.label, result, trial=False)
            begin_ready()

    def _with_starts(self, specs: Sequence[NetworkSpec]) -> list[NetworkSpec]:
        """Insert before each network the start networks of its method that are not trained yet."""
        chain: list[NetworkSpec] = []
        for spec in specs:
            start = start_of(spec, self.context.study)
            if start is not None and start.part and self.known(start) is None:
                chain += [s for s in self._with_starts([start]) if s not in chain]
            chain.append(spec)
        return chain

    def _fail_followers(self, start: NetworkSpec, reason: str, waiting: list[NetworkSpec]) -> None:
        """Keep as failed the waiting baselines that were to start from a network that failed."""
        for spec in [s for s in waiting if start_of(s, self.context.study) == start]:
            waiting.remove(spec)
            if spec.part:
                self._fail_followers(spec, reason, waiting)
            else:
                self._keep(self._job(spec), failed(spec, reason))

    def _train_starts(self, spec: NetworkSpec) -> None:
        """Train the network that trials start from, after the one that it starts from itself."""
        start = start_of(spec, self.context.study)
        if start is not None and start.part and self.known(start) is None:
            self._train_starts(start)
            self._train([start], stage="start")

    def _keep(self, job: Job, result: Result) -> None:
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
        if result.of is not None:
            self._count_controls(1)
        self._changed()

    def best(self, results: Sequence[Result]) -> Result | None:
        """Choose the result of the highest Δ_MTL on validation, the first of equal ones."""
        gains = [(self._gain(r).percent, r) for r in results if r.state == "complete"]
        defined = [item for item in gains if math.isfinite(item[0])]
        return max(defined, key=lambda item: item[0])[1] if defined else None

    def _draw(
        self, plan: SearchPlan, index: int, params: Mapping[str, float | str] | None
    ) -> PendingTrial:
        study = self.context.study
        parallel = self.pool.size > 1
        trial_sampler = sampler(study.search, seed=study.seed, index=index, parallel=parallel)
        return self.store.begin(plan.name, trial_sampler, plan.draw, params)

    def _finish(self, trial: PendingTrial, result: Result) -> Result:
        """Write a trial's result into the store.

        Returns:
            The result as it is stored: `failed` if its Δ_MTL is undefined.
        """
        values = None
        if result.state == "complete":
            gained = self._gain(result)
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
        self._emit_trained(label, result, trial=True)
        return result

    def _finish_trained_trials(self) -> None:
        """Write results that workers left in their folders after the run's process had ended."""
        for trial in self.store.unfinished():
            job = read_spec(trial_folder(self.store.folder, trial.number) / SPEC)
            result = None if job is None else read_result(job)
            if job is not None and result is not None:
                _clear_checkpoints(job)
                self._finish(trial, result)

    def _adopt_unknown_trials(self) -> None:
        """Add trials that were begun after the backup from which the database was restored."""
        numbers = self.store.numbers
        for path in sorted((self.store.folder / "trials").glob(f"*/{SPEC}")):
            if path.parent.name.isdecimal() and int(path.parent.name) in numbers:
                continue
            job = read_spec(path)
            if job is None or job.store != self.store.identity:
                continue
            number = job.spec.trial
            if number is not None and number not in numbers:
                params = dict(job.spec.params)
                trial = PendingTrial(job.search, number, params, -1, job.drawn_from)
                self.store.adopt(trial, objectives=job.objectives)
                message = f"trial {number} was begun after the backup; its files are taken up"
                self.emit(Log(message, params))

    def _trial_job(self, plan: SearchPlan, trial: PendingTrial, results: Sequence[Result]) -> Job:
        job = self._job(plan.spec(trial))
        job = replace(
            job,
            search=trial.search,
            objectives=len(plan.objectives),
            drawn_from=trial.drawn_from,
        )
        single_task = self.known(NetworkSpec(SINGLE_TASK, job.spec.seed))
        if self.context.study.search.stop == "none" or not plan.asked_for or single_task is None:
            return job
        metrics = single_task.metrics["validation"]
        return replace(job, single_task=metrics, rivals=rivals_of(results))

    def _job(self, spec: NetworkSpec) -> Job:
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

    def _gain(self, result: Result) -> Gain:
        single_task = self.known(NetworkSpec(SINGLE_TASK, result.seed))
        base = None if single_task is None else single_task.metrics.get("validation")
        higher = {name: task.higher_is_better for name, task in self.context.tasks.items()}
        return gain(result.metrics.get("validation"), base, higher)

    def _outcome(self, result: Result) -> TrialOutcome:
        percent = self._gain(result).percent if result.state == "complete" else math.nan
        return TrialOutcome(result.trial or 0, result.state, percent, result.gflops)

    def _warn_of_undefined_gains(self, seed: int) -> None:
        """Warn where the single-task networks leave Δ_MTL of all other networks undefined."""
        single_task = self.known(NetworkSpec(SINGLE_TASK, seed))
        fault = "" if single_task is None else self._gain(single_task).fault
        if fault:
            self.emit(
                Warned(
                    f"Δ_MTL is undefined for every network of this seed: {fault}; all trials will "
                    "fail for it: raise training.epochs or data.validation in a store of its own "
                    "(--out DIR)"
                )
            )

    def _progress(self, stage: str, done: int, total: int, unit: str) -> None:
        if total:
            self.emit(Progress(stage, min(done, total), total, unit))

    def _emit_trained(self, label: str, result: Result, *, trial: bool) -> None:
        metrics = result.metrics.get("validation", {})
        self.emit(NetworkTrained(self._line(label, result), trial, metrics))

    def _line(self, label: str, result: Result) -> str:
        if result.state != "complete":
            return f"{label}: {result.state}: {result.reason}"
        if not result.metrics:  # a part that is no network to compare
            return f"{label}: trained"
        metrics = " ".join(f"{k} {v:.4g}" for k, v in result.metrics.get("validation", {}).items())
        compared = metrics and self.known(NetworkSpec(SINGLE_TASK, result.seed)) is not None
        gained = self._gain(result) if compared else None
        shown = ""
        if gained is not None:
            shown = "undefined, " if gained.fault else f"{gained.percent:+.2f} %, "
            shown = f"Δ_MTL {shown}"
        return f"{label}: {shown}{shown_gflops(result.gflops)} GFLOPs, validation {metrics}"


def _clear_checkpoints(job: Job) -> None:
    """Remove the checkpoints of a training whose result came without `perform`, which does that.

    A worker that was killed just after it had kept its result leaves them, and so does a baseline
    that was cut off and is then taken over from another store.
    """
    Checkpoints(job.folder, identity=job.identity).clear()


def _with_cost_of_all(result: Result, tried: Sequence[Result]) -> Result:
    """Turn the best trial into a baseline whose training cost is that of all trials."""
    return replace(
        result,
        trial=None,
        train_seconds=result.reused_seconds
        + sum(r.train_seconds - r.reused_seconds for r in tried),
        train_images=result.reused_images + sum(r.train_images - r.reused_images for r in tried),
        train_pflops=result.reused_pflops + sum(r.train_pflops - r.reused_pflops for r in tried),
    )


def _shown(params: Mapping[str, float | str]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in params.items()
    )
