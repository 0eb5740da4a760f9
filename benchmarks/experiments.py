r"""Long experiments: their results kept as small files, and reports and tables drawn from them.

    python -m benchmarks.experiments collect STORE [NAME]   # a file per finished network
    python -m benchmarks.experiments table NAME             # Markdown: networks, then comparisons
    python -m benchmarks.experiments draw NAME [FOLDER]     # the report: PDF, CSV, JSON
    python -m benchmarks.experiments settings NAME          # its settings NAME/... beside it

A NAME such as `multi-fashion/gates-1-epoch` is another setting of the experiment `multi-fashion`,
whose baselines it took over (`run --reuse`); of it trials and their repetitions alone are kept.

`collect` writes into `reports/experiments/NAME/`, by default the study's name; what is there is
replaced, so a run can be collected again and again while it goes on. The commands of the runs
themselves are in reports/experiments/README.md.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gatesearch.comparisons import REPEAT, compare, comparisons, controlled_trials
from gatesearch.measures import mean_rank
from gatesearch.methods import NetworkSpec
from gatesearch.report import write_report
from gatesearch.report.controls import difference
from gatesearch.report.record_queries import SeedGroup
from gatesearch.results import Result, Split, StudyRecord, TaskInfo, delta
from gatesearch.store.opening import read_store

FOLDER = Path(__file__).parents[1] / "reports" / "experiments"
SAMPLES = Path("reports/sample")  # relative, as a report's JSON tells where it lies
STUDY = "study.json"
# Attributes of a record that are no results.
_MADE_OF = ("name", "fingerprint", "definition", "protocol", "published", "data")


def collect(store: Path, name: str = "", *, folder: Path = FOLDER) -> list[Path]:
    """Write a file for each network of a store that was trained, and one for its study.

    Args:
        store: The store's folder.
        name: Name of the experiment; that of the study if empty.
        folder: Folder of all experiments.
    """
    record = read_store(store)
    target = folder / (name or record.name)
    target.mkdir(parents=True, exist_ok=True)
    about = {key: getattr(record, key) for key in _MADE_OF}
    about["tasks"] = [vars(task) for task in record.tasks]
    _write(target / STUDY, about)
    paths = []
    bases = () if "/" in name else (*record.baselines, *record.starts)
    for result in (*bases, *record.trials, *record.controls):
        path = target / ("-".join(NetworkSpec.of(result).folder(Path()).parts) + ".json")
        _write(path, _shortened(result.to_json()))
        paths.append(path)
    return paths


def record_of(name: str, *, folder: Path = FOLDER) -> StudyRecord:
    """Read an experiment as the record of its store, without pictures of predictions."""
    source = folder / name
    about = json.loads((source / STUDY).read_text(encoding="utf-8"))
    results = [
        Result.from_text(path.read_text(encoding="utf-8"))
        for path in sorted(source.glob("*.json"))
        if path.name != STUDY
    ]
    baselines = [r for r in results if r.trial is None and r.of is None and not r.part]
    baselines.sort(key=lambda r: (r.seed, r.method not in ("stl", "mtl"), r.method != "stl"))
    return StudyRecord(
        **{key: about[key] for key in _MADE_OF},
        tasks=tuple(map(TaskInfo.from_json, about["tasks"])),
        baselines=tuple(baselines),
        starts=tuple(r for r in results if r.part),
        trials=tuple(sorted((r for r in results if r.trial is not None), key=_number)),
        controls=tuple(r for r in results if r.of is not None),
    )


def table(record: StudyRecord) -> str:
    """Draw the networks, means over seeds, best Δ_MTL first.

    Figures are those of the test part if baselines and controls were measured on it, which a run
    does at its end, and of the validation part before. MR is the mean rank over the tasks among the
    rows. Comparisons of trials with their controls follow, as in the report.
    """
    groups: dict[str, list[Result]] = {}
    networks = [r for r in (*record.baselines, *record.controls) if r.state == "complete"]
    split: Split = "test" if all("test" in r.metrics for r in networks) else "validation"
    for result in (*networks, *record.trials):
        if result.state == "complete" and split in result.metrics:
            number = result.of if result.control == REPEAT else result.trial
            name = result.name if number is None else f"trial {number} of {result.method}"
            groups.setdefault(name, []).append(result)
    if not groups:
        return "no results"
    rows = [SeedGroup(name, name, tuple(results)) for name, results in groups.items()]

    def gain(result: Result) -> float:
        return delta(record, result, split)

    rows.sort(key=lambda row: -row.mean(gain))
    tasks = [task.name for task in record.tasks]
    metrics = {row.label: {t: row.mean(_metric(t, split)) for t in tasks} for row in rows}
    ranks = mean_rank(metrics, record.higher_is_better)
    lines = [
        f"{record.name}, {split} part",
        "",
        f"| network | seeds | {' | '.join(tasks)} | Δ_MTL, % | GFLOPs | training PFLOPs | MR |",
        "|---" * (len(tasks) + 6) + "|",
    ]
    for row in rows:
        cells = [
            row.label,
            str(len(row.results)),
            *(f"{metrics[row.label][task]:.4g}" for task in tasks),
            _spread(row, gain),
            f"{row.mean(lambda r: r.gflops):.3g}",
            f"{row.mean(lambda r: r.train_pflops):.3g}",
            f"{ranks[row.label]:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {c.a} minus {c.b}: {difference(c)}" for c in comparisons(record))]
    return "\n".join(lines)


def settings_table(base: StudyRecord, others: Mapping[str, StudyRecord]) -> str:
    """Draw trials of other settings, one a row, against the first trial of `base` with controls.

    The first trial of each setting and its repetitions with further seeds are compared, seed by
    seed, with those of `base` and with its controls if it has any, on the validation part, by which
    settings are chosen.

    Args:
        base: Record of the experiment.
        others: What a setting is called -> its record, without baselines.
    """
    rows, against = {}, {}
    for controlled in controlled_trials(base)[:1]:
        rows["the experiment's"] = controlled.learned
        against = rows | dict(controlled.controls)
    for name, record in others.items():
        first = min((t for t in record.trials if t.state == "complete"), key=_number)
        repeats = [c for c in record.controls if (c.of, c.control) == (first.trial, REPEAT)]
        rows[name] = {r.seed: r for r in (first, *repeats) if r.state == "complete"}

    def gain(result: Result) -> float:
        return delta(base, result, "validation")

    lines = [
        f"{base.name}, validation part, Δ_MTL in percent",
        "",
        f"| setting | seeds | Δ_MTL | {''.join(f'minus {name} | ' for name in against)}"
        "GFLOPs | training PFLOPs |",
        "|---" * (len(against) + 5) + "|",
    ]
    for name, ours in rows.items():
        pairs = [
            compare(name, other, [gain(ours[s]) - gain(theirs[s]) for s in ours if s in theirs])
            for other, theirs in against.items()
        ]
        row = SeedGroup(name, name, tuple(ours.values()))
        cells = [
            name,
            str(len(ours)),
            _spread(row, gain),
            *("" if c is None or c.b == c.a else difference(c) for c in pairs),
            f"{row.mean(lambda r: r.gflops):.3g}",
            f"{row.mean(lambda r: r.train_pflops):.3g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(row: SeedGroup, measure: Callable[[Result], float]) -> str:
    """Write the mean over seeds with their sample standard deviation."""
    deviation = row.deviation(measure)
    return f"{row.mean(measure):+.2f}" + (f" ± {deviation:.2f}" if math.isfinite(deviation) else "")


def _metric(task: str, split: Split) -> Callable[[Result], float]:
    return lambda result: result.metrics[split][task]


def _number(result: Result) -> int:
    return result.trial or 0


def _shortened(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round curves to four digits, which no figure of a table is read off."""
    curves = {name: [float(f"{v:.4g}") for v in curve] for name, curve in values["curves"].items()}
    return {**values, "curves": curves}


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("collect")
    command.add_argument("store", type=Path)
    command.add_argument("name", nargs="?", default="")
    commands.add_parser("table").add_argument("name")
    command = commands.add_parser("draw")
    command.add_argument("name")
    command.add_argument("folder", nargs="?", type=Path, default=SAMPLES)
    command = commands.add_parser("settings")
    command.add_argument("name")
    given = parser.parse_args()
    if given.command == "collect":
        for path in collect(given.store, given.name):
            print(path)
    elif given.command == "table":
        print(table(record_of(given.name)))
    elif given.command == "settings":
        folders = sorted(path.parent for path in (FOLDER / given.name).glob(f"*/{STUDY}"))
        others = {path.name: record_of(f"{given.name}/{path.name}") for path in folders}
        print(settings_table(record_of(given.name), others))
    else:
        print(write_report(record_of(given.name), folder=given.folder))


if __name__ == "__main__":
    main()
