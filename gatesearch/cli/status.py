"""`gatesearch status`: show the progress of a run, its workers, and damage of its store."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from gatesearch.cli.console import err, print_json, print_table, warn
from gatesearch.cli.console import out as console
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    StoreOption,
    shown_command,
    shown_storage_options,
    store_options,
)
from gatesearch.cli.stores import find_store, run_place
from gatesearch.errors import UsageError
from gatesearch.store.server import masked

EXAMPLES = """Examples:

gatesearch status --study nyud-small

watch -n 10 gatesearch status --study nyud-small

gatesearch status --study scenes --out /results/scenes --restore"""


def status(
    study: StoreOption,
    out: OutOption = None,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Put the last backup in place of a damaged database."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show how far a search is, who works on it, and whether its store is sound."""
    from gatesearch.store.status import restore_store

    named = find_store(study, out)
    folder = named.folder
    current = _read(folder)
    name = named.study or current["study"] or folder.name
    if current["study"] not in ("", name):
        raise UsageError(
            f"{folder} must hold study '{name}', found '{current['study']}'; "
            f"use --study {current['study']} or another --out"
        )
    if restore:
        restored = restore_store(folder)
        backup = restored.backup
        err.print(
            f"restored {backup.trials} trials of {backup.made:%Y-%m-%d %H:%M}"
            + (f"; what was damaged is {restored.damaged}" if restored.damaged else ""),
            markup=False,
        )
        current = _read(folder)
    run_store = store_options(*run_place(study, out, name))
    run_command = shown_command("run", *_run_options(current), store=run_store)
    if current["passed_over"]:
        warn(f"{current['passed_over']}; counted in the database instead")
    if json:
        print_json({**current, "study": name, "command": run_command})
    else:
        _print(name, current, run_command)
    if current["damage"]:
        restore_command = shown_command("status", "--restore", store=store_options(study, out))
        for line in _damage_lines(folder, current, restore_command):
            err.print(line, style="red", markup=False)


def _print(name: str, current: dict[str, Any], run_command: str) -> None:
    for line in _lines(name, current):
        console.print(line, markup=False, soft_wrap=True)
    if current["alive"]:
        _print_workers(current["workers"])
    elif _count_left(current) != 0 or _controls_left(current):
        console.print(f"continue: {run_command}", markup=False, soft_wrap=True)


def _read(folder: Path) -> dict[str, Any]:
    from gatesearch.store.status import read_status

    status = read_status(folder)
    # Earlier versions kept passwords in the query of the URL.
    return {**status, "storage": masked(status["storage"])}


def _run_options(status: dict[str, Any]) -> list[str]:
    """List the options of the command that continues the run, beside --study and --out."""
    options = ["--tune", ",".join(status["tune"])] if status["tune"] else []
    if status["n_trials"] is not None:
        options += ["--n-trials", str(status["n_trials"])]
    for text in filter(None, status["budget"].split("+")):
        amount, _, device = text.partition("@")
        options += ["--budget", amount, *(["--device", device] if device else [])]
    if status["seeds"]:
        options += ["--seeds", ",".join(map(str, status["seeds"]))]
    if status["with_controls"] is not None:
        options.append("--controls" if status["with_controls"] else "--no-controls")
    if status["headroom"]:
        options += ["--headroom", str(status["headroom"])]
    return options + (shown_storage_options(status["storage"]) if status["storage"] else [])


def _count_left(status: dict[str, Any]) -> int | None:
    """Count the trials that have not ended yet; None if their total is not known."""
    wanted: int | None = status["wanted"]
    return None if wanted is None else max(0, wanted - _count_ended(status))


def _controls_left(status: dict[str, Any]) -> bool:
    """Tell whether controls or repetitions of trials are known to be missing."""
    done, wanted = status["controls"]["done"], status["controls"]["wanted"]
    return wanted is not None and done < wanted


def _count_ended(status: dict[str, Any]) -> int:
    return sum(n for state, n in status["trials"].items() if state != "running")


def _lines(study: str, status: dict[str, Any]) -> list[str]:
    trials, best, baselines = status["trials"], status["best"], status["baselines"]
    counts = ", ".join(f"{n} {state}" for state, n in trials.items() if state != "running")
    of_trials = "" if status["wanted"] is None else f" of {status['wanted']}"
    of_baselines = "" if baselines["wanted"] is None else f" of {baselines['wanted']}"
    searched = " ".join([*status["tune"], status["budget"]]).strip()
    search = f" ({searched})" if searched else ""
    ended = f"{_count_ended(status)}{of_trials} trials ended"
    lines = [
        f"{study}{search}: {ended}, {trials['running']} in work",
        f"trials: {counts}",
        f"baselines: {baselines['done']}{of_baselines}",
    ]
    controls = status["controls"]
    if controls["done"] or controls["wanted"]:
        of_controls = "" if controls["wanted"] is None else f" of {controls['wanted']}"
        lines.append(f"controls and repetitions: {controls['done']}{of_controls}")
    if best is not None:
        lines.append(
            f"best: trial {best['trial']}, Δ_MTL {best['delta_mtl']:+.2f} % on validation, "
            f"{best['gflops']:.4g} GFLOPs; {status['front']} on the front"
        )
    if status["alive"]:
        if status["per_hour"]:
            left = timedelta(seconds=round(status["seconds_left"]))
            lines.append(f"rate: {status['per_hour']:.3g} trials per hour, {left} left")
        lines.append("run: " + _describe_holder(status["holder"]))
    else:
        as_of = f", as of {status['updated']}" if status["updated"] else ""
        lines.append(f"run: none{as_of}")
        if status["unfinished"]:
            unfinished = f"begun and not ended: {status['unfinished']}"
            lines.append(f"{unfinished}; they go on from their last checkpoints")
    return lines


def _describe_holder(holder: dict[str, Any]) -> str:
    if not holder["pid"]:
        return "another process"
    return f"process {holder['pid']} on {holder['host']} since {holder['started']}"


def _print_workers(workers: list[dict[str, Any]]) -> None:
    if not workers:
        return
    console.print()
    print_table(
        ["worker", "job", "doing", "attempt", "for", "last seen"],
        [
            [
                worker["name"],
                worker["job"],
                worker["stage"],
                str(worker["attempt"]),
                _since(worker["since"]),
                f"{_since(worker['seen'])} ago",
            ]
            for worker in workers
        ],
        numbers_from=3,
    )


def _since(then: str) -> str:
    """Describe the time that has passed since `then` (ISO 8601), as `0:12:30`."""
    passed = datetime.now().astimezone() - datetime.fromisoformat(then)
    # The time is negative if the clock was set back.
    return str(timedelta(seconds=max(0, round(passed.total_seconds()))))


def _damage_lines(folder: Path, status: dict[str, Any], restore_command: str) -> list[str]:
    from gatesearch.store.backup import DATABASE

    backup = status["backup"]
    damage = f"the store's database {folder / DATABASE} is damaged: {status['damage']}"
    if backup is None:
        return [damage, "there is no sound backup of it; start a new --out folder"]
    return [
        damage,
        f"the last backup, {backup['path']}, is of {backup['made']} and has {backup['trials']} "
        f"trials; put it in place: {restore_command}",
    ]
