"""The search itself: jobs begun in order, results told as they come in, nothing done twice."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from gatesearch.execution.jobs import SPEC, Job, forget_result, read_result, read_spec
from gatesearch.execution.pool import WorkerPool
from gatesearch.execution.worker import failed
from gatesearch.measures import delta_mtl
from gatesearch.methods.context import Context, Emit, progress
from gatesearch.methods.early_stopping import rivals_of
from gatesearch.methods.specification import NetworkSpec, start_of
from gatesearch.results import Result
from gatesearch.search.reuse import take_over
from gatesearch.search.space import (
    SCALAR,
    Params,
    directions,
    draw_weights,
    sampler,
    scalar_search,
)
from gatesearch.store.status import TrialOutcome
from gatesearch.store.store import PendingTrial, Store
from gatesearch.training import TrainingError
from gatesearch.trials.kept_networks import copy_network


@dataclass(frozen=True)
class SearchPlan:
    """One search of a store: what its trials have in common, and how they are drawn.

    Attributes:
        name: In the store.
        first: A trial without its own: number, parameters, weighting.
        draw: Suggests every parameter.
        choose: Gives what is drawn instead by index of the trial, once what trials start from is
            there.
        counted: Whether its trials are those that the run was asked for.
    """

    name: str
    first: NetworkSpec
    draw: Callable[[optuna.Trial], Params]
    choose: Callable[[], Callable[[int], Mapping[str, float] | None]] | None = None
    counted: bool = True

    @property
    def stage(self) -> str:
        """What its progress is called."""
        return "search" if self.counted else self.name

    def candidate(self, begun: PendingTrial) -> NetworkSpec:
        """What a trial trains."""
        weighting = str(begun.params.get("weighting", self.first.weighting))
        return replace(self.first, trial=begun.number, params=begun.params, weighting=weighting)


class Search:
    """Brings a store's baselines and trials about.

    Args:
        store: The store.
        crew: Does the jobs.
        data: Folder of packs, for workers.
        changed: Called behind every change of the store.
        devices: How many train one network together.
        reuse: Folder of a store whose baselines are taken over.
    """

    def __init__(
        self,
        store: Store,
        crew: WorkerPool,
        *,
        data: Path,
        changed: Callable[[], None],
        devices: int = 1,
        reuse: Path | None = None,
    ) -> None:
        self.store, self.crew, self._changed = store, crew, changed
        self.bench: Context = crew.bench
        self.emit: Emit = crew.emit
        self._data, self._devices, self._reuse = data, devices, reuse
        self._bases = store.bases

    def known(self, candidate: NetworkSpec) -> Result | None:
        """The stored result of a baseline, or of what trials start from."""
        wanted = (candidate.method, candidate.seed, candidate.part, candidate.weighting)
        for result in self._bases:
            if (result.method, result.seed, result.part, result.weighting) == wanted:
                return result
        return None

    def train_bases(self, methods: Sequence[str]) -> None:
        """Train the baselines that are missing, or failed the last time.

        Args:
            methods: Single-task networks first; all others are trained under every weighting of
                the study.

        Raises:
            TrainingError: The single-task networks failed.
        """
        study, (stl, *shared) = self.bench.study, methods
        seed = study.seed
        balanced = [name for name in study.weightings if name != SCALAR]
        wanted = [NetworkSpec(stl, seed)]
        wanted += [NetworkSpec(method, seed, weighting=w) for method in shared for w in balanced]
        missing = [c for c in wanted if (r := self.known(c)) is None or r.state != "complete"]
        self.crew.board.baselines(len(wanted) - len(missing), len(wanted))
        for candidate in missing:
            if self.known(candidate) is not None:
                forget_result(self._job(candidate))
        if self._reuse is not None:
            missing = [c for c in missing if not self._taken_over(c, self._reuse)]
        self._train(missing, stage="baselines")
        self.crew.board.baselines(len(wanted), len(wanted))
        if SCALAR in study.weightings:
            for method in shared:
                self.search_weights(method)

    def _taken_over(self, candidate: NetworkSpec, source: Path) -> bool:
        job = self._job(candidate)
        result = take_over(
            job, source, lambda message: self.emit({"event": "log", "message": message})
        )
        if result is not None:
            self._keep(job, result)
            line = self._line(f"{candidate.label}, from {source}", result)
            self.emit({"event": "baseline", "message": line})
        return result is not None

    def _train(self, missing: list[NetworkSpec], *, stage: str) -> None:
        """Train networks that others start from or are compared with, each after its own start."""
        waiting = list(missing)
        done, total = 0, len(waiting)
        progress(self.emit, stage, done, total, "networks")

        def begin_ready() -> None:
            for candidate in list(waiting):
                start = start_of(candidate, self.bench.study)
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
            if result.method == "stl" or result.part:
                forget_result(job)
                raise TrainingError(f"{label} failed: {result.reason}")
            self.emit({"event": "warning", "message": f"{label} failed: {result.reason}"})
        keep = self.store.keep_baseline if not result.part else self.store.keep_start
        keep(result)
        self._bases = self.store.bases
        self._changed()

    def _train_starts(self, candidate: NetworkSpec) -> None:
        """What trials start from, and what that starts from, once a seed."""
        start = start_of(candidate, self.bench.study)
        if start is not None and start.role != "network" and self.known(start) is None:
            self._train_starts(start)
            self._train([start], stage="start")

    def search_weights(self, method: str) -> None:
        """Try weights of a method's losses, and keep the best as its baseline `scalar`.

        The training cost of that baseline is that of all tries.
        """
        study = self.bench.study
        first = NetworkSpec(method, study.seed, weighting=SCALAR)
        known = self.known(first)
        if known is not None and known.state == "complete":
            return
        low, high = study.search.scalar
        plain = {f"weight.{task}": 1.0 for task in study.task_names}
        hunt = SearchPlan(
            scalar_search(method, study.seed),
            first,
            lambda trial: draw_weights(trial, study.search, study.task_names),
            choose=lambda: lambda index: plain if index == 0 and low <= 1 <= high else None,
            counted=False,
        )
        self.run_trials(hunt, study.search.scalar_trials)
        tried = self.store.results(hunt.name)
        result = self._best(tried) or failed(
            first, f"none of {len(tried)} trials came to an end; see their reasons above"
        )
        if result.trial is not None:
            out = self.store.folder
            copy_network(NetworkSpec.of(result).folder(out), first.folder(out))
        spent: dict[str, Any] = {
            f"train_{unit}": getattr(result, f"reused_{unit}")
            + sum(getattr(r, f"train_{unit}") - getattr(r, f"reused_{unit}") for r in tried)
            for unit in ("seconds", "images", "pflops")
        }
        result = replace(result, trial=None, **spent)
        self._keep(self._job(first), result)
        self.emit({"event": "baseline", "message": self._line(first.label, result)})

    def _best(self, results: Sequence[Result]) -> Result | None:
        """Of the highest Δ_MTL on validation, the first of equals."""
        gains = [(self._gain(r), r) for r in results if r.state == "complete"]
        defined = [item for item in gains if math.isfinite(item[0])]
        return max(defined, key=lambda item: item[0])[1] if defined else None

    def run_trials(self, hunt: SearchPlan, n_trials: int) -> None:
        """Bring a search to a total of so many trials that came to a result.

        Trials that were begun before go on first, whatever search they belong to if their result
        lies in their folder already.

        Args:
            hunt: The search.
            n_trials: Its total.
        """
        self._adopt_orphans()
        self._tell_results()
        open_trials = [begun for begun in self.store.unfinished() if begun.search == hunt.name]
        known = self.store.results(hunt.name)
        if hunt.counted:
            self.crew.board.search(self._ended(result) for result in known)
        ended = len(known)
        drawn = ended + len(open_trials)
        progress(self.emit, hunt.stage, ended, n_trials, "trials")
        if ended >= n_trials:
            return
        self._train_starts(hunt.first)
        chooser = None if hunt.choose is None else hunt.choose()
        results = known if self.bench.study.search.stop != "none" else []
        begun_by_job: dict[str, PendingTrial] = {}

        def begin_more() -> None:
            nonlocal drawn
            while self.crew.free and ended + len(self.crew.jobs) < n_trials:
                if open_trials:
                    begun = open_trials.pop(0)
                    message = f"trial {begun.number} goes on"
                else:
                    begun = self._draw(hunt, drawn, None if chooser is None else chooser(drawn))
                    message = f"trial {begun.number}: {_told(begun.params)}"
                    drawn += 1
                self.emit({"event": "log", "message": message, "params": dict(begun.params)})
                job = self._job(hunt.candidate(begun), begun, results)
                begun_by_job[job.identity] = begun
                self.crew.begin(job)

        begin_more()
        for job, result in self.crew.results():
            result = self._tell(begun_by_job.pop(job.identity), result)
            if hunt.counted:
                self.crew.board.ended(self._ended(result))
            results.append(result)
            ended += 1
            progress(self.emit, hunt.stage, ended, n_trials, "trials")
            begin_more()

    def _draw(
        self, hunt: SearchPlan, index: int, params: Mapping[str, float] | None
    ) -> PendingTrial:
        study = self.bench.study
        own = sampler(study.search, seed=study.seed, index=index, parallel=self.crew.size > 1)
        return self.store.begin(hunt.name, own, hunt.draw, params)

    def _tell(self, begun: PendingTrial, result: Result) -> Result:
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

    def _ended(self, result: Result) -> TrialOutcome:
        gain = self._gain(result) if result.state == "complete" else math.nan
        return TrialOutcome(result.trial or 0, result.state, gain, result.gflops)

    def _tell_results(self) -> None:
        """Tell what workers finished after their coordinator was gone."""
        for begun in self.store.unfinished():
            folder = NetworkSpec("interrogate", 0, begun.number).folder(self.store.folder)
            job = read_spec(folder / SPEC)
            result = None if job is None else read_result(job)
            if result is not None:
                self._tell(begun, result)

    def _adopt_orphans(self) -> None:
        """Take up trials that a database put back from a backup does not know yet."""
        known = self.store.numbers
        for path in sorted((self.store.folder / "trials").glob(f"*/{SPEC}")):
            if path.parent.name.isdecimal() and int(path.parent.name) in known:
                continue
            job = read_spec(path)
            if job is None or job.store != self.store.attribute("identity"):
                continue
            number = job.candidate.trial
            if number is not None and number not in known:
                params = dict(job.candidate.params)
                self.store.adopt(PendingTrial(job.search, number, params, -1, job.drawn_from))
                message = f"trial {number} was begun after the backup; its files are taken up"
                self.emit({"event": "log", "message": message})

    def _job(
        self,
        candidate: NetworkSpec,
        begun: PendingTrial | None = None,
        results: Sequence[Result] = (),
    ) -> Job:
        study, store = self.bench.study, self.store
        start = start_of(candidate, study)
        stl = self.known(NetworkSpec("stl", candidate.seed))
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
        stl = self.known(NetworkSpec("stl", result.seed))
        assert stl is not None
        higher = {name: task.higher_is_better for name, task in self.bench.tasks.items()}
        return delta_mtl(result.metrics["validation"], stl.metrics["validation"], higher)

    def _line(self, label: str, result: Result) -> str:
        if result.state != "complete":
            return f"{label}: {result.state}: {result.reason}"
        metrics = " ".join(f"{k} {v:.4g}" for k, v in result.metrics.get("validation", {}).items())
        compared = metrics and self.known(NetworkSpec("stl", result.seed)) is not None
        gain = f"Δ_MTL {self._gain(result):+.2f} %, " if compared else ""
        return f"{label}: {gain}{result.gflops:.3f} GFLOPs, validation {metrics}"


def _told(params: Mapping[str, float | str]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else format(value, '.3g')}"
        for name, value in params.items()
    )
