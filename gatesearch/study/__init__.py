"""Studies: TOML files that are read, validated, and given a fingerprint. Needs no torch.

Other packages read values from a study where they are entered; their inner functions take plain
arguments.
"""

from gatesearch.study.definition import RESULTS_VERSION, Study, differences
from gatesearch.study.load import builtin_studies, load_study
from gatesearch.study.schema import (
    AugmentSpec,
    DataSpec,
    ExecutionSpec,
    MethodOptions,
    SearchSpec,
    TaskSpec,
    TrainingSpec,
)

__all__ = [
    "RESULTS_VERSION",
    "AugmentSpec",
    "DataSpec",
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
