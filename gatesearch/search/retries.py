"""Which configurations of failed trials are tried again, and how often that was done."""

from collections.abc import Mapping, Sequence

from gatesearch.results import Result
from gatesearch.store.store import PendingTrial


def failed_configurations(
    ended: Sequence[Result], unfinished: Sequence[PendingTrial], *, seed: int
) -> list[Mapping[str, float | str]]:
    """List the parameters of failed trials with a seed that no other trial has tried since.

    A configuration that failed again is listed once more.
    """
    pending = [dict(trial.params) for trial in unfinished]
    of_seed = [result for result in ended if result.seed == seed]
    better = [dict(result.params) for result in of_seed if result.state != "failed"]
    listed: list[Mapping[str, float | str]] = []
    for result in of_seed:
        params = dict(result.params)
        if result.state == "failed" and params not in [*pending, *better, *listed]:
            listed.append(params)
    return listed


def count_retries(ended: Sequence[Result], unfinished: Sequence[PendingTrial]) -> int:
    """Count the trials that tried a configuration again after an earlier trial had failed."""
    failed_params: list[Mapping[str, float | str]] = []
    retries = 0
    for result in sorted(ended, key=lambda r: r.trial or 0):
        retries += dict(result.params) in failed_params
        if result.state == "failed":
            failed_params.append(dict(result.params))
    return retries + sum(dict(trial.params) in failed_params for trial in unfinished)
