"""Everything in a study's store that a report needs, and figures computed from it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gatesearch.measures import Gain, gain
from gatesearch.pareto import pareto_front
from gatesearch.results.result import SINGLE_TASK, Result, Split
from gatesearch.results.task_info import TaskInfo


@dataclass(frozen=True)
class StudyRecord:
    """Everything in a study's store that a report needs.

    Attributes:
        name: The study's name.
        fingerprint: Digest of the definition; it changes whenever results would.
        definition: `Study.definition()`.
        protocol: Name of the protocol: classes, size, encodings and metrics of the data set.
        published: Table of published results under the same protocol: `nyud`, `pascal` or empty.
        tasks: The tasks, in the study's order.
        baselines: All baselines of all seeds, weightings and widths.
        trials: Trials of all searches but those for weights of losses, in every state, by number.
        starts: The start networks, one per method, seed and `Result.part`.
        controls: Networks that trials are compared with at equal cost, one per trial, kind and
            seed; of the kind `repeat`, the trial's own training with another seed.
        data: Description of the data: pack, its SHA-256, number of frames per split, notes.
        predictions: .npz of images, labels and predictions; None where there is none.
        untaken: Numbers of trials that have a result in their folder and none in the database,
            because the run was killed or the database was restored. The next run takes them up.
    """

    name: str
    fingerprint: str
    definition: Mapping[str, Any]
    protocol: str
    published: str
    tasks: tuple[TaskInfo, ...]
    baselines: tuple[Result, ...] = ()
    trials: tuple[Result, ...] = ()
    starts: tuple[Result, ...] = ()
    controls: tuple[Result, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)
    predictions: Path | None = None
    untaken: tuple[int, ...] = ()

    @property
    def higher_is_better(self) -> dict[str, bool]:
        """Direction of each task's metric."""
        return {task.name: task.higher_is_better for task in self.tasks}

    @cached_property
    def front(self) -> tuple[Result, ...]:
        """Complete trials that no other trial dominates; see the function `front`."""
        return self._front_of(self.trials)

    @cached_property
    def fronts(self) -> dict[str, tuple[Result, ...]]:
        """Searched method -> its own front: its trials that no other trial of it dominates."""
        methods = dict.fromkeys(trial.method for trial in self.trials)
        own = {m: self._front_of([t for t in self.trials if t.method == m]) for m in methods}
        return {method: trials for method, trials in own.items() if trials}

    def _front_of(self, trials: Sequence[Result]) -> tuple[Result, ...]:
        scored = [
            (delta(self, trial, "validation"), trial.gflops, trial)
            for trial in trials
            if trial.state == "complete"
        ]
        defined = [item for item in scored if math.isfinite(item[0])]
        chosen = [defined[i][2] for i in pareto_front([d[:2] for d in defined], [True, False])]
        return tuple(sorted(chosen, key=lambda trial: (trial.gflops, trial.trial)))

    @property
    def trained(self) -> tuple[Result, ...]:
        """Baselines, starts, trials and controls of every state."""
        return (*self.baselines, *self.starts, *self.trials, *self.controls)

    @property
    def training_seconds(self) -> float:
        """Wall-clock seconds of all training; a network that several start from counts once."""
        return sum(r.train_seconds - r.reused_seconds for r in self.trained)

    @property
    def training_images(self) -> int:
        """Images seen in all training, counted in the same way."""
        return sum(r.train_images - r.reused_images for r in self.trained)

    @property
    def training_pflops(self) -> float:
        """FLOPs of all training / 1e15, counted in the same way."""
        return sum(r.train_pflops - r.reused_pflops for r in self.trained)


def reference(record: StudyRecord, result: Result, split: Split) -> Mapping[str, float] | None:
    """Find the metrics of the single-task networks of the same seed; None where there are none."""
    for other in record.baselines:
        single_task = other.method == SINGLE_TASK and other.state == "complete"
        if single_task and other.width == 1 and other.seed == result.seed:
            return other.metrics.get(split) or None
    return None


def gain_of(
    record: StudyRecord,
    result: Result,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> Gain:
    """Compute Δ_MTL of a result against `reference`, with tasks weighted as in `delta_mtl`.

    Returns:
        Δ_MTL, or why it is undefined; see `gatesearch.measures.gain`.
    """
    base, metrics = reference(record, result, split), result.metrics.get(split)
    return gain(metrics, base, record.higher_is_better, weights)


def delta(
    record: StudyRecord,
    result: Result,
    split: Split,
    weights: Mapping[str, float] | None = None,
) -> float:
    """Compute Δ_MTL as `gain_of` does: percent, NaN if it is undefined."""
    return gain_of(record, result, split, weights).percent


def front(record: StudyRecord) -> list[Result]:
    """List the complete trials that no other dominates in Δ_MTL on validation and in GFLOPs.

    The choice ignores the test split, so that it cannot favour networks that are lucky there.

    Returns:
        Trials ascending in GFLOPs; those whose Δ_MTL is undefined are left out.
    """
    return list(record.front)
