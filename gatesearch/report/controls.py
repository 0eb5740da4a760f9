"""Whether a trial's way to share matters: it beside networks of its cost that share otherwise."""

import math
from collections.abc import Iterable, Iterator, Mapping

from gatesearch.comparisons import (
    DRAWN,
    FRESH,
    REPEAT,
    WIDENED,
    Comparison,
    Controlled,
    compared_split,
    comparisons,
    controlled_trials,
    spread_of_patterns,
)
from gatesearch.report import style
from gatesearch.report.layout import Block, Box, Section
from gatesearch.report.record_queries import SeedGroup
from gatesearch.report.text import fit, line_height
from gatesearch.results import Result, StudyRecord, control_name, delta

_SIZE, _HEAD = 7.5, 7.0  # points
_NAME, _WHAT, _COLUMN = 1.5, 3.8, 0.99  # widths, inches
_END = _NAME + _WHAT + 5 * _COLUMN
_WHAT_IT_IS = {
    WIDENED: "the multi-task network, at the width of the same cost",
    "random": "as many own channels per task and layer, at places drawn",
    "even": "the same share of own channels in every layer, at places drawn",
    "branch": "shared up to a layer, an encoder per task behind it",
    "swapped": "the trial's pattern, each task with the channels of another",
    FRESH: "the trial's pattern, trained as the plain network from the start",
}


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield a table per trial with controls."""
    rows = {(row.a, row.b): row for row in comparisons(record)}
    for controlled in controlled_trials(record):
        split = compared_split(controlled)
        trial = controlled.trial
        seeds = ", ".join(map(str, sorted(controlled.learned)))
        kinds = sorted(controlled.controls, key=_place)
        blocks = [_row(record, controlled, REPEAT, None, None)]
        blocks += [
            _row(
                record,
                controlled,
                kind,
                rows.get((trial.name, name := control_name(kind, trial.trial or 0))),
                rows.get((control_name(FRESH, trial.trial or 0), name)),
            )
            for kind in kinds
        ]
        yield Section(
            "Does the sharing matter?",
            f"Trial {trial.trial} against networks of its cost, trained at its training cost; "
            f"{split} split, seed {seeds}",
            blocks,
            note=_note(record, controlled),
            head=_head(),
            keep=min(4, len(blocks)),
        )


def sharing_sentences(record: StudyRecord) -> list[str]:
    """Say of each trial with controls whether it leads them; a lead within chance is called so."""
    rows = {(row.a, row.b): row for row in comparisons(record)}
    sentences = []
    for controlled in controlled_trials(record):
        number = controlled.trial.trial or 0
        against = {
            kind: rows.get((controlled.trial.name, control_name(kind, number)))
            for kind in controlled.controls
        }
        known = {kind: row for kind, row in against.items() if row is not None}
        others = (("random", "random ones"), (WIDENED, "mtl@B"))
        told = _told(known, (*others, (FRESH, "its pattern trained anew")))
        if not told:
            continue
        text = f"Sharing of trial {number} at equal cost and training, against {told}."
        anew = {
            kind: row
            for kind, _ in others
            if (row := rows.get((control_name(FRESH, number), control_name(kind, number))))
        }
        if anew:
            text += f" Its pattern trained anew, against {_told(anew, others)}."
        widened = known.get(WIDENED)
        if widened is not None and widened.mean < 0:
            sure = "is the better network" if widened.verdict else "is ahead within chance"
            if widened.margin is None:
                sure = "is ahead in the only pair"
            text = f"MTL at the width of the same cost (mtl@B) {sure}. {text}"
        sentences.append(text)
    return sentences


def _told(rows: Mapping[str, Comparison], names: Iterable[tuple[str, str]]) -> str:
    return "; ".join(f"{name}: {difference(rows[kind])}" for kind, name in names if kind in rows)


def difference(row: Comparison) -> str:
    """Write a difference with its interval, as `+0.30 ± 0.80 (3 pairs), within chance`."""
    mean = style.signed(row.mean)
    if row.margin is None:
        return f"{mean} (1 pair, no interval)"
    chance = "" if row.verdict else ", within chance"
    return f"{mean} ± {style.number(row.margin, 2)} ({row.n} pairs){chance}"


def _place(kind: str) -> tuple[int, int]:
    """Place of a kind in the table: as in `_WHAT_IT_IS`, then drawn patterns by number."""
    named = list(_WHAT_IT_IS)
    return (named.index(kind), 0) if kind in named else (len(named), int(kind[len(DRAWN) :]))


def _note(record: StudyRecord, controlled: Controlled) -> str:
    spread = spread_of_patterns(record, controlled)
    more = ""
    if spread is not None:
        more = (
            f" Drawn patterns: standard deviation {style.number(spread[0], 2)} between their "
            f"means, {style.number(spread[1], 2)} between seeds of one; where the first does not "
            "exceed the second, no choice of gates can be told from chance."
        )
    return (
        "Differences: mean of Δ MTL over pairs of one seed, ± half the 95 % interval of Student's "
        "t. `fresh` minus a row compares networks alone: both were cut before training and "
        f"trained alike.{more}"
    )


def _head() -> Block:
    def draw(box: Box) -> None:
        middle = line_height(_HEAD) / 2
        box.text(0, middle, "Network", size=_HEAD, weight="bold")
        box.text(_NAME, middle, "What it is", size=_HEAD, weight="bold")
        heads = ("Δ MTL ↑ (%)", "GFLOPs ↓", "training GFLOPs", "trial − it", "fresh − it")
        for i, text in enumerate(heads):
            box.text(_right(i), middle, text, size=_HEAD, ha="right", weight="bold")
        box.rule(box.height - 0.03, to=_END)

    return Block(line_height(_HEAD) + 0.08, draw)


def _row(
    record: StudyRecord,
    controlled: Controlled,
    kind: str,
    against_trial: Comparison | None,
    against_fresh: Comparison | None,
) -> Block:
    split = compared_split(controlled)
    learned = kind == REPEAT
    by_seed = controlled.learned if learned else controlled.controls[kind]
    group = SeedGroup(kind, kind, tuple(by_seed.values()))

    def gain(result: Result) -> float:
        return delta(record, result, split)

    deviation = group.deviation(gain)
    spread = f" ±{style.number(deviation, 2)}" if math.isfinite(deviation) else ""
    cells = [
        style.signed(group.mean(gain)) + spread,
        style.compact(group.mean(lambda r: r.gflops)),
        style.compact(1e6 * group.mean(lambda r: r.train_pflops)),
        *(_short(row) for row in (against_trial, against_fresh)),
    ]
    name = controlled.trial.name if learned else kind
    what = "the network found" if learned else _WHAT_IT_IS.get(kind, "a drawn pattern")

    def draw(box: Box) -> None:
        middle = box.height / 2
        box.text(0, middle, fit(name, _NAME - 0.1, _SIZE), size=_SIZE, weight="bold")
        box.text(_NAME, middle, fit(what, _WHAT - 0.1, _SIZE), size=_SIZE)
        for i, text in enumerate(cells):
            box.text(_right(i), middle, text, size=_SIZE, ha="right")

    return Block(line_height(_SIZE) + 0.06, draw)


def _short(row: Comparison | None) -> str:
    if row is None:
        return "–"
    margin = "" if row.margin is None else f" ±{style.number(row.margin, 2)}"
    return style.signed(row.mean) + margin


def _right(column: int) -> float:
    return _NAME + _WHAT + _COLUMN * (column + 1)
