"""What search and store cost: as a share of a trial of `scenes`, and beyond what Optuna costs.

The overhead is measured alone, on a real store filled with fake results; the trial that it is
compared with is a real one, with the study's own epochs.
"""

import statistics
import tempfile
from pathlib import Path

import optuna

import gatesearch as gs
from benchmarks.fake_results import add_trial, make_store, space
from benchmarks.figure import Figure, seconds
from gatesearch.methods.specification import NetworkSpec
from gatesearch.search.space import draw, sampler
from gatesearch.study import Study
from gatesearch.trials.context import open_context
from gatesearch.trials.trial import train_network

BAR, BAR_MS = 1.0, 5.0
TRIALS = 20


def measure() -> list[Figure]:
    study = gs.load_study("scenes")
    params = {"lambda_s": 1.0} | {f"tau.{task}": 0.2 for task in study.tasks}
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(study, Path(folder) / "store")
        controls = [seconds(lambda: add_trial(store, study)) for _ in range(TRIALS)]
        alone = _optuna_alone(study, Path(folder) / "alone.db")
        context = open_context(study, data=Path(folder), stored=None, emit=lambda event: None)
        trial = seconds(
            lambda: train_network(
                NetworkSpec("interrogate", study.seed, 0, params), context,
                out=Path(folder), start=None, emit=lambda event: None,
            )
        )  # fmt: skip
    overhead = statistics.mean(controls)
    detail = f"{1e3 * overhead:.0f} ms of {trial:.1f} s (worst {1e3 * max(controls):.0f} ms)"
    ours = 1e3 * (statistics.median(controls) - alone)
    beside = f"beyond {1e3 * alone:.0f} ms that Optuna takes to ask, suggest and tell"
    return [
        Figure("search and store in a trial", 100 * overhead / trial, BAR, "%", detail),
        Figure("search and store beyond Optuna", ours, BAR_MS, "ms", beside),
    ]


def _optuna_alone(study: Study, path: Path) -> float:
    """Median seconds per trial of Optuna's own loop on SQLite, with the same draws."""
    handle = optuna.create_study(storage=f"sqlite:///{path}", directions=["maximize", "minimize"])

    def one() -> None:
        handle.sampler = sampler(study.search, seed=study.seed, index=len(handle.trials))
        trial = handle.ask()
        draw(trial, space(study))
        handle.tell(trial, [0.0, float(trial.number)])

    return statistics.median([seconds(one) for _ in range(TRIALS)])
