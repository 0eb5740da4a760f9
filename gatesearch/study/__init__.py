"""A study is a TOML file: read, validated, and given a fingerprint.

Nothing here knows of torch. Everything below unpacks a study at its edge and takes plain arguments.
"""

from gatesearch.study.definition import RESULTS_VERSION, Study, differences
from gatesearch.study.load import builtin_studies, load_study
from gatesearch.study.schema import (
    AugmentSpec,
    ExecutionSpec,
    MethodOptions,
    SearchSpec,
    TaskSpec,
    TrainingSpec,
)

__all__ = [
    "RESULTS_VERSION",
    "AugmentSpec",
    "ExecutionSpec",
    "MethodOptions",
    "SearchSpec",
    "Study",
    "TaskSpec",
    "TrainingSpec",
    "builtin_studies",
    "differences",
    "load_study",
]
