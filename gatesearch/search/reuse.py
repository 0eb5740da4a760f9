"""Take over baselines of another store if training them here would give the same networks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatesearch.errors import UsageError
from gatesearch.execution.jobs import SPEC, Job, keep_result, read_result, read_spec
from gatesearch.methods import at_width, check_study, start_of, training_of
from gatesearch.results import Result
from gatesearch.store.upgrade import upgrade_alone
from gatesearch.study import Study, differences
from gatesearch.trials.kept_networks import copy_network, network_state


def check_reuse(source: Path) -> None:
    """Refuse a folder that has no baselines; upgrade a store of gatesearch 0.1.0.

    Raises:
        UsageError: It is not the folder of a store with baselines.
        StudyRefusedError: A store to be upgraded is in use or damaged.
        DataError: A store to be upgraded cannot be written.
    """
    if not (source / "baselines").is_dir():
        raise UsageError(
            f"--reuse must be the folder of a store with baselines, as runs/STUDY; found '{source}'"
        )
    upgrade_alone(source)


def recipe(job: Job) -> dict[str, Any]:
    """Describe all that a baseline's result depends on, except code and chance, as JSON values."""
    study, spec = check_study(Study.from_definition(job.definition)), job.spec
    start = start_of(spec, study)
    model = at_width(study, spec.width).model.model_dump(mode="json")
    if start is None and model["init"] == "stl":
        # Single-task networks cannot start from themselves: they start from random weights.
        model["init"] = "scratch"
    return {
        "results_version": job.definition["results_version"],
        "seed": spec.seed,
        "weighting": spec.weighting,
        "balance": study.balance.get(spec.weighting, {}),
        "protocol": study.protocol.model_dump(mode="json"),
        "tasks": {
            name: task.model_dump(mode="json", exclude={"class_names"})
            for name, task in study.tasks.items()
        },
        "data": [spec.model_dump(mode="json") for spec in (study.data, *study.more_data)],
        "mixing": study.mixing,
        "sha256": job.sha256,
        "model": model,
        "training": training_of(study, spec.method).model_dump(mode="json"),
        "options": study.options_of(spec.method).own,
        "runtime": dict(job.runtime),
        "start": {} if start is None else recipe(replace(job, spec=start)),
    }


def take_over(job: Job, source: Path, tell: Callable[[str], None]) -> Result | None:
    """Copy network and result of a baseline from another store into a job's folder.

    Args:
        job: Job of the baseline.
        source: The other store's folder.
        tell: Receives the differences if the other store's baseline was trained differently.

    Returns:
        The result; None if the baseline must be trained.

    Raises:
        StudyRefusedError: The other store's network or result is missing or damaged.
    """
    other_job = read_spec(job.spec.folder(source) / SPEC)
    result = None if other_job is None else read_result(other_job)
    if other_job is None or result is None or result.state != "complete":
        return None
    try:
        differing = differences(recipe(job), recipe(other_job))
    except UsageError:
        differing = ["its definition is another version's"]
    if differing:
        # If only one of the two has a start, each of its keys is "absent" in the other; these lines
        # are left out as long as any others remain.
        short = [line for line in differing if "absent" not in line] or differing
        tell(f"{job.spec.label} is not the one of {source}: {', '.join(short)}")
        return None
    network_state(result, out=source)  # refuses a damaged file
    job.write()
    copy_network(result, other_job.folder, job.folder)
    keep_result(job, result)
    return result
