"""Train the baselines and trials of a store; keep each result at its end, and do nothing twice."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from gatesearch.events import Log, Progress, Warned
from gatesearch.execution.jobs import SPEC, Job, forget_result, read_result, read_spec
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import failed
from gatesearch.methods import METHODS, NetworkSpec, start_of
from gatesearch.methods.specification import SCALAR, trial_folder
from gatesearch.results import SINGLE_TASK, Result
from gatesearch.search.networks import Networks, StartFailedError
from gatesearch.search.plans import SearchPlan, weights_plan
from gatesearch.search.reuse import take_over
from gatesearch.search.trial_search import TrialSearch
from gatesearch.store.status import StatusFile
from gatesearch.store.store import PendingTrial
from gatesearch.training import Checkpoints
from gatesearch.trials.kept_networks import copy_network


class Search:
    """Trains the baselines and the trials of a store.

    Args:
        networks: Networks of the store.
        pool: Runs the jobs.
        status: Writes the progress of the run.
        reuse: Folder of a store whose baselines are taken over; None without one.
        retry_failed: True to try the configurations of failed trials again, as new trials beyond
            the total that was asked for.
    """

    def __init__(
        self,
        networks: Networks,
        pool: WorkerPool,
        status: StatusFile,
        *,
        reuse: Path | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.networks, self.pool, self.status = networks, pool, status
        self._store, self._study, self._emit = networks.store, networks.context.study, networks.emit
        self._reuse, self._retry_failed = reuse, retry_failed
        self._counts = {"baselines": _Count(status.baselines), "controls": _Count(status.controls)}

    def show_earlier(self, searches: Iterable[str]) -> None:
        """Show in the status which trials of these searches earlier runs ended."""
        results = [result for name in searches for result in self._store.results(name)]
        self.status.search(map(self.networks.outcome, results))

    def train_bases(self, methods: Sequence[str], *, seeds: Sequence[int]) -> None:
        """Train the baselines that are missing or that failed in the last run.

        Args:
            methods: Methods, single-task networks first; all others are trained under every
                weighting of the study, but those that balance by themselves (`Method.balances`).
            seeds: Each method is trained with each of them; all those of the first come first.

        Raises:
            TrainingError: The single-task networks failed.
        """
        single_task, *shared = methods
        weighted = [m for m in shared if m not in METHODS or not METHODS[m].balances]
        wanted = [
            spec for seed in seeds for spec in self._bases(single_task, shared, weighted, seed)
        ]
        missing = self._missing(wanted)
        self._counts["baselines"].want(wanted, missing)
        if self._reuse is not None:
            missing = [spec for spec in missing if not self._taken_over(spec, self._reuse)]
        self._train(self.networks.with_starts(missing), stage="baselines")
        for seed in seeds:
            self._warn_of_undefined_gains(seed)
        if SCALAR in self._study.weightings and self._study.seed in seeds:
            self._search_weights(weighted)

    def _bases(
        self, single_task: str, shared: Sequence[str], weighted: Sequence[str], seed: int
    ) -> list[NetworkSpec]:
        """List the baselines of a seed: of every weighting of those weighted, of every width."""
        study = self._study
        balanced = [name for name in study.weightings if name != SCALAR]
        return [
            NetworkSpec(single_task, seed),
            *(
                NetworkSpec(method, seed, weighting=weighting)
                for method in shared
                for weighting in (balanced if method in weighted else ["uniform"])
            ),
            *(
                NetworkSpec(method, seed, width=width)
                for width in dict.fromkeys(study.baselines.widths)
                if width != 1
                for method in dict.fromkeys([single_task, *study.baselines.methods])
            ),
        ]

    def train_controls(self, specs: Sequence[NetworkSpec]) -> None:
        """Train the controls that are missing or that failed in the last run."""
        missing = self._missing(specs)
        self._counts["controls"].want(specs, missing)
        self._train(self.networks.with_starts(missing), stage="controls")

    def _missing(self, wanted: Sequence[NetworkSpec]) -> list[NetworkSpec]:
        """List the networks without a complete result, and forget results of those that failed."""
        missing = [
            s for s in wanted if (r := self.networks.known(s)) is None or r.state != "complete"
        ]
        for spec in missing:
            if self.networks.known(spec) is not None:
                forget_result(self.networks.job(spec))
        return missing

    def run_trials(self, plans: Sequence[SearchPlan]) -> dict[str, StartFailedError]:
        """Bring searches to their total numbers of ended trials.

        First, trials of any search whose results already lie in their folders are finished. A
        search begins jobs as long as workers are free and none before it has one to begin.

        Args:
            plans: The searches.

        Returns:
            Name of a search -> the error that left it without new trials: the network that they
            start from failed.
        """
        for plan in plans:
            self._store.open_search(plan.name, plan.objectives)
        self._adopt_unknown_trials()
        self._finish_trained_trials()
        asked_for = [plan.name for plan in plans if plan.asked_for]
        if asked_for:
            self.show_earlier(asked_for)
        searches = [
            TrialSearch(
                plan,
                self.networks,
                self.status,
                parallel=self.pool.size > 1,
                retry_failed=self._retry_failed,
            )
            for plan in plans
        ]
        running: dict[str, TrialSearch] = {}  # identity of a running job -> its search

        def begin_more() -> None:
            for search in searches:
                while self.pool.free and (job := search.next_job()) is not None:
                    running[job.identity] = search
                    self.pool.begin(job)

        begin_more()
        for job, result in self.pool.results():
            search = running.pop(job.identity)
            search.end(job, result)
            if search.failure is not None and len(searches) > 1:
                name = search.plan.first.method
                self._emit(Warned(f"{search.failure}; '{name}' has no new trials"))
            begin_more()
        return {s.plan.name: s.failure for s in searches if s.failure is not None}

    def _search_weights(self, methods: Sequence[str]) -> None:
        """Try weights of the losses of methods, and keep the best of each as baseline `scalar`.

        The training cost of such a baseline is that of all its trials.
        """
        plans = [weights_plan(method, self._study) for method in methods]
        known = [self.networks.known(plan.first) for plan in plans]
        plans = [
            plan
            for plan, baseline in zip(plans, known, strict=True)
            if baseline is None or baseline.state != "complete"
        ]
        failures = self.run_trials(plans)
        for plan in plans:
            job = self.networks.job(plan.first)
            if plan.name in failures:
                self._keep(job, failed(plan.first, str(failures[plan.name])))
                continue
            tried = self._store.results(plan.name)
            result = self.networks.best(tried) or failed(
                plan.first,
                f"none of {len(tried)} trials came to an end; the last: {tried[-1].reason}",
            )
            if result.trial is not None:
                out = self._store.folder
                copy_network(result, NetworkSpec.of(result).folder(out), plan.first.folder(out))
            result = _with_cost_of_all(result, tried)
            self._keep(job, result)
            self.networks.tell(plan.first.label, result, trial=False)

    def _taken_over(self, spec: NetworkSpec, source: Path) -> bool:
        """Try to take over a baseline of another store; tell whether it was."""
        job = self.networks.job(spec)
        result = take_over(job, source, lambda message: self._emit(Log(message)))
        if result is not None:
            _clear_checkpoints(job)
            self._keep(job, result)
            self.networks.tell(f"{spec.label}, from {source}", result, trial=False)
        return result is not None

    def _train(self, missing: Sequence[NetworkSpec], *, stage: str) -> None:
        """Train baselines or controls, each after the one that it starts from."""
        waiting = list(missing)
        done, total = 0, len(waiting)
        self._progress(stage, done, total)

        def begin_ready() -> None:
            for spec in list(waiting):
                start = start_of(spec, self._study)
                if self.pool.free and (start is None or self.networks.known(start) is not None):
                    waiting.remove(spec)
                    self.pool.begin(self.networks.job(spec))

        begin_ready()
        for job, result in self.pool.results():
            if job.spec.part and result.state != "complete":
                forget_result(job)
                reason = f"{job.spec.label} failed: {result.reason}"
                self._fail_followers(job.spec, reason, waiting)
            else:
                self._keep(job, result)
            done += 1
            self._progress(stage, done, total)
            self.networks.tell(job.spec.label, result, trial=False)
            begin_ready()

    def _fail_followers(self, start: NetworkSpec, reason: str, waiting: list[NetworkSpec]) -> None:
        """Keep as failed the waiting baselines that were to start from a network that failed."""
        for spec in [s for s in waiting if start_of(s, self._study) == start]:
            waiting.remove(spec)
            if spec.part:
                self._fail_followers(spec, reason, waiting)
            else:
                self._keep(self.networks.job(spec), failed(spec, reason))

    def _keep(self, job: Job, result: Result) -> None:
        self.networks.keep(job, result)
        if result.of is not None:
            self._counts["controls"].end()
        elif not result.part and result.weighting != SCALAR:
            self._counts["baselines"].end()

    def _finish_trained_trials(self) -> None:
        """Write results that workers left in their folders after the run's process had ended."""
        for trial in self._store.unfinished():
            job = read_spec(trial_folder(self._store.folder, trial.number) / SPEC)
            result = None if job is None else read_result(job)
            if job is not None and result is not None:
                _clear_checkpoints(job)
                self.networks.keep_trial(trial, result)

    def _adopt_unknown_trials(self) -> None:
        """Add trials that were begun after the backup from which the database was restored."""
        numbers = self._store.numbers
        for path in sorted((self._store.folder / "trials").glob(f"*/{SPEC}")):
            if path.parent.name.isdecimal() and int(path.parent.name) in numbers:
                continue
            job = read_spec(path)
            if job is None or job.store != self._store.identity:
                continue
            number = job.spec.trial
            if number is not None and number not in numbers:
                params = dict(job.spec.params)
                trial = PendingTrial(job.search, number, params, -1, job.drawn_from)
                self._store.adopt(trial, objectives=job.objectives)
                message = f"trial {number} was begun after the backup; its files are taken up"
                self._emit(Log(message, params))

    def _warn_of_undefined_gains(self, seed: int) -> None:
        """Warn where the single-task networks leave Δ_MTL of all other networks undefined."""
        single_task = self.networks.known(NetworkSpec(SINGLE_TASK, seed))
        fault = "" if single_task is None else self.networks.gain(single_task).fault
        if fault:
            self._emit(
                Warned(
                    f"Δ_MTL is undefined for every network of this seed: {fault}; all trials will "
                    "fail for it: raise training.epochs or data.validation in a store of its own "
                    "(--out DIR)"
                )
            )

    def _progress(self, stage: str, done: int, total: int) -> None:
        if total:
            self._emit(Progress(stage, min(done, total), total, "networks"))


class _Count:
    """Counts the baselines or controls that have ended, for the status."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self._tell = tell
        self._done = self._wanted = 0

    def want(self, specs: Sequence[NetworkSpec], missing: Sequence[NetworkSpec]) -> None:
        """Add networks, of which only those missing are still to be trained."""
        self._wanted += len(specs)
        self._done += len(specs) - len(missing)
        self._tell(self._done, self._wanted)

    def end(self) -> None:
        """Count one that has ended."""
        self._done += 1
        self._tell(self._done, self._wanted)


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
