"""The JSON object of a study: what `run` and `report` print, and a file beside the report."""

import math
from pathlib import Path
from typing import Any

from gatesearch.comparisons import comparisons
from gatesearch.results import Result, StudyRecord, delta, front
from gatesearch.store.steering import controllability


def point(record: StudyRecord, result: Result) -> dict[str, Any]:
    """Describe a network as JSON for the command line; undefined values are null."""
    split = result.split
    network: dict[str, Any] = (
        {"method": result.method, "weighting": result.weighting}
        | ({"width": result.width} if result.width != 1 else {})
        | ({"control": result.control, "of": result.of} if result.of is not None else {})
        if result.trial is None
        else {"trial": result.trial}
        | ({"budget": result.budget} if result.budget else {})
        | ({"weighting": result.weighting} if result.weighting != "uniform" else {})
    )
    return network | {
        "seed": result.seed,
        "delta_mtl": _or_null(delta(record, result, split)),
        "gflops": _or_null(result.gflops),
        "backbone_gflops": _or_null(result.backbone_gflops),
        "params_m": _or_null(result.params_m),
        **({"task_gflops": dict(result.task_gflops)} if result.task_gflops else {}),
        "metrics": {task: _or_null(v) for task, v in result.metrics.get(split, {}).items()},
        "details": {
            task: {name: _or_null(value) for name, value in figures.items()}
            for task, figures in result.details.get(split, {}).items()
        },
        "split": split,
    }


def summary(record: StudyRecord, report: Path) -> dict[str, Any]:
    """Make the object that `gatesearch run --json` and `gatesearch report --json` print.

    Args:
        record: Contents of a store.
        report: The report's PDF.
    """
    states = [trial.state for trial in record.trials]
    fronts = {m: [point(record, t) for t in trials] for m, trials in record.fronts.items()}
    return {
        "study": record.name,
        "fingerprint": record.fingerprint,
        "protocol": record.protocol,
        "trials": {
            "complete": states.count("complete"),
            "failed": states.count("failed"),
            # Programs read this object, so its key keeps the old word for stopped trials.
            "pruned": states.count("stopped"),
        },
        "front": [point(record, trial) for trial in front(record)],
        **({"fronts": fronts} if len(fronts) > 1 else {}),
        "baselines": [point(record, result) for result in record.baselines],
        "controls": [point(record, result) for result in record.controls],
        "comparisons": [row.to_json() for row in comparisons(record)],
        "controllability": [row.to_json() for row in controllability(record)],
        "report": str(report),
    }


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
