"""The table of methods that can be steered at run time: how well they follow preferences."""

from collections.abc import Callable, Iterator, Sequence

from gatesearch.controllability import NEAR, REFERENCE
from gatesearch.report import style
from gatesearch.report.layout import Block, Box, Section
from gatesearch.report.record_queries import display_name
from gatesearch.report.text import fit, line_height
from gatesearch.results import StudyRecord
from gatesearch.store.steering import Controllability, controllability

_SIZE, _HEAD = 7.5, 7.0  # points
_METHOD, _BUDGET, _COLUMN = 2.0, 2.2, 1.1  # widths, inches
_END = _METHOD + _BUDGET + 5 * _COLUMN
_COLUMNS: tuple[tuple[str, Callable[[Controllability], float], int], ...] = (
    ("seed", lambda row: row.seed, 0),
    ("networks", lambda row: row.n, 0),
    ("hypervolume ↑", lambda row: row.hypervolume, 3),
    ("uniformity ↑", lambda row: row.uniformity, 3),
    ("budgets hit (%) ↑", lambda row: 100 * row.budgets_hit, 0),
)


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield the table; nothing where no method of the store can be steered."""
    rows = controllability(record)
    if rows:
        yield Section(
            "Controllability",
            "Networks of one training for many preferences among the tasks, validation split",
            [_row(row) for row in rows],
            note=(
                "Hypervolume: of each task's loss relative to the single-task network, up to "
                f"{REFERENCE:g} in every task; single-task networks alone have "
                f"{(REFERENCE - 1) ** len(record.tasks):g}. Uniformity: 1 where losses are "
                "inverse to preferences. Budgets hit: networks that keep to their budget and take "
                f"at least {100 * NEAR:.0f} % of it; without a budget, of ten budgets from the "
                "cheapest network to the dearest."
            ),
            head=_head(),
            keep=min(4, len(rows)),
        )


def _head() -> Block:
    def draw(box: Box) -> None:
        middle = line_height(_HEAD) / 2
        box.text(0, middle, "Method", size=_HEAD, weight="bold")
        box.text(_METHOD, middle, "Budget", size=_HEAD, weight="bold")
        _write_figures(box, [name for name, _, _ in _COLUMNS], middle, size=_HEAD, weight="bold")
        box.rule(box.height - 0.03, to=_END)

    return Block(line_height(_HEAD) + 0.08, draw)


def _row(row: Controllability) -> Block:
    def draw(box: Box) -> None:
        middle = box.height / 2
        box.text(0, middle, fit(display_name(row.method), _METHOD - 0.1, _SIZE), size=_SIZE)
        box.text(_METHOD, middle, fit(row.budget or "none", _BUDGET - 0.1, _SIZE), size=_SIZE)
        figures = [style.number(measure(row), decimals) for _, measure, decimals in _COLUMNS]
        _write_figures(box, figures, middle, size=_SIZE)

    return Block(line_height(_SIZE) + 0.04, draw)


def _write_figures(
    box: Box, texts: Sequence[str], middle: float, *, size: float, weight: str = "normal"
) -> None:
    for i, text in enumerate(texts):
        right = _METHOD + _BUDGET + _COLUMN * (i + 1)
        box.text(right, middle, text, size=size, ha="right", weight=weight)
