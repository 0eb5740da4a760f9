"""The study in sentences, whose every figure was measured; the first says what was found."""

import math
from collections.abc import Callable, Sequence

from gatesearch.report import style
from gatesearch.report.controls import sharing_sentences
from gatesearch.report.record_queries import (
    SeedGroup,
    baseline_groups,
    complete_trials,
    count_trials,
    group_of_method,
    trial_group,
)
from gatesearch.results import (
    MULTI_TASK,
    SINGLE_TASK,
    Result,
    Split,
    StudyRecord,
    delta,
    front,
)


def summary_sentences(record: StudyRecord, split: Split) -> list[str]:
    """Summarize the study, the most important first.

    Networks are chosen by validation, and their figures are those of `split`, the mean over seeds
    where a trial was repeated. A network that a baseline dominates (at least its gain for at most
    its FLOPs) is never named before that baseline, nor one that gains no more than plain sharing
    before MTL.
    """
    if not record.trials:
        return ["No trial has been run yet: the baselines stand alone."]
    best = leading_trial(record)
    if best is None:
        cause = (
            "no single-task networks of the same seed to compare with"
            if complete_trials(record)
            else "none completed"
        )
        return [f"{count_trials(len(record.trials))} and no front: {cause}."]
    groups = baseline_groups(record)
    stl, mtl = (group_of_method(groups, method) for method in (SINGLE_TASK, MULTI_TASK))
    own, gain = trial_group(record, best), _gain(record, split)
    comparisons = [
        _cost_change(own.mean(gflops), group.mean(gflops), group.label)
        for group in (stl, mtl)
        if group is not None
    ]
    name = f"trial {best.trial}, the best on validation"
    if best is not _best(record, front(record)):
        name += " that no baseline dominates there"
    seeds = f", mean of {len(own.results)} seeds" if len(own.results) > 1 else ""
    figures = (
        f"reaches Δ MTL {style.signed(own.mean(gain))} % ({split}{seeds}) at "
        f"{style.compact(own.mean(gflops))} GFLOPs: "
        f"{', '.join(comparisons) or 'no baseline beside it'}."
    )
    rival = rival_of(record, best, split)
    more = [*sharing_sentences(record), *_plain_sharing(record, mtl, rival, split)]
    if rival is None:
        return [f"{name.capitalize()}, {figures}", *more]
    ahead = (
        f"{rival.label} (Δ MTL {style.signed(rival.mean(gain))} % on {split} at "
        f"{style.compact(rival.mean(gflops))} GFLOPs)"
    )
    if any(trial_group(record, t).mean(gain) > rival.mean(gain) for t in front(record)):
        first = f"{ahead} is ahead of {name}, which {figures}"
    else:
        first = f"No network of the front gains more than {ahead}; {name}, {figures}"
    return [first, *more]


def leading_trial(record: StudyRecord) -> Result | None:
    """Choose the trial that a summary is about; None without a front.

    It is the best on validation among the front's networks that no baseline dominates on
    validation, or of the whole front where all are dominated.
    """
    chosen = front(record)
    free = [trial for trial in chosen if not _dominators(record, trial, "validation")]
    return _best(record, free or chosen)


def rival_of(record: StudyRecord, best: Result, split: Split) -> SeedGroup | None:
    """Find the baseline that must be named before the best trial; None where it leads."""
    gain = _gain(record, split)
    rivals = _dominators(record, best, split)
    if not rivals:
        mtl = group_of_method(baseline_groups(record), MULTI_TASK)
        own = trial_group(record, best).mean(gain)
        rivals = [mtl] if mtl is not None and mtl.mean(gain) >= own else []
    return max(rivals, key=lambda group: group.mean(gain), default=None)


def gflops(result: Result) -> float:
    """Cost of a network."""
    return result.gflops


def _best(record: StudyRecord, trials: Sequence[Result]) -> Result | None:
    return max(trials, key=_gain(record, "validation"), default=None)


def _gain(record: StudyRecord, split: Split) -> Callable[[Result], float]:
    return lambda result: delta(record, result, split)


def _dominators(record: StudyRecord, trial: Result, split: Split) -> list[SeedGroup]:
    """Find the baselines that gain at least as much for at most the cost, and are better in one."""
    gain, own = _gain(record, split), trial_group(record, trial)
    mine = (own.mean(gain), -own.mean(gflops))
    found = []
    for group in baseline_groups(record):
        theirs = (group.mean(gain), -group.mean(gflops))
        if theirs != mine and all(a >= b for a, b in zip(theirs, mine, strict=True)):
            found.append(group)
    return found


def _plain_sharing(
    record: StudyRecord, mtl: SeedGroup | None, rival: SeedGroup | None, split: Split
) -> list[str]:
    """Say what MTL reaches, and the cheapest network of the front that gains more."""
    if mtl is None:
        return []
    gain, validation = _gain(record, split), _gain(record, "validation")
    lines = []
    if rival is None or rival.label != mtl.label:
        lines.append(
            f"Plain sharing (MTL) costs {style.compact(mtl.mean(gflops))} GFLOPs for "
            f"{style.signed(mtl.mean(gain))} %."
        )
    above = [
        t for t in front(record) if trial_group(record, t).mean(validation) > mtl.mean(validation)
    ]
    if not above:
        lines.append("No network of the front gains more than MTL on validation.")
    elif above[0] is not leading_trial(record) and math.isfinite(gain(above[0])):
        others = trial_group(record, above[0])
        lines.append(
            "The front's cheapest network that gains more than MTL on validation, trial "
            f"{above[0].trial}, has {style.signed(others.mean(gain))} % at "
            f"{style.compact(others.mean(gflops))} GFLOPs."
        )
    return [" ".join(lines)] if lines else []


def _cost_change(value: float, other: float, name: str) -> str:
    percent = 100 * (value / other - 1) if other > 0 else 0.0
    if abs(percent) < 0.5:
        return f"as many as {name}"
    return f"{abs(percent):.0f} % {'fewer' if percent < 0 else 'more'} than {name}"
