"""The predictions that a store keeps for its report, as columns: image, truth, networks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from gatesearch.errors import DataError
from gatesearch.report.network_styles import NetworkStyle
from gatesearch.report.record_queries import NAMES, display_name, pick_evenly
from gatesearch.results import StudyRecord, TaskInfo
from gatesearch.store.predictions import read_predictions

_COLUMNS = 5  # networks beside image and truth

Values = NDArray[Any]


@dataclass(frozen=True)
class Column:
    """A column of pictures or answers.

    Attributes:
        title: Above it.
        values: (frames, H, W), (frames, H, W, 3) or (frames, numbers).
        is_predicted: Whether a network predicted them.
        network: Style of that network where other pages draw it too.
    """

    title: str
    values: Values
    is_predicted: bool = False
    network: NetworkStyle | None = None


def load_arrays(record: StudyRecord) -> Mapping[str, Values]:
    """Read the arrays that the report shows; none where none were kept.

    Raises:
        DataError: The file is damaged.
        OSError: It cannot be read.
    """
    return {} if record.predictions is None else read_predictions(record.predictions)


def columns_of(
    record: StudyRecord,
    task: TaskInfo,
    arrays: Mapping[str, Values],
    styles: Mapping[str, NetworkStyle],
) -> list[Column]:
    """Choose the columns: image, truth, baselines, and trials from cheap to expensive."""
    gflops = {trial.name: trial.gflops for trial in record.trials}
    suffix = f".{task.name}"
    labels = [k.removesuffix(suffix) for k in arrays if k.endswith(suffix)]
    named = sorted((k for k in labels if k not in gflops and k != "truth"), key=_order)
    trials = sorted((k for k in labels if k in gflops), key=lambda name: gflops[name])
    kept = named[: max(_COLUMNS - len(trials), 3)]
    truth = arrays.get(f"truth{suffix}")
    columns = [Column("Image", arrays["image"])]
    columns += [Column("Truth", truth)] if truth is not None else []
    for key in [*kept, *pick_evenly(trials, _COLUMNS - len(kept))]:
        title = title_of(key)
        columns.append(Column(title, arrays[key + suffix], True, styles.get(title)))
    return columns


def not_drawable(task: TaskInfo, error: Exception) -> DataError:
    """Say that what is stored of a task cannot be shown."""
    return DataError(
        f"predictions of {task.name} cannot be drawn as {task.drawing} ({error}); delete the file: "
        "`gatesearch run` draws them anew"
    )


def _order(name: str) -> tuple[int, str]:
    return (list(NAMES).index(name) if name in NAMES else len(NAMES)), name


def title_of(name: str) -> str:
    """Write the name of a stored network as pages show it."""
    if name.startswith("trial "):
        return name.capitalize()
    return display_name(*name.partition(" + ")[::2])
