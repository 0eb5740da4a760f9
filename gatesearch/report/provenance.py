"""Provenance: all that is needed to judge the figures and to get them again."""

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from gatesearch.report import style
from gatesearch.report.record_queries import label, paged
from gatesearch.results import Result, StudyRecord, front

_LINES = 62
_WIDTH = 88
_COLUMNS = (style.LEFT, 0.515)
_REASON_LINES = 4

# A heading is a line of bold type; everything else is monospaced.
Line = tuple[str, bool]


def pages(record: StudyRecord) -> Iterator[Figure]:
    """As many pages of two columns as the text needs."""
    columns = paged(list(_flow(_sections(record))), _LINES)
    for pair in paged(columns, 2):
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
    everything = (*record.baselines, *record.trials)
    states = [r.state for r in everything]
    yield (
        "Study",
        _pairs(
            {
                "name": record.name,
                "fingerprint": record.fingerprint,
                "protocol": record.protocol,
                "networks": ", ".join(
                    f"{states.count(s)} {s}" for s in ("complete", "failed", "pruned")
                ),
                "seeds": ", ".join(str(s) for s in sorted({r.seed for r in everything})) or "none",
                "choices": "on validation; the last epoch of every network counts",
                "predictions": "stored" if record.predictions else "none stored",
            }
        ),
    )
    yield "Data", _pairs(flat(record.data))
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
    yield "Software and device", _pairs(_environment(everything))
    uncounted = _uncounted(everything)
    yield (
        "Operators that no counter knew (most in one network)",
        _pairs(uncounted) or ["none: every operator with a cost was counted"],
    )
    lost = [r for r in everything if r.state != "complete"]
    yield f"Failed or pruned ({len(lost)})", _reasons(lost) or ["none"]
    yield "Parameters of the front", _parameters(record) or ["no front"]
    yield "Definition", _pairs(flat(record.definition))


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _flow(sections: Iterable[tuple[str, list[str]]]) -> Iterator[Line]:
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
    """Every value seen of each key; more than one where parts ran on different machines."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for key, value in result.environment.items():
            values = seen.setdefault(key, [])
            if value not in values:
                values.append(value)
    return {key: " | ".join(values) for key, values in sorted(seen.items())}


def _uncounted(results: Iterable[Result]) -> dict[str, int]:
    most: dict[str, int] = {}
    for result in results:
        for operator, count in result.uncounted.items():
            most[operator] = max(most.get(operator, 0), count)
    return dict(sorted(most.items()))


def _reasons(results: Iterable[Result]) -> list[str]:
    lines = []
    for result in results:
        text = (
            f"{label(result)} (seed {result.seed}) {result.state}: {result.reason or 'no reason'}"
        )
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
        text = f"{label(trial)}: {', '.join(values)}".replace("lambda_s", "λ")
        lines += textwrap.wrap(text, _WIDTH, subsequent_indent="  ")
    return lines
