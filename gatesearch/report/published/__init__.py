"""Rows printed in papers; a file a table, its source in the comment that opens it."""

import csv
from dataclasses import dataclass
from importlib.resources import files

from gatesearch.errors import unknown

_OTHERS = ("method", "family", "delta_mtl", "gflops", "mean_rank")


@dataclass(frozen=True)
class PublishedRow:
    """One printed row; nothing in it is recomputed.

    Attributes:
        method: As printed; networks of one method carry their GFLOPs.
        family: `single-task`, `weighting`, `gradient`, `architecture` or `interrogate`.
        metrics: task -> value, in the units that the file's comment states.
        delta_mtl: Percent.
        gflops: Whole network, 2 x multiply-adds.
        mean_rank: Among the rows of the same table.
    """

    method: str
    family: str
    metrics: dict[str, float]
    delta_mtl: float
    gflops: float
    mean_rank: float


def published_rows(name: str) -> tuple[PublishedRow, ...]:
    """The rows of a published table.

    Args:
        name: `nyud`, `pascal`, or their ablation on capacity, `nyud-capacity`.

    Raises:
        UsageError: There is no such table.
    """
    folder = files(__package__)
    known = sorted(item.name[:-4] for item in folder.iterdir() if item.name.endswith(".csv"))
    if name not in known:
        raise unknown("published table", name, known)
    text = (folder / f"{name}.csv").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(
        PublishedRow(
            method=row["method"],
            family=row["family"],
            metrics={key: float(value) for key, value in row.items() if key not in _OTHERS},
            delta_mtl=float(row["delta_mtl"]),
            gflops=float(row["gflops"]),
            mean_rank=float(row["mean_rank"]),
        )
        for row in csv.DictReader(lines)
    )
