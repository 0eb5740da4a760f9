"""Names of what a store keeps: its searches, and the attributes of its main Optuna study."""

from gatesearch.results import Result

# Attributes of the store as a whole.
FORMAT = "format"
DEFINITION = "definition"
FINGERPRINT = "fingerprint"
IDENTITY = "identity"

BASELINE = "baseline"
START = "start"
TEST = "test"
PATTERNS = "patterns"
_WEIGHTS = "scalar"


def search_name(method: str, budget: str) -> str:
    """Name of the search for a method's hyperparameters under a budget; `budget` may be empty.

    >>> search_name("mtan", "1.3xMTL")
    'mtan 1.3xMTL'
    """
    return f"{method} {budget}".strip()


def weight_search_name(method: str, seed: int) -> str:
    """Name of the search for the weights of a method's losses."""
    return f"{_WEIGHTS} {method} seed {seed}"


def searches_weights(search: str) -> bool:
    """Whether a search is one for weights of losses."""
    return search.startswith(f"{_WEIGHTS} ")


def patterns_name(method: str, seed: int) -> str:
    """Name of the Optuna study of configurations tried on a supernet without training."""
    return f"{PATTERNS} {method} seed {seed}"


def result_key(result: Result) -> str:
    """Attribute that holds the result of a baseline, or of what trials of its seed start from."""
    if result.part:
        return f"{START}/{result.method}/{result.part}/{result.seed}"
    return f"{BASELINE}/{result.method}/{result.weighting}/{result.seed}"


def test_key(trial: int) -> str:
    """Attribute that holds the test figures of a trial."""
    return f"{TEST}/{trial}"
