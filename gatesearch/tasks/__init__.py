"""The kinds of task, one file per kind.

A kind says everything of its tasks: options, how labels are encoded, stored, resized, augmented and
drawn, default head, loss, metrics.

A new kind is one file with a class that satisfies `Task`, and one line in `TASKS`.
"""

from collections.abc import Mapping
from typing import Any, cast

from gatesearch.errors import unknown
from gatesearch.study import TaskSpec
from gatesearch.study.validation import validated
from gatesearch.tasks.attributes import Attributes
from gatesearch.tasks.classification import Classification
from gatesearch.tasks.depth import Depth
from gatesearch.tasks.edges import Edges
from gatesearch.tasks.keypoints import Keypoints
from gatesearch.tasks.normals import Normals
from gatesearch.tasks.parts import Parts
from gatesearch.tasks.regression import Regression
from gatesearch.tasks.saliency import Saliency
from gatesearch.tasks.semseg import Semseg
from gatesearch.tasks.task import Kind, Meter, Task, Warp

__all__ = ["TASKS", "Kind", "Meter", "Task", "Warp", "build_task", "build_tasks"]

TASKS: dict[str, type[Task]] = {
    "semseg": Semseg,
    "parts": Parts,
    "depth": Depth,
    "normals": Normals,
    "edges": Edges,
    "saliency": Saliency,
    "classification": Classification,
    "attributes": Attributes,
    "regression": Regression,
    "keypoints": Keypoints,
}


def build_task(kind: str, options: Mapping[str, Any], *, where: str) -> Task:
    """Make a task of a kind.

    Args:
        kind: A name in `TASKS`.
        options: Option of the kind -> value.
        where: Place of the options, which an error states first.

    Raises:
        UsageError: Unknown kind or option, or a bad value.
    """
    if kind not in TASKS:
        raise unknown(f"kind of {where}", kind, TASKS)
    task: Task = validated(cast(Any, TASKS[kind]), options, where=where)
    return task


def build_tasks(specs: Mapping[str, TaskSpec]) -> dict[str, Task]:
    """Tasks of a study, name -> task.

    Raises:
        UsageError: Unknown kind or option of a kind, or a bad value.
    """
    return {
        name: build_task(spec.kind, spec.kind_options, where=f"tasks.{name}")
        for name, spec in specs.items()
    }
