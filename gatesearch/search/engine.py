"""The search itself: jobs begun in order, results told as they come in, nothing done twice."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatesearch.cost import Budget
from gatesearch.results import Result, delta_mtl
from gatesearch.search.bench import Bench, Emit, progress
from gatesearch.search.candidate import Candidate, starts_from
from gatesearch.search.crew import Crew
from gatesearch.search.early import rivals_of
from gatesearch.search.jobs import SPEC, Job, forget_result, read_result
from gatesearch.search.one_shot import Chooser
from gatesearch.search.space import Params, directions, draw, draw_shares, sampler
from gatesearch.search.status import Ended
from gatesearch.search.store import Begun, Store
from gatesearch.training import TrainingError


class Search:
    """Brings a store's baselines and trials about.

    Args:
        store: The store.
        crew: Does the jobs.
        data: Folder of packs, for workers.
        changed: Called behind every change of the store.
        devices: How many train one network together.
    """

    def __init__(
        self,
        store: Store,
        crew: Crew,
        *,
        data: Path,
        changed: Callable[[], None],
        devices: int = 1,
    ) -> None:
        self.store, self.crew, self._changed = store, crew, changed
        self.bench: Bench = crew.bench
        self.emit: Emit = crew.emit
        self._data, self._devices = data, devices
        self._bases = store.bases

    def known(self, candidate: Candidate) -> Result | None:
        """The stored result of a baseline, or of what trials start from."""
        wanted = (candidate.method, candidate.seed, candidate.role)
        for result in self._bases:
            if (result.method, result.seed, result.role) == wanted:
                return result
        return None

    def train_bases(self, methods: tuple[str, ...]) -> None:
        """Train the baselines that are missing, or failed the last time.

        Raises:
            TrainingError: The single-task networks failed.
        """
        seed = self.bench.study.seed
        wanted = [Candidate(method, seed) for method in methods]
        missing = [c for c in wanted if (r := self.known(c)) is None or r.state != "complete"]
        self.crew.board.baselines(len(wanted) - len(missing), len(wanted))
        for candidate in missing:
            if self.known(candidate) is not None:
                forget_result(self._job(candidate))
        self._train(missing, stage="baselines")
        self.crew.board.baselines(len(wanted), len(wanted))

    def _train(self, missing: list[Candidate], *, stage: str) -> None:
        """Train networks that others start from or are compared with, each after its own start."""
        waiting = list(missing)
        done, total = 0, len(waiting)
        progress(self.emit, stage, done, total, "networks")

        def begin_ready() -> None:
            for candidate in list(waiting):
                start = starts_from(candidate, self.bench.study)
                if self.crew.free and (start is None or self.known(start) is not None):
                    waiting.remove(candidate)
                    self.crew.begin(self._job(candidate))

        begin_ready()
        for job, result in self.crew.results():
            self._keep(job, result)
            done += 1
            progress(self.emit, stage, done, total, "networks")
            self.emit({"event": "baseline", "message": self._line(job.candidate.label, result)})
            begin_ready()

    def _keep(self, job: Job, result: Result) -> None:
        label = job.candidate.label
        if result.state != "complete":
            if result.method == "stl" or result.role != "network":
                forget_result(job)
                raise TrainingError(f"{label} failed: {result.reason}")
            self.emit({"event": "warning", "message": f"{label} failed: {result.reason}"})
        keep = self.store.keep_baseline if result.role == "network" else self.store.keep_start
        keep(result)
        self._bases = self.store.bases
        self._changed()

    def _train_starts(self, candidate: Candidate) -> None:
        """What trials start from, and what that starts from, once a seed."""
        start = starts_from(candidate, self.bench.study)
        if start is not None and start.role != "network" and self.known(start) is None:
            self._train_starts(start)
            self._train([start], stage="start")

    def run_trials(
        self,
        name: str,
        n_trials: int,
        *,
        budgets: tuple[Budget, ...],
        choose: Callable[[], Chooser] | None,
    ) -> None:
        """Bring a search to a total of so many trials that came to a result.

        Trials that were begun before go on first, whatever search they belong to if their result
        lies in their folder already.

        Args:
            name: The search.
            n_trials: Its total.
            budgets: Upper bounds on every trial's cost.
            choose: Gives the chooser of a one-shot search, once its supernet is there.
        """
        self.store.drop_undrawn()
        self._adopt_orphans()
        self._tell_results()
        open_trials = [begun for begun in self.store.unfinished() if begun.search == name]
        known = self.store.results(name)
        self.crew.board.search(self._ended(result) for result in known)
        ended = len(known)
        drawn = ended + len(open_trials)
        progress(self.emit, "search", ended, n_trials, "trials")
        if ended >= n_trials:
            return
        first = Candidate("interrogate", self.bench.study.seed, 0, one_shot=choose is not None)
        self._train_starts(first)
        chooser = None if choose is None else choose()
        study = self.bench.study
        results = known if study.search.stop != "none" else []
        begun_by_job: dict[str, Begun] = {}

        def job_of(begun: Begun) -> Job:
            candidate = replace(first, trial=begun.number, params=begun.params, budgets=budgets)
            return self._job(candidate, begun, results)

        def begin_more() -> None:
            nonlocal drawn
            while self.crew.free and ended + len(self.crew.jobs) < n_trials:
                if open_trials:
                    begun = open_trials.pop(0)
                    message = f"trial {begun.number} goes on"
                else:
                    begun = self._draw(name, drawn, None if chooser is None else chooser(drawn))
                    message = f"trial {begun.number}: {_told(begun.params)}"
                    drawn += 1
                self.emit({"event": "log", "message": message, "params": dict(begun.params)})
                job = job_of(begun)
                begun_by_job[job.identity] = begun
                self.crew.begin(job)

        begin_more()
        for job, result in self.crew.results():
            result = self._tell(begun_by_job.pop(job.identity), result)
            self.crew.board.ended(self._ended(result))
            results.append(result)
            ended += 1
            progress(self.emit, "search", ended, n_trials, "trials")
            begin_more()

    def _draw(self, name: str, index: int, params: dict[str, float] | None) -> Begun:
        study = self.bench.study
        own = sampler(study.search, seed=study.seed, index=index, parallel=self.crew.size > 1)

        def drawn(trial: Any) -> Params:
            if params is not None:
                return draw_shares(trial, study.task_names)
            return draw(trial, study.search, study.task_names)

        return self.store.begin(name, own, drawn, params)

    def _tell(self, begun: Begun, result: Result) -> Result:
        """Keep a trial's result: as it is kept, failed where its Δ_MTL is undefined."""
        values = None
        if result.state == "complete":
            gain = self._gain(result)
            values = [gain, result.gflops][: len(directions(begun.search))]
            if not math.isfinite(gain):
                values = None
                reason = "Δ_MTL is undefined: a metric is not a number"
                result = replace(result, state="failed", reason=reason)
        label = f"trial {begun.number}"
        if result.state == "failed":
            self.emit({"event": "warning", "message": f"{label} failed: {result.reason}"})
        self.store.finish(begun, result, values)
        self._changed()
        self.emit({"event": "trial", "message": self._line(label, result)})
        return result

    def _ended(self, result: Result) -> Ended:
        gain = self._gain(result) if result.state == "complete" else math.nan
        return Ended(result.trial or 0, result.state, gain, result.gflops)

    def _tell_results(self) -> None:
        """Tell what workers finished after their coordinator was gone."""
        for begun in self.store.unfinished():
            folder = Candidate("interrogate", 0, begun.number).folder(self.store.folder)
            job = _specified(folder / SPEC)
            result = None if job is None else read_result(job)
            if result is not None:
                self._tell(begun, result)

    def _adopt_orphans(self) -> None:
        """Take up trials that a database put back from a backup does not know yet."""
        known = self.store.numbers
        for path in sorted((self.store.folder / "trials").glob(f"*/{SPEC}")):
            if path.parent.name.isdecimal() and int(path.parent.name) in known:
                continue
            job = _specified(path)
            if job is None or job.store != self.store.attribute("identity"):
                continue
            number = job.candidate.trial
            if number is not None and number not in known:
                params = dict(job.candidate.params)
                self.store.adopt(Begun(job.search, number, params, -1, job.drawn_from))
                message = f"trial {number} was begun after the backup; its files are taken up"
                self.emit({"event": "log", "message": message})

    def _job(
        self,
        candidate: Candidate,
        begun: Begun | None = None,
        results: Sequence[Result] = (),
    ) -> Job:
        study, store = self.bench.study, self.store
        start = starts_from(candidate, study)
        stl = self.known(Candidate("stl", candidate.seed))
        judged = candidate.trial is not None and study.search.stop != "none" and stl is not None
        return Job(
            store=store.attribute("identity"),
            definition=study.definition(),
            candidate=candidate,
            start=None if start is None else self.known(start),
            out=store.folder,
            data=self._data,
            sha256=self.bench.data["sha256"],
            runtime=store.attribute("runtime"),
            execution=study.execution,
            stl=stl.metrics["validation"] if judged and stl is not None else {},
            rivals=rivals_of(results) if judged else (),
            devices=self._devices,
            search="" if begun is None else begun.search,
            drawn_from={} if begun is None else begun.drawn_from,
        )

    def _gain(self, result: Result) -> float:
        stl = self.known(Candidate("stl", result.seed))
        assert stl is not None
        higher = {name: task.higher_is_better for name, task in self.bench.tasks.items()}
        return delta_mtl(result.metrics["validation"], stl.metrics["validation"], higher)

    def _line(self, label: str, result: Result) -> str:
        if result.state != "complete":
            return f"{label}: {result.state}: {result.reason}"
        metrics = " ".join(f"{k} {v:.4g}" for k, v in result.metrics.get("validation", {}).items())
        compared = metrics and self.known(Candidate("stl", result.seed)) is not None
        gain = f"Δ_MTL {self._gain(result):+.2f} %, " if compared else ""
        return f"{label}: {gain}{result.gflops:.3f} GFLOPs, validation {metrics}"


def _told(params: Mapping[str, float | str]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in params.items()
    )


def _specified(path: Path) -> Job | None:
    """A trial's job as its folder has it, wherever the store was moved; None for no such thing."""
    try:
        job = replace(Job.from_json(json.loads(path.read_bytes())), out=path.parents[2])
        return job if job.folder == path.parent else None
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return None
