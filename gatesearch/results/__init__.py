"""Frozen records of trained networks with their figures, and figures computed from the records.

This package needs neither torch nor pandas, and touches no files: the search writes these records
into its store, and the report reads them.
"""

from gatesearch.results.record import StudyRecord, delta, front, gain_of, reference
from gatesearch.results.result import (
    FORMAT,
    MULTI_TASK,
    SINGLE_TASK,
    STATES,
    Result,
    Split,
    control_name,
    network_name,
)
from gatesearch.results.task_info import TaskInfo, without_classes

__all__ = [
    "FORMAT",
    "MULTI_TASK",
    "SINGLE_TASK",
    "STATES",
    "Result",
    "Split",
    "StudyRecord",
    "TaskInfo",
    "control_name",
    "delta",
    "front",
    "gain_of",
    "network_name",
    "reference",
    "without_classes",
]
