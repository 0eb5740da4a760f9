"""One search of a run: which network it trains next, and what its results lead to."""

from collections.abc import Mapping
from dataclasses import replace

from gatesearch.events import Log, Progress
from gatesearch.execution.jobs import Job
from gatesearch.methods import NetworkSpec
from gatesearch.results import SINGLE_TASK, Result
from gatesearch.search.networks import Networks, StartFailedError
from gatesearch.search.plans import Chooser, SearchPlan
from gatesearch.search.retries import count_retries, failed_configurations
from gatesearch.search.space import sampler
from gatesearch.store.status import StatusFile
from gatesearch.store.store import PendingTrial
from gatesearch.trials.early_stopping import rivals_of


class TrialSearch:
    """Brings a search to its total number of ended trials, one job after the other.

    Networks that its trials start from are trained first. Then unfinished trials of earlier runs go
    on, before new ones are drawn.

    Args:
        plan: The search, which the store has opened.
        networks: Networks of the store.
        status: Told of trials that end.
        parallel: Whether further trials are drawn while others are trained.
        retry_failed: True to try the configurations of failed trials again, as new trials beyond
            the total.

    Attributes:
        plan: The search.
        failure: The error that ended it: a network that its trials start from failed.
    """

    def __init__(
        self,
        plan: SearchPlan,
        networks: Networks,
        status: StatusFile,
        *,
        parallel: bool,
        retry_failed: bool,
    ) -> None:
        self.plan = plan
        self.failure: StartFailedError | None = None
        self._networks, self._status, self._parallel = networks, status, parallel
        store = networks.store
        earlier = store.results(plan.name)
        self._unfinished = [trial for trial in store.unfinished() if trial.search == plan.name]
        self._ended, self._drawn = len(earlier), len(earlier) + len(self._unfinished)
        self._retried = count_retries(earlier, self._unfinished)
        self._again: list[Mapping[str, float | str]] = []
        self._wanted = plan.n_trials
        if retry_failed:
            self._again = failed_configurations(earlier, self._unfinished, seed=plan.first.seed)
            self._wanted = max(plan.n_trials, self._drawn) + len(self._again)
        self._starts = networks.with_starts([plan.first])[:-1] if self._missing else []
        self._trials: dict[str, PendingTrial] = {}  # identity of a running job -> its trial
        self._start_runs = False
        self._chooser: Chooser | None = None
        # Early stopping compares a trial with those before it.
        self._results = earlier if networks.context.study.search.stop != "none" else []
        self._progress()

    @property
    def _missing(self) -> int:
        """Number of trials that have not ended."""
        return max(0, self._wanted - self._ended)

    def next_job(self) -> Job | None:
        """Return the next job; None while a network that it needs is trained, and at the end."""
        if self.failure is not None or self._start_runs:
            return None
        if self._starts:
            self._networks.emit(Progress("start", 0, 1, "networks"))
            self._start_runs = True
            return self._networks.job(self._starts[0])
        if len(self._trials) >= self._missing:
            return None
        trial = self._next_trial()
        job = self._trial_job(trial)
        self._trials[job.identity] = trial
        return job

    def end(self, job: Job, result: Result) -> None:
        """Keep the result of a job in the store."""
        trial = self._trials.pop(job.identity, None)
        if trial is None:
            self._end_start(job, result)
            return
        result = self._networks.keep_trial(trial, result)
        if self.plan.asked_for:
            self._status.ended(self._networks.outcome(result))
        self._results.append(result)
        self._ended += 1
        self._progress()

    def _end_start(self, job: Job, result: Result) -> None:
        self._start_runs = False
        try:
            self._networks.keep(job, result)
        except StartFailedError as error:
            self.failure = error
            return
        self._starts.pop(0)
        self._networks.emit(Progress("start", 1, 1, "networks"))
        self._networks.tell(job.spec.label, result, trial=False)

    def _next_trial(self) -> PendingTrial:
        """Choose the next trial, and tell of it."""
        if self._unfinished:
            trial = self._unfinished.pop(0)
            message = f"trial {trial.number} goes on"
        elif self._again:
            self._retried += 1
            trial = self._draw(self._again.pop(0))
            message = f"trial {trial.number} tries again: {_shown(trial.params)}"
        else:
            trial = self._draw(self._chosen())
            message = f"trial {trial.number}: {_shown(trial.params)}"
        self._networks.emit(Log(message, dict(trial.params)))
        return trial

    def _chosen(self) -> Mapping[str, float | str] | None:
        """Return the parameters that the next trial must try; None where it draws them."""
        if self.plan.choose is None:
            return None
        if self._chooser is None:
            self._chooser = self.plan.choose()
        return self._chooser(self._drawn - self._retried)

    def _draw(self, params: Mapping[str, float | str] | None) -> PendingTrial:
        study = self._networks.context.study
        trial_sampler = sampler(
            study.search, seed=study.seed, index=self._drawn, parallel=self._parallel
        )
        self._drawn += 1
        return self._networks.store.begin(self.plan.name, trial_sampler, self.plan.draw, params)

    def _trial_job(self, trial: PendingTrial) -> Job:
        networks, study = self._networks, self._networks.context.study
        job = networks.job(self.plan.spec(trial))
        job = replace(
            job,
            search=trial.search,
            objectives=len(self.plan.objectives),
            drawn_from=trial.drawn_from,
        )
        single_task = networks.known(NetworkSpec(SINGLE_TASK, job.spec.seed))
        if study.search.stop == "none" or not self.plan.asked_for or single_task is None:
            return job
        metrics = single_task.metrics["validation"]
        return replace(job, single_task=metrics, rivals=rivals_of(self._results))

    def _progress(self) -> None:
        if self._wanted:
            done = min(self._ended, self._wanted)
            self._networks.emit(Progress(self.plan.stage, done, self._wanted, "trials"))


def _shown(params: Mapping[str, float | str]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in params.items()
    )
