"""What one task costs: what must be computed of a front's network for each task, and each pair."""

from collections.abc import Iterator, Mapping, Sequence

from gatesearch.report import style
from gatesearch.report.layout import WIDTH, Block, Box, Section, draw_lines
from gatesearch.report.legend import draw_marker
from gatesearch.report.network_styles import NetworkStyle, network_styles
from gatesearch.report.record_queries import front_trials, network_label, split_pages
from gatesearch.report.text import fit, line_height, text_width, wrap
from gatesearch.results import Result, StudyRecord

_SIZE, _HEAD = 7.5, 7.0  # sizes of figures and of the head, points
_MARKER, _GAP = 0.18, 0.08
_NAMES = 2.2  # width of the networks' names at most, inches
_NARROWEST, _WIDEST = 0.84, 1.2  # of a column, inches
_HEAD_LINES = 3


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield a table of the front's networks whose results hold such costs; nothing without any."""
    trials = [trial for trial in front_trials(record) if trial.task_gflops]
    if not trials:
        return
    styles = network_styles(record)
    sets = list(dict.fromkeys(name for trial in trials for name in trial.task_gflops))
    widest = max(text_width(network_label(trial), _SIZE) for trial in trials)
    names = min(_MARKER + widest + 2 * _GAP, _NAMES)
    parts = split_pages(sets, int((WIDTH - names) / _NARROWEST) - 1)
    for i, part in enumerate(parts):
        width = min((WIDTH - names) / (len(part) + 1), _WIDEST)
        yield Section(
            "What one task costs" if i == 0 else "What one task costs, further tasks",
            "GFLOPs of what must be computed of a pruned network for the outputs of some tasks "
            "alone, heads included, and their share of the whole network",
            [_row(trial, part, styles[network_label(trial)], names, width) for trial in trials],
            note="gatesearch export --tasks A,B writes that part of the network."
            if i == len(parts) - 1
            else "",
            head=_head(part, names, width),
            keep=min(4, len(trials)),
        )


def _head(sets: Sequence[str], names: float, width: float) -> Block:
    room = width - _GAP
    titles = ["all tasks", *(name.replace("+", " + ") for name in sets)]
    wrapped = [wrap(title, room, _HEAD, lines=_HEAD_LINES, bold=True) for title in titles]
    step = line_height(_HEAD)
    height = step * max(map(len, wrapped)) + 0.12

    def draw(box: Box) -> None:
        box.text(0, 0.02 + step / 2, "Network", size=_HEAD, weight="bold")
        for i, lines in enumerate(wrapped):
            right = names + width * (i + 1)
            draw_lines(box, lines, right, 0.02, size=_HEAD, weight="bold", ha="right")
        box.rule(height - 0.03, to=names + width * (len(titles)))

    return Block(height, draw)


def _row(
    trial: Result, sets: Sequence[str], network: NetworkStyle, names: float, width: float
) -> Block:
    cells = [style.compact(trial.gflops), *(_cell(trial, trial.task_gflops, s) for s in sets)]
    step = line_height(_SIZE)

    def draw(box: Box) -> None:
        y = step / 2
        draw_marker(box, network, 0.06, y)
        name = fit(network_label(trial), names - _MARKER - _GAP, _SIZE)
        box.text(_MARKER, y, name, size=_SIZE)
        for i, cell in enumerate(cells):
            text = fit(cell, width - 0.03, _SIZE)
            box.text(names + width * (i + 1), y, text, size=_SIZE, ha="right")

    return Block(step, draw, most=step + 0.04)


def _cell(trial: Result, gflops: Mapping[str, float], tasks: str) -> str:
    """Write the cost of some tasks and its share of the whole network; an en dash without it."""
    if tasks not in gflops or not trial.gflops:
        return "–"
    return f"{style.compact(gflops[tasks])} · {100 * gflops[tasks] / trial.gflops:.0f} %"
