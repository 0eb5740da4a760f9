"""`gatesearch status`: how far a search is, who works on it, and whether its store is sound."""

import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from gatesearch.cli.console import err, print_json, print_table
from gatesearch.cli.console import out as console
from gatesearch.cli.options import JsonOption, OutOption, StudyOption, store_of
from gatesearch.errors import UsageError

EXAMPLES = """Examples:

gatesearch status --study nyud-small

watch -n 10 gatesearch status --study nyud-small

gatesearch status --study scenes --out /results/scenes --restore"""


def status(
    study: StudyOption,
    out: OutOption = None,
    restore: Annotated[
        bool,
        typer.Option("--restore", help="Put the last backup in place of a damaged database."),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Tell how far the search of a study is, in an instant and beside the running search."""
    from gatesearch.store.status import read_status, restore_store
    from gatesearch.study import load_study

    definition = load_study(study)
    name, folder = definition.name, store_of(definition, out)
    found = read_status(folder)
    if found["study"] not in ("", name):
        raise UsageError(
            f"{folder} must hold study '{name}', found '{found['study']}'; "
            f"use --study {found['study']} or another --out"
        )
    if restore:
        restored = restore_store(folder)
        backup = restored.backup
        err.print(
            f"restored {backup.trials} trials of {backup.made:%Y-%m-%d %H:%M}"
            + (f"; what was damaged is {restored.damaged}" if restored.damaged else ""),
            markup=False,
        )
        found = read_status(folder)
    place = ["--study", study, *(["--out", str(out)] if out else [])]
    again = shlex.join(["gatesearch", "run", *place, *_options(found)])
    if json:
        print_json({**found, "study": name, "command": again})
        return
    for line in _lines(name, found):
        console.print(line, markup=False, soft_wrap=True)
    if found["alive"]:
        _print_workers(found["workers"])
    elif _left(found) != 0:
        console.print(f"continue: {again}", markup=False, soft_wrap=True)
    if found["damage"]:
        mend = shlex.join(["gatesearch", "status", *place, "--restore"])
        for line in _complaint(folder, found, mend):
            err.print(line, style="red", markup=False)


def _options(found: dict[str, Any]) -> list[str]:
    """Of the command that continues."""
    options = ["--tune", ",".join(found["tune"])] if found["tune"] else []
    if found["wanted"] is not None:
        options += ["--n-trials", str(found["wanted"])]
    for text in filter(None, found["budget"].split("+")):
        amount, _, device = text.partition("@")
        options += ["--budget", amount, *(["--device", device] if device else [])]
    return options + (["--storage", found["storage"]] if found["storage"] else [])


def _left(found: dict[str, Any]) -> int | None:
    """Trials that are to come; None where their total is not known."""
    wanted: int | None = found["wanted"]
    return None if wanted is None else max(0, _wanted(found) - _ended(found))


def _wanted(found: dict[str, Any]) -> int:
    """Trials of all searches of the run."""
    return int(found["wanted"]) * max(1, len(found["tune"]))


def _ended(found: dict[str, Any]) -> int:
    return sum(n for state, n in found["trials"].items() if state != "running")


def _lines(study: str, found: dict[str, Any]) -> list[str]:
    trials, best, baselines = found["trials"], found["best"], found["baselines"]
    counts = ", ".join(f"{n} {state}" for state, n in trials.items() if state != "running")
    of = "" if found["wanted"] is None else f" of {_wanted(found)}"
    searched = " ".join([*found["tune"], found["budget"]]).strip()
    search = f" ({searched})" if searched else ""
    wanted = "" if baselines["wanted"] is None else f" of {baselines['wanted']}"
    lines = [
        f"{study}{search}: {_ended(found)}{of} trials ended, {trials['running']} in work",
        f"trials: {counts}",
        f"baselines: {baselines['done']}{wanted}",
    ]
    if best is not None:
        lines.append(
            f"best: trial {best['trial']}, Δ_MTL {best['delta_mtl']:+.2f} % on validation, "
            f"{best['gflops']:.4g} GFLOPs; {found['front']} on the front"
        )
    if found["alive"]:
        if found["per_hour"]:
            left = timedelta(seconds=round(found["seconds_left"]))
            lines.append(f"rate: {found['per_hour']:.3g} trials an hour, {left} left")
        lines.append("run: " + _holder(found["holder"]))
    else:
        of = f", as of {found['updated']}" if found["updated"] else ""
        lines.append(f"run: none{of}")
        if found["unfinished"]:
            lines.append(f"begun and not ended: {found['unfinished']}, which go on where they were")
    return lines


def _holder(holder: dict[str, Any]) -> str:
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
    passed = datetime.now().astimezone() - datetime.fromisoformat(then)
    # A clock that was set back since makes it negative.
    return str(timedelta(seconds=max(0, round(passed.total_seconds()))))


def _complaint(folder: Path, found: dict[str, Any], mend: str) -> list[str]:
    backup = found["backup"]
    what = f"the store's database in {folder} is damaged: {found['damage']}"
    if backup is None:
        return [what, "there is no sound backup of it; start a new --out folder"]
    return [
        what,
        f"the last backup, {backup['path']}, is of {backup['made']} and has {backup['trials']} "
        f"trials; put it in place: {mend}",
    ]
