"""Print the front beside the baselines, at the end of `run` and `report`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatesearch.cli.console import out, print_json, print_table

if TYPE_CHECKING:
    from gatesearch.results import StudyRecord, TaskInfo


def print_result(record: "StudyRecord", path: Path, *, as_json: bool) -> None:
    """Print the front beside the baselines, or the JSON object of `gatesearch.summary.summary`.

    Args:
        record: What the store holds.
        path: The report's PDF.
        as_json: Whether to print one JSON object instead of the tables.
    """
    from gatesearch.report.controls import sharing_sentences
    from gatesearch.results import STATES
    from gatesearch.summary import summary

    result = summary(record, path)
    if as_json:
        print_json(result)
        return
    fronts: dict[str, list[dict[str, Any]]] = result.get("fronts", {"": result["front"]})
    named = {method: f" {method}" if len(fronts) > 1 else "" for method in fronts}
    points = [
        *result["baselines"],
        *(p | {"of": named[method]} for method, points in fronts.items() for p in points),
    ]
    # One table per split and seed: figures of two are never compared.
    for split, seed in dict.fromkeys((point["split"], point["seed"]) for point in points):
        print_table(
            [
                "network",
                *(_heading(task) for task in record.tasks),
                "Δ_MTL\n(%)",
                "GFLOPs",
                "params\n(M)",
            ],
            [
                _row(point, record.tasks)
                for point in points
                if (point["split"], point["seed"]) == (split, seed)
            ],
            numbers_from=1,
            title=f"{record.name} ({record.protocol}), seed {seed}, {split} part: "
            f"baselines, then the front{'s' if len(fronts) > 1 else ''}",
        )
        out.print()
    for sentence in sharing_sentences(record):
        out.print(sentence, markup=False, soft_wrap=True)
    states = [trial.state for trial in record.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES)
    out.print(f"trials: {counts}")
    out.print(f"report: {path}", markup=False, soft_wrap=True)


def _heading(task: "TaskInfo") -> str:
    arrow = "↑" if task.higher_is_better else "↓"
    unit = f"({task.unit}) " if task.unit else ""
    return f"{task.name}\n{task.metric}\n{unit}{arrow}"


def _row(point: dict[str, Any], tasks: tuple["TaskInfo", ...]) -> list[str]:
    from gatesearch.measures import shown_gflops
    from gatesearch.results import network_name

    return [
        f"trial {point['trial']}{point['of']}"
        if "trial" in point
        else network_name(point["method"], point["weighting"], point.get("width", 1)),
        *(_number(point["metrics"].get(task.name), 3) for task in tasks),
        _number(point["delta_mtl"], 2, sign="+"),
        shown_gflops(point["gflops"]),
        _number(point["params_m"], 3),
    ]


def _number(value: float | None, decimals: int, *, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{sign},.{decimals}f}"
