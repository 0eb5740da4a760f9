"""Configurations that are tried on a supernet without training, as trials of an Optuna study."""

from collections.abc import Mapping

import optuna
from optuna.trial import FrozenTrial, TrialState

from gatesearch.measures import Gain
from gatesearch.store import names
from gatesearch.store.optuna_trials import rows_of


def keep_pattern(
    patterns: optuna.Study,
    trial: optuna.Trial,
    metrics: Mapping[str, float],
    gain: Gain,
    gflops: float,
) -> None:
    """Write the figures of a configuration that was tried on a supernet, which ends its trial.

    Args:
        patterns: The Optuna study of the configurations.
        trial: The trial of this one. If its gain is undefined, Optuna holds it for failed.
        metrics: Task -> metric on the validation part.
        gain: Δ_MTL of its network.
        gflops: Cost of its network.
    """
    values = [] if gain.fault else [gain.percent, gflops]
    frozen = patterns.get_trials(deepcopy=False)[trial.number]
    rows = rows_of(patterns, frozen, values=values)
    trial.set_user_attr(names.PATTERN_METRICS, rows.seal_metrics(dict(metrics), gain.fault))
    if gain.fault:
        patterns.tell(trial, state=TrialState.FAIL)
    else:
        patterns.tell(trial, values)


def was_measured(trial: FrozenTrial) -> bool:
    """Tell whether a configuration was measured, even if its Δ_MTL is undefined."""
    sealed = trial.user_attrs.get(names.PATTERN_METRICS, {"fault": ""})
    return trial.state == TrialState.COMPLETE or bool(sealed["fault"])


def pattern_metrics(trial: FrozenTrial) -> dict[str, float]:
    """Return the metrics of a configuration that was tried."""
    return dict(trial.user_attrs[names.PATTERN_METRICS]["value"])
