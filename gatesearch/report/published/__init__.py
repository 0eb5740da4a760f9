"""Rows printed in papers: one file per table, its source in the comment that opens it."""

import csv
from dataclasses import dataclass
from importlib.resources import files

from gatesearch.errors import unknown

_NO_METRICS = ("method", "family", "delta_mtl", "gflops", "mean_rank")


@dataclass(frozen=True)
class PublishedRow:
    """A row as printed; nothing in it is recomputed.

    Attributes:
        method: Name as printed; networks of one method have their GFLOPs in it.
        family: `single-task`, `weighting`, `gradient`, `architecture` or `gates`.
        metrics: task -> value, in the units that the file's comment states.
        delta_mtl: Δ_MTL, percent.
        gflops: FLOPs of the whole network, 2 x multiply-adds / 1e9.
        mean_rank: Mean rank among the rows of the same table.
    """

    method: str
    family: str
    metrics: dict[str, float]
    delta_mtl: float
    gflops: float
    mean_rank: float


def published_rows(name: str) -> tuple[PublishedRow, ...]:
    """Read a published table.

    Args:
        name: `nyud`, `pascal`, or `nyud-capacity`, the ablation on capacity.

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
            metrics={key: float(value) for key, value in row.items() if key not in _NO_METRICS},
            delta_mtl=float(row["delta_mtl"]),
            gflops=float(row["gflops"]),
            mean_rank=float(row["mean_rank"]),
        )
        for row in csv.DictReader(lines)
    )
