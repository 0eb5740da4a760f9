"""Descriptions of tasks, as a store keeps them and reports need them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskInfo:
    """Description of a task for reports.

    Attributes:
        name: The task's name in the study.
        metric: Name of its metric, as `mIoU`.
        unit: `%`, `m`, `deg` or an empty string.
        higher_is_better: Direction of the metric.
        kind: Its kind, a name in `gatesearch.tasks.TASKS`.
        drawing: How its labels are drawn, a name in `gatesearch.drawing.DRAWINGS`.
        classes: Number of classes; 1 for a task without classes.
        class_names: Their names by index; empty where the data set states none.
        options: Further options of its kind, with what it learned from the training part; empty
            in stores that were begun before there were any.
    """

    name: str
    metric: str
    unit: str
    higher_is_better: bool
    kind: str
    drawing: str
    classes: int = 1
    class_names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def task_options(self) -> dict[str, Any]:
        """All options of its kind, from which `gatesearch.tasks.build_task` makes the task."""
        names = {"class_names": list(self.class_names)} if self.class_names else {}
        return {"classes": self.classes, **names, **self.options}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "TaskInfo":
        """Read the description that a store keeps; older stores have no names of classes."""
        return cls(**{**stored, "class_names": tuple(stored.get("class_names", ()))})


def without_classes(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options of a task that `TaskInfo` has as attributes of its own."""
    return {key: value for key, value in options.items() if key not in ("classes", "class_names")}
