"""Baselines of another store, taken over where they would be trained the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError
from gatesearch.execution.jobs import SPEC, Job, keep_result, read_result, read_spec
from gatesearch.methods import start_of, training_of
from gatesearch.results import Result
from gatesearch.store.upgrade import upgrade_alone
from gatesearch.study import Study, differences
from gatesearch.trials.kept_networks import copy_network, network_state


def check_reuse(source: Path) -> None:
    """Refuse a folder that has no baselines; upgrade a store of gatesearch 0.1.0.

    Raises:
        UsageError: It is no store's.
        StudyRefusedError: A store to be upgraded is in use or damaged.
        DataError: A store to be upgraded cannot be written.
    """
    if not (source / "baselines").is_dir():
        raise UsageError(
            f"--reuse must be the folder of a store with baselines, as runs/STUDY; found '{source}'"
        )
    upgrade_alone(source)


def recipe(job: Job) -> dict[str, Any]:
    """All that the result of a baseline's job depends on but code and chance, as JSON values."""
    study, spec = Study.from_definition(job.definition), job.spec
    start = start_of(spec, study)
    model = study.model.model_dump(mode="json")
    if start is None and model["init"] == "stl":
        model["init"] = "scratch"  # which single-task networks themselves begin from
    return {
        "results_version": job.definition["results_version"],
        "seed": spec.seed,
        "weighting": spec.weighting,
        "balance": study.balance.get(spec.weighting, {}),
        "protocol": study.protocol.model_dump(mode="json"),
        "tasks": {name: task.model_dump(mode="json") for name, task in study.tasks.items()},
        "data": study.data.model_dump(mode="json") | {"sha256": job.sha256},
        "model": model,
        "training": training_of(study, spec.method).model_dump(mode="json"),
        "options": study.options_of(spec.method).own,
        "runtime": dict(job.runtime),
        "start": {} if start is None else recipe(replace(job, spec=start)),
    }


def take_over(job: Job, source: Path, tell: Callable[[str], None]) -> Result | None:
    """Copy network and result of a baseline from another store into a job's folder.

    Args:
        job: Which baseline.
        source: The other store's folder.
        tell: Receives why not, where the other store has that baseline, but not the same.

    Returns:
        The result; None where the baseline must be trained.

    Raises:
        StudyRefusedError: The other store's network or result is gone or damaged.
    """
    theirs = read_spec(job.spec.folder(source) / SPEC)
    known = None if theirs is None else read_result(theirs)
    if theirs is None or known is None or known.state != "complete":
        return None
    try:
        differing = differences(recipe(job), recipe(theirs))
    except UsageError:
        differing = ["its definition is another version's"]
    if differing:
        # All of a start that only one of the two has says no more than its key does.
        short = [line for line in differing if "absent" not in line] or differing
        tell(f"{job.spec.label} is not the one of {source}: {', '.join(short)}")
        return None
    network_state(job.spec, out=source)  # which says so if it cannot be read
    job.write()
    copy_network(theirs.folder, job.folder)
    keep_result(job, known)
    return known
