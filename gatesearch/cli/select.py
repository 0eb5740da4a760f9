"""`gatesearch select`: choose a network of a store, by budgets and by the weights of tasks."""

import shlex
from typing import Annotated

import typer

from gatesearch.cli.console import err, print_json, print_table
from gatesearch.cli.console import out as console
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    PreferOption,
    StorageFileOption,
    StorageOption,
    StoreOption,
    names,
    preferences,
    record_of,
    storage_url,
    store_options,
)

EXAMPLES = """Examples:

gatesearch select --study nyud-small --budget 1.2xMTL

gatesearch select --study nyud-small --budget 20M --prefer depth=2"""


def select(
    study: StoreOption,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="B", help="Upper bound, as in `run`. Repeatable: all hold."),
    ] = None,
    prefer: PreferOption = None,
    out: OutOption = None,
    storage: StorageOption = "",
    storage_file: StorageFileOption = None,
    json: JsonOption = False,
) -> None:
    """Choose a trained network by budget and by what tasks matter, from the store alone.

    Chosen by Δ_MTL on the validation part, tasks weighted by --prefer.
    """
    _, record = record_of(study, out, storage_url(storage, storage_file))

    from gatesearch.results import point
    from gatesearch.store.selection import select as chosen

    weights = preferences(prefer, [task.name for task in record.tasks])
    budgets = names(budget, "--budget") if budget else ()
    selection = chosen(record, budgets=budgets, prefer=weights)
    result = selection.result
    better = list(dict.fromkeys(other.name for other in selection.better))  # seeds share a name
    if json:
        choice = {"budget": list(budgets), "prefer": weights, "gain": selection.gain}
        print_json(
            {"study": record.name, **choice, "network": point(record, result), "better": better}
        )
        return
    rows = [
        [
            task.name,
            f"{task.metric} {task.unit}".strip(),
            *(
                f"{result.metrics[part][task.name]:.4g}" if part in result.metrics else "-"
                for part in ("validation", "test")
            ),
        ]
        for task in record.tasks
    ]
    title = (
        f"trial {result.trial}: Δ_MTL {selection.gain:+.2f} % on validation"
        + (f" ({', '.join(f'{t} x{w:g}' for t, w in weights.items())})" if weights else "")
        + f", {result.gflops:.4g} GFLOPs, {result.params_m:.4g} M parameters"
        + (f", {result.latency_ms:.3g} ms" if result.latency_ms is not None else "")
    )
    print_table(["task", "metric", "validation", "test"], rows, numbers_from=2, title=title)
    place = shlex.join(store_options(study, out, storage, storage_file))
    console.print(
        f"ship it: gatesearch export {place} --trial {result.trial} --to network.onnx",
        markup=False,
        soft_wrap=True,
    )
    if better:
        err.print(f"within the same bounds these baselines are better: {', '.join(better)}")
