"""The report's CSV: one row per result."""

import pandas as pd

from gatesearch.results import StudyRecord, delta, front


def results_table(record: StudyRecord) -> pd.DataFrame:
    """Tabulate baselines, trials in order, then controls, of every state.

    Undefined figures are empty. Columns are flat: `<split>.<task>` for metrics,
    `<split>.<task>.<figure>` for further figures, each parameter of a search by its own name.
    """
    on_front = {id(trial) for trial in front(record)}
    rows = [
        {
            "study": record.name,
            "fingerprint": record.fingerprint,
            "protocol": record.protocol,
            "method": result.method,
            "weighting": result.weighting,
            "trial": result.trial,
            "control": result.control,
            "of": result.of,
            "width": result.width,
            "budget": result.budget,
            "seed": result.seed,
            "state": result.state,
            "front": id(result) in on_front,
            "delta_mtl.validation": delta(record, result, "validation"),
            "delta_mtl.test": delta(record, result, "test"),
            "gflops": result.gflops,
            "backbone_gflops": result.backbone_gflops,
            "params_m": result.params_m,
            "epochs": result.epochs,
            "train_images": result.train_images,
            "train_seconds": result.train_seconds,
            "train_pflops": result.train_pflops,
            "uncounted": " ".join(f"{op}:{n}" for op, n in sorted(result.uncounted.items())),
            "reason": result.reason,
            **result.params,
            **{
                f"{split}.{task.name}": result.metrics.get(split, {}).get(task.name)
                for split in ("validation", "test")
                for task in record.tasks
            },
            **{
                f"{split}.{task}.{name}": value
                for split in ("validation", "test")
                for task, figures in result.details.get(split, {}).items()
                for name, value in figures.items()
            },
        }
        for result in (*record.baselines, *record.trials, *record.controls)
    ]
    table = pd.DataFrame(rows)
    return table.astype({"trial": "Int64", "of": "Int64"}) if rows else table
