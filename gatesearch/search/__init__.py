"""Run a study: train its baselines, search, and measure the networks that a report shows.

| file | contents |
|---|---|
| `run.py` | the run: opens store and data, trains baselines, searches, measures on the test part |
| `setup.py` | checks everything that can be refused before a store is made; budgets, latency |
| `search.py` | has baselines, controls and trials trained, as many at a time as there are workers |
| `trial_search.py` | one search: draws its trials, and keeps their results; does nothing twice |
| `networks.py` | the networks of a store: jobs, results, Δ_MTL, what is told of them |
| `controls.py` | chooses the trials that get controls, and specifies these |
| `retries.py` | which configurations of failed trials are tried again |
| `plans.py` | one plan per tuned method and per search for weights of losses |
| `space.py` | draws parameters with Optuna; the sampler |
| `one_shot.py` | tries configurations on a supernet without training, and chooses networks |
| `slicing.py` | cuts a network out of a trained supernet for preferences and budgets of no trial |
| `reuse.py` | takes over baselines of another store |
| `predictions.py` | predictions on a few test frames, for the report |
| `own_training.py` | `gs.search`: a search whose networks a function of the user's trains |
| `own_trial.py` | `gs.Trial`: one network, as that function sees it |

The package itself can be called: `gs.search(study, train)` is `own_training.search`. Python makes
the package the attribute `search` of gatesearch as soon as one of its modules is imported.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatesearch.results import StudyRecord


class _CallablePackage(ModuleType):
    """A package that is called as the function `search` of `own_training`."""

    def __call__(self, *args: Any, **options: Any) -> "StudyRecord":
        from gatesearch.search.own_training import search

        return search(*args, **options)

    @property
    def __signature__(self) -> Any:
        """Signature of that function, for `help` and editors."""
        import inspect

        from gatesearch.search.own_training import search

        return inspect.signature(search)


sys.modules[__name__].__class__ = _CallablePackage
