"""Provenance: everything needed to judge the figures and to reproduce them."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from gatesearch.report import style
from gatesearch.report.record_queries import network_label, split_pages
from gatesearch.results import STATES, Result, StudyRecord, front

_LINES = 62  # of a column
_WIDTH = 88  # of a line, characters
_COLUMNS = (style.LEFT, 0.515)  # left edges, fractions of the page
_REASON_LINES = 4

# Text, and whether it is a heading, which is bold; everything else is monospaced.
Line = tuple[str, bool]


def pages(record: StudyRecord) -> Iterator[Figure]:
    """Draw as many pages of two columns as the text needs."""
    columns = split_pages(list(_lines(_sections(record))), _LINES)
    for pair in split_pages(columns, 2):
        figure = style.page("Provenance", "Where every figure of this report comes from")
        for x, column in zip(_COLUMNS, pair, strict=False):
            for i, (text, heading) in enumerate(column):
                figure.text(
                    x,
                    style.TOP - 0.012 * i,
                    style.printable(text),
                    size=7.5 if heading else 6.3,
                    weight="bold" if heading else "normal",
                    family="DejaVu Sans" if heading else "DejaVu Sans Mono",
                    color=style.ACCENT if heading else style.INK,
                    va="center",
                )
        yield figure


def _sections(record: StudyRecord) -> Iterator[tuple[str, list[str]]]:
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
    yield "Data", _pairs(flatten(record.data))
    yield (
        "Training cost of the whole study",
        _pairs(
            {
                "PFLOPs": style.compact(record.training_pflops),
                "hours": style.compact(record.training_seconds / 3600),
                "images": f"{record.training_images:,}".replace(",", " "),
            }
        ),
    )
    yield "Software and device", _pairs(_environment(networks))
    uncounted = _uncounted(networks)
    yield (
        "Operators that no counter knew (most in one network)",
        _pairs(uncounted) or ["none: every operator with a cost was counted"],
    )
    lost = [result for result in networks if result.state != "complete"]
    yield f"Failed or stopped ({len(lost)})", _reasons(lost) or ["none"]
    yield "Parameters of the front", _parameters(record) or ["no front"]
    defaults = "Options and ranges of methods not listed: the defaults of the version above."
    yield "Definition", [*_pairs(flatten(record.definition)), defaults]


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


def _lines(sections: Iterable[tuple[str, list[str]]]) -> Iterator[Line]:
    for i, (heading, lines) in enumerate(sections):
        if i:
            yield "", False
        yield heading, True
        for line in lines or ["–"]:
            yield line, False


def _pairs(values: Mapping[str, Any]) -> list[str]:
    width = min(max((len(key) for key in values), default=0), 34)
    lines = []
    for key, value in values.items():
        head = f"{style.clip(key, 34):<{width}}  "
        body = textwrap.wrap(_text(value), _WIDTH - len(head)) or [""]
        lines.append(head + body[0])
        lines += [" " * len(head) + rest for rest in body[1:]]
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
    lines = []
    for result in results:
        network = f"{network_label(result)} (seed {result.seed})"
        text = f"{network} {result.state}: {result.reason or 'no reason'}"
        wrapped = textwrap.wrap(
            " ".join(text.split()), _WIDTH, subsequent_indent="  ",
            max_lines=_REASON_LINES, placeholder=" …",
        )  # fmt: skip
        lines += wrapped
    return lines


def _parameters(record: StudyRecord) -> list[str]:
    lines = []
    for trial in front(record):
        values = [f"{name.removeprefix('tau.')} {v:.4g}" for name, v in trial.numbers.items()]
        values += [v for v in trial.params.values() if isinstance(v, str)]
        values += [f"budget {trial.budget}"] if trial.budget else []
        text = f"{network_label(trial)}: {', '.join(values)}".replace("lambda_s", "λ")
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    return lines
