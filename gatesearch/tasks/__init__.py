"""The kinds of task, one file per kind.

A kind says everything of its tasks: options, how labels are encoded, stored, resized, augmented and
drawn, default head, loss, metrics.

A new kind is one file with a class that satisfies `Task`, and one line in `TASKS`. What several
kinds share lies beside them:

| file | content |
|---|---|
| `task.py` | `Task`, what every kind provides; `Kind`, the options that all have |
| `class_map.py`, `binary_map.py` | one class per pixel; 0 or 1 per pixel |
| `columns.py` | several values per image |
| `labels.py` | storage and encoding of labels, absent labels |
| `table_cells.py` | cells of a table as labels per image |
| `class_scores.py`, `edge_measure.py` | losses and metrics |
| `meters.py` | metrics that are added up over batches |
"""

from collections.abc import Mapping, Sequence
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
from gatesearch.tasks.reflectance import Reflectance
from gatesearch.tasks.regression import Regression
from gatesearch.tasks.saliency import Saliency
from gatesearch.tasks.semseg import Semseg
from gatesearch.tasks.task import Kind, Meter, Task, Warp

__all__ = ["TASKS", "Kind", "Meter", "Task", "Warp", "build_task", "build_tasks", "named_classes"]

TASKS: dict[str, type[Task]] = {
    "semseg": Semseg,
    "parts": Parts,
    "depth": Depth,
    "normals": Normals,
    "edges": Edges,
    "reflectance": Reflectance,
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


def named_classes(names: Sequence[str]) -> dict[str, Any]:
    """Options of a kind for classes with names; none for a kind without classes."""
    return {"classes": len(names), "class_names": names} if names else {}


def build_tasks(specs: Mapping[str, TaskSpec]) -> dict[str, Task]:
    """Tasks of a study, name -> task.

    Raises:
        UsageError: Unknown kind or option of a kind, or a bad value.
    """
    return {
        name: build_task(spec.kind, spec.kind_options, where=f"tasks.{name}")
        for name, spec in specs.items()
    }
