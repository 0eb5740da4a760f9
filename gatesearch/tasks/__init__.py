"""The kinds of task, one file per kind.

A kind says how its labels are stored, resized, augmented and drawn, and gives loss and metric.

A new kind is one file with a class that satisfies `Task`, and one line in `TASKS`.
"""

from collections.abc import Mapping
from typing import Any

from gatesearch.errors import unknown
from gatesearch.tasks.depth import Depth
from gatesearch.tasks.edges import Edges
from gatesearch.tasks.normals import Normals
from gatesearch.tasks.saliency import Saliency
from gatesearch.tasks.semseg import Semseg
from gatesearch.tasks.task import Meter, Task, Warp

__all__ = ["TASKS", "Meter", "Task", "Warp", "build_tasks"]

TASKS: dict[str, type[Task]] = {
    "semseg": Semseg,
    "depth": Depth,
    "normals": Normals,
    "edges": Edges,
    "saliency": Saliency,
}


def build_tasks(specs: Mapping[str, Any]) -> dict[str, Task]:
    """Tasks of a study, name -> task.

    Args:
        specs: name -> object with `kind`, `classes` (see `gatesearch.study.TaskSpec`).

    Raises:
        UsageError: Unknown kind.
    """
    tasks = {}
    for name, spec in specs.items():
        if spec.kind not in TASKS:
            raise unknown(f"kind of task {name}", spec.kind, TASKS)
        tasks[name] = TASKS[spec.kind](classes=spec.classes)
    return tasks
