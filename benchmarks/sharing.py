r"""The sharing methods on real frames: results kept as small files, and the table of all of them.

One command trains all methods, two networks at a time; after an interruption it goes on:

    OMP_NUM_THREADS=1 gatesearch run --study nyud-small --data DIR --workers 2 \
        --set training.epochs=240 --set one_shot.epochs=240 \
        --methods stl,mtl,branch,cross_stitch,sluice,nddr,mtan,den,gradsplit,adashare,lomt,ecmt \
        --tune interrogate,one_shot,adashare,lomt,ecmt,dymu,branch --n-trials 1 --out STORE

`python -m benchmarks.sharing collect STORE` writes what is finished of it into
`reports/experiments/sharing/`, a file per network, and `python -m benchmarks.sharing` prints the
table of all files there.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gatesearch.measures import delta_mtl
from gatesearch.results import Result
from gatesearch.store.opening import read_store

FOLDER = Path(__file__).parents[1] / "reports" / "experiments" / "sharing"
KEPT = (
    "method", "seed", "trial", "params", "metrics", "gflops", "backbone_gflops", "params_m",
    "epochs", "train_pflops", "train_seconds",
)  # fmt: skip
Row = Mapping[str, Any]


def collect(store: Path, folder: Path = FOLDER) -> list[Path]:
    """Write a file for each finished network of a store that was measured on the test part."""
    record = read_store(store)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for result in (*record.baselines, *record.trials):
        if result.state == "complete" and "test" in result.metrics:
            values = result.to_json()
            small = {key: values[key] for key in KEPT}
            small["study"] = f"{record.name}, {record.protocol}"
            small["higher_is_better"] = record.higher_is_better
            path = folder / f"{_name(result)}-seed{result.seed}.json"
            path.write_text(json.dumps(small, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            written.append(path)
    return written


def table(rows: Iterable[Row]) -> str:
    """Draw the table: figures on the test part, means over seeds, best Δ_MTL first.

    Δ_MTL is against the single-task networks of the same seed; networks of seeds without them are
    left out. MR is the mean rank over the tasks among the rows.
    """
    rows = list(rows)
    single = {row["seed"]: row["metrics"]["test"] for row in rows if row["method"] == "stl"}
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["seed"] in single:
            kind = " (trial)" if row["trial"] is not None else ""
            groups.setdefault(row["method"] + kind, []).append(row)
    if not groups:
        return "no results"
    higher: dict[str, bool] = next(iter(groups.values()))[0]["higher_is_better"]
    means = {
        name: {
            **{task: _mean(r["metrics"]["test"][task] for r in group) for task in higher},
            "delta": _mean(
                delta_mtl(r["metrics"]["test"], single[r["seed"]], higher) for r in group
            ),
            "gflops": _mean(r["gflops"] for r in group),
            "pflops": _mean(r["train_pflops"] for r in group),
        }
        for name, group in groups.items()
    }
    ranks: dict[str, list[int]] = {name: [] for name in means}
    for task, is_higher in higher.items():
        order = sorted(means, key=lambda name: means[name][task] * (-1 if is_higher else 1))
        for place, name in enumerate(order, start=1):
            ranks[name].append(place)
    lines = [
        f"| network | seeds | {' | '.join(higher)} | Δ_MTL, % | GFLOPs | training PFLOPs | MR |",
        "|---" * (len(higher) + 6) + "|",
    ]
    for name in sorted(means, key=lambda name: -means[name]["delta"]):
        row = means[name]
        figures = " | ".join(f"{row[task]:.4g}" for task in higher)
        lines.append(
            f"| {name} | {len(groups[name])} | {figures} | {row['delta']:+.2f} | "
            f"{row['gflops']:.3g} | {row['pflops']:.3g} | {_mean(ranks[name]):.1f} |"
        )
    return "\n".join(lines)


def _name(result: Result) -> str:
    return result.method if result.trial is None else f"{result.method}-trial{result.trial}"


def _mean(values: Iterable[float]) -> float:
    numbers = [value for value in values if math.isfinite(value)]
    return statistics.fmean(numbers) if numbers else math.nan


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("collect").add_argument("store", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "collect":
        for path in collect(arguments.store):
            print(path)
    else:
        files = sorted(FOLDER.glob("*.json"))
        print(table(json.loads(path.read_text(encoding="utf-8")) for path in files))


if __name__ == "__main__":
    main()
