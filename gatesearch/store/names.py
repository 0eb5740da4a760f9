"""Names in a store: of its searches, and of the attributes of it and of its trials."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gatesearch.results import Result

# Raised by 1 whenever the form of a store changes.
VERSION = 3

# Attributes of the store as a whole.
FORMAT = "format"
DEFINITION = "definition"
FINGERPRINT = "fingerprint"
IDENTITY = "identity"
# Names of the Optuna studies beside the main one -> number of objectives.
SEARCHES = "searches"

# Attributes of a trial.
NUMBER = "trial"
BEGUN = "begun"
VALIDATION = "validation"
RESULT = "result"
# Attribute of a configuration that was tried on a supernet.
PATTERN_METRICS = "metrics"

# Names of the objectives, for Optuna's dashboard.
METRICS = ["delta_mtl", "gflops"]

# Folders of the files of all trainings, by kind (`NetworkSpec.folder`).
JOB_FOLDERS = ("baselines", "starts", "trials", "controls")

BASELINE = "baseline"
START = "start"
CONTROL = "control"
TEST = "test"
PATTERNS = "patterns"
_WEIGHTS = "scalar"


def search_name(method: str, budget: str) -> str:
    """Name the search for a method's hyperparameters under a budget; `budget` may be empty.

    >>> search_name("mtan", "1.3xMTL")
    'mtan 1.3xMTL'
    """
    return f"{method} {budget}".strip()


def weight_search_name(method: str, seed: int) -> str:
    """Name the search for the weights of a method's losses."""
    return f"{_WEIGHTS} {method} seed {seed}"


def searches_weights(search: str) -> bool:
    """Tell whether a search of this name searches the weights of a method's losses."""
    return search.startswith(f"{_WEIGHTS} ")


def patterns_name(method: str, seed: int) -> str:
    """Name the Optuna study of the configurations tried on a supernet without training."""
    return f"{PATTERNS} {method} seed {seed}"


def pattern_count_key(method: str, seed: int) -> str:
    """Name the attribute that holds how many configurations are tried on a supernet."""
    return f"{PATTERNS}/{method}/{seed}"


def result_key(result: "Result") -> str:
    """Name the attribute that holds the result of a baseline, a start network or a control.

    A start network is one whose weights the trials of its seed start from.
    """
    if result.part:
        return f"{START}/{result.method}/{result.part}/{result.seed}"
    if result.of is not None:
        return f"{CONTROL}/{result.of}/{result.control}/{result.seed}"
    width = "" if result.width == 1 else f"/{result.width:g}"
    return f"{BASELINE}/{result.method}/{result.weighting}/{result.seed}{width}"


def test_key(trial: int) -> str:
    """Name the attribute that holds the test metrics of a trial."""
    return f"{TEST}/{trial}"


def test_details_key(trial: int) -> str:
    """Name the attribute that holds further test figures of a trial."""
    return f"{TEST}-details/{trial}"
