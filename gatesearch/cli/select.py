"""`gatesearch select`: choose a network of a store, by budgets and by the weights of tasks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from gatesearch.cli.console import out as console
from gatesearch.cli.console import print_json, print_table
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    PluginOption,
    PreferOption,
    StorageFileOption,
    StorageOption,
    StoreOption,
    check_names,
    names,
    preferences,
    record_of,
    shown_command,
    storage_url,
    store_options,
    use_plugins,
)
from gatesearch.cli.stores import run_place
from gatesearch.errors import UsageError

if TYPE_CHECKING:
    from gatesearch.results import Result, StudyRecord

EXAMPLES = """Examples:

gatesearch select --study nyud-small --budget 1.2xMTL

gatesearch select --study nyud-small --budget 20M --prefer depth=2

gatesearch select --study nyud-small --budget 0.6xMTL --prefer depth=2 --slice ecmt --to net.onnx"""


def select(
    study: StoreOption,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B", help="Most that the network may cost, as in `run`. Repeatable: all hold."
        ),
    ] = None,
    prefer: PreferOption = None,
    out: OutOption = None,
    storage: StorageOption = "",
    storage_file: StorageFileOption = None,
    slice_: Annotated[
        str,
        typer.Option(
            "--slice",
            metavar="METHOD",
            help="Cut a network for --budget and --prefer out of this method's trained supernet, "
            "in place of a choice; --to takes it.",
        ),
    ] = "",
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --slice: file to write; it ends in .safetensors, .pt2 or .onnx.",
        ),
    ] = None,
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", envvar="GATESEARCH_DATA", help="Folder of prepared data sets."),
    ] = Path("data"),
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Choose the best network of a store within a budget; nothing is trained.

    The best trial or baseline is the one with the highest Δ_MTL on the validation part: the mean
    gain of its tasks over single-task networks, weighted by --prefer.
    """
    if bool(slice_) != (to is not None):
        raise UsageError(
            "--slice METHOD and --to FILE belong together; without both, `gatesearch export` ships "
            "what is chosen"
        )
    folder, record = record_of(study, out, storage_url(storage, storage_file))

    from gatesearch.store.selection import is_found
    from gatesearch.store.selection import select as chosen
    from gatesearch.summary import point

    weights = preferences(prefer, [task.name for task in record.tasks])
    budgets = names(budget, "--budget") if budget else ()
    if to is not None:
        check_names(to=to, data=data)
        use_plugins(plugin, store=folder)
        _cut(
            record, slice_, to, budgets=budgets, prefer=weights, store=folder, data=data, json=json
        )
        return
    store = store_options(study, out, storage, storage_file)
    run_store = store_options(*run_place(study, out, record.name), storage, storage_file)
    run = shown_command("run", store=run_store)
    selection = chosen(record, budgets=budgets, prefer=weights, run=run)
    result, other = selection.result, selection.other
    lead = selection.gain - selection.other_gain
    ship = ["--trial", result.name if result.trial is None else str(result.trial)]
    if result.trial is None and result.seed != _first_seed(record, result):
        ship += ["--seed", str(result.seed)]
    ship += ["--to", "network.onnx"]
    export = shown_command("export", *ship, store=store)
    if json:
        print_json(
            {
                "study": record.name,
                "budget": list(budgets),
                "prefer": weights,
                "kind": _kind(result),
                "gain": selection.gain,
                "network": point(record, result),
                "other": None
                if other is None
                else {
                    "kind": _kind(other),
                    "gain": selection.other_gain,
                    "lead": lead,
                    "network": point(record, other),
                },
                "export": export,
            }
        )
        return
    _print_network(record, result, _named(result), selection.gain, weights)
    rival = "baseline" if is_found(result) else "trial"
    if other is not None:
        rival = _kind(other)
    bounds = " within the bounds" if budgets else ""
    compared = f"no {rival} is{bounds}" if bounds else f"there is no finished {rival}"
    if other is not None:
        compared = (
            f"the best {rival}{bounds}, {other.name}, has {selection.other_gain:+.2f} % at "
            f"{other.gflops:.4g} GFLOPs: {lead:.2f} less"
        )
    console.print(f"a {_kind(result)} won; {compared}", markup=False, soft_wrap=True)
    console.print(f"ship it: {export}", markup=False, soft_wrap=True)


def _cut(
    record: "StudyRecord",
    method: str,
    to: Path,
    *,
    budgets: Sequence[str],
    prefer: Mapping[str, float],
    store: Path,
    data: Path,
    json: bool,
) -> None:
    """Cut a network out of a trained supernet, write it into a file, and print its figures."""
    from gatesearch.cli.export import form_of, study_frames
    from gatesearch.cli.progress import emitter
    from gatesearch.export import card_of, ship
    from gatesearch.results import delta
    from gatesearch.search.slicing import cut_slice
    from gatesearch.summary import point

    form = form_of(to)
    with TemporaryDirectory() as name, emitter() as emit:
        result, network = cut_slice(
            record, method, budgets=budgets, prefer=prefer, store=store, data=data,
            folder=Path(name), emit=emit,
        )  # fmt: skip
    card = card_of(record, result)
    parity = ship(network, card, to, form=form, frames=study_frames(record, card))
    gain = delta(record, result, "validation", prefer)
    if json:
        shown = {"study": record.name, "budget": list(budgets), "prefer": dict(prefer)}
        cut = {"kind": "slice", "gain": gain if math.isfinite(gain) else None}
        print_json(shown | cut | {"network": point(record, result), "file": str(to)})
        return
    _print_network(record, result, f"slice of {method}", gain, prefer)
    console.print(f"{to}: within {parity:.1e} of PyTorch", markup=False, soft_wrap=True)


def _print_network(
    record: "StudyRecord", result: "Result", name: str, gain: float, weights: Mapping[str, float]
) -> None:
    """Print gain and cost of a network, and its metrics as a table."""
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
        f"{name}: Δ_MTL {gain:+.2f} % on validation"
        + (f" ({', '.join(f'{t} x{w:g}' for t, w in weights.items())})" if weights else "")
        + f", {result.gflops:.4g} GFLOPs, {result.params_m:.4g} M parameters"
        + (f", {result.latency_ms:.3g} ms" if result.latency_ms is not None else "")
    )
    print_table(["task", "metric", "validation", "test"], rows, numbers_from=2, title=title)


def _kind(result: "Result") -> str:
    if result.of is not None:
        return "control"
    return "baseline" if result.trial is None else "trial"


def _named(result: "Result") -> str:
    return f"baseline {result.name}" if _kind(result) == "baseline" else result.name


def _first_seed(record: "StudyRecord", result: "Result") -> int:
    """Seed of the baseline or control that `export` takes by a name without a seed."""
    named = (*record.baselines, *record.controls)
    return next(r.seed for r in named if r.state == "complete" and r.name == result.name)
