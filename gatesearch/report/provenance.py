"""Provenance: everything needed to judge the figures and to reproduce them."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gatesearch.report import style
from gatesearch.report.layout import COLUMN_GAP, WIDTH, Block, Box, Section, draw_lines
from gatesearch.report.record_queries import network_label, partly_labelled
from gatesearch.report.text import line_height, text_width, wrap
from gatesearch.results import STATES, Result, StudyRecord, front

_SIZE, _HEADING = 7.0, 8.0  # points
_COLUMNS = 3
_WIDTH = (WIDTH - COLUMN_GAP * (_COLUMNS - 1)) / _COLUMNS  # of a column, inches
_KEYS = 2.0  # width of keys beside values at most, inches
_REASON_LINES = 4
_MOST = 40  # reasons, and networks of the front; the CSV has all of them


def sections(record: StudyRecord) -> Iterator[Section]:
    """Yield all of it as one section of three columns."""
    blocks: list[Block] = []
    for heading, lines in _chapters(record):
        blocks.append(_line(heading, _HEADING, heading=True))
        *most, last = lines or ["–"]
        blocks += [_line(line, _SIZE) for line in most]
        blocks.append(_line(last, _SIZE, space=0.08))
    yield Section(
        "Provenance", "Where every figure of this report comes from", blocks, columns=_COLUMNS,
        keep=24,
    )  # fmt: skip


def _line(text: str, size: float, *, space: float = 0.0, heading: bool = False) -> Block:
    def draw(box: Box) -> None:
        draw_lines(
            box, [text], 0, 0, size=size, weight="bold" if heading else "normal",
            family="DejaVu Sans" if heading else "DejaVu Sans Mono",
            color=style.ACCENT if heading else style.INK,
        )  # fmt: skip

    return Block(line_height(size) * 0.9 + space, draw, with_next=heading)


def _chapters(record: StudyRecord) -> Iterator[tuple[str, list[str]]]:
    networks = (*record.baselines, *record.trials)
    states = [result.state for result in networks]
    yield (
        "Study",
        _pairs(
            {
                "name": record.name,
                "fingerprint": record.fingerprint,
                "protocol": record.protocol,
                "networks": ", ".join(f"{states.count(state)} {state}" for state in STATES),
                "seeds": ", ".join(str(s) for s in sorted({r.seed for r in networks})) or "none",
                "choices": "on validation; the last epoch of every network counts",
                "predictions": "stored" if record.predictions else "none stored",
            }
        ),
    )
    described = {key: value for key, value in record.data.items() if key != "labelled"}
    yield "Data", _pairs(flatten(described))
    if some := partly_labelled(record):
        yield "Labelled frames", _labelled(record, some)
    letter, factor = style.operations_unit(record.training_pflops)
    yield (
        "Training cost of the whole study",
        _pairs(
            {
                f"{letter}FLOPs": style.compact(record.training_pflops * factor),
                "time": style.duration(record.training_seconds),
                "images": f"{record.training_images:,}".replace(",", " "),
            }
        ),
    )
    yield "Software and device", _pairs(_environment(networks))
    uncounted = _uncounted(networks)
    yield (
        "Operators not counted (most in one network)",
        _pairs(uncounted) or ["none: every operator with a cost was counted"],
    )
    lost = [result for result in networks if result.state != "complete"]
    yield f"Failed or stopped ({len(lost)})", _reasons(lost) or ["none"]
    yield "Parameters of the front", _parameters(record) or ["no front"]
    defaults = "Options and ranges of methods not listed: the defaults of the version above."
    definition = _pairs(flatten(record.definition))
    yield "Definition", [*definition, *wrap(defaults, _WIDTH, _SIZE, mono=True)]


def _labelled(record: StudyRecord, some: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    """Say of how many frames of each part each task has labels."""
    counts: dict[str, str] = {}
    for task in record.tasks:
        if task.name in some:
            parts = some[task.name].items()
            counts[task.name] = ", ".join(f"{part} {known}/{of}" for part, (known, of) in parts)
    others = len(record.tasks) - len(some)
    return _pairs(counts | ({f"{others} other task{'s' * (others > 1)}": "all"} if others else {}))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into one with dotted keys.

    >>> flatten({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """Write keys and values in two aligned columns; what is too long for its column goes below."""
    short = [key for key in values if text_width(key, _SIZE, mono=True) <= _KEYS]
    width = max(map(len, short), default=0) + 2
    room = _WIDTH - text_width(" " * width, _SIZE, mono=True)
    lines = []
    for key, value in values.items():
        first, *rest = wrap(_text(value), room, _SIZE, mono=True)
        if key in short:
            lines.append(f"{key:<{width}}{first}")
        else:
            lines += [*wrap(key, _WIDTH, _SIZE, mono=True), " " * width + first]
        lines += [" " * width + line for line in rest]
    return lines


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", None, [], (), {}):
        return "–"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    return " ".join(str(value).split())


def _environment(results: Iterable[Result]) -> dict[str, str]:
    """List every value of each key; there are several if parts ran on different machines."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for key, value in result.environment.items():
            values = seen.setdefault(key, [])
            if value not in values:
                values.append(value)
    return {key: " | ".join(values) for key, values in sorted(seen.items())}


def _uncounted(results: Iterable[Result]) -> dict[str, int]:
    """Count each operator that no counter knew: the most that one network has."""
    most: dict[str, int] = {}
    for result in results:
        for operator, count in result.uncounted.items():
            most[operator] = max(most.get(operator, 0), count)
    return dict(sorted(most.items()))


def _reasons(results: Iterable[Result]) -> list[str]:
    """Say why networks failed or were stopped, each reason once with all its networks."""
    networks: dict[str, list[str]] = {}
    for result in results:
        reason = " ".join(f"{result.state}: {result.reason or 'no reason'}".split())
        network = f"{network_label(result)} (seed {result.seed})"
        networks.setdefault(reason, []).append(network)
    lines = []
    for reason, names in list(networks.items())[:_MOST]:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        lines += wrap(f"{shown} {reason}", _WIDTH, _SIZE, lines=_REASON_LINES, mono=True)
    return lines + _others(len(networks), "reasons")


def _parameters(record: StudyRecord) -> list[str]:
    lines = []
    for trial in front(record)[:_MOST]:
        values = [f"{name.removeprefix('tau.')} {v:.4g}" for name, v in trial.numbers.items()]
        values += [v for v in trial.params.values() if isinstance(v, str)]
        values += [f"budget {trial.budget}"] if trial.budget else []
        text = f"{network_label(trial)}: {', '.join(values)}".replace("lambda_s ", "λ ")
        lines += wrap(text, _WIDTH, _SIZE, mono=True)
    return lines + _others(len(front(record)), "networks")


def _others(count: int, kind: str) -> list[str]:
    return [f"and {count - _MOST} more {kind}, in the CSV"] if count > _MOST else []
