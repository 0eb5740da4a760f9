"""`gatesearch run`: train the baselines, search, and write the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gatesearch.cli.console import err
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    PluginOption,
    PreferOption,
    ReportsOption,
    SetOption,
    StorageFileOption,
    StorageOption,
    StudyOption,
    check_names,
    check_reports,
    names,
    preferences,
    settings,
    shown_command,
    storage_url,
    store_options,
    use_plugins,
    writing,
)
from gatesearch.cli.result import print_result
from gatesearch.cli.stores import RUNS
from gatesearch.errors import UsageError, unknown

# Value of --search -> methods to tune; empty for those of the study.
_MODES: dict[str, tuple[str, ...]] = {"separate": (), "one_shot": ("one_shot",)}

# Bounds that only catch slips: of trials, and of processes on one machine or cluster.
_MOST, _MOST_PROCESSES = 1_000_000, 4096
_LARGEST_SEED = 2**63 - 1  # as in `Study.seed`

EXAMPLES = """Examples:

gatesearch run --study scenes --n-trials 6

gatesearch run --study nyud-small --n-trials 20 --data /data --methods stl,mtl

gatesearch run --study nyud-small --n-trials 0 --methods mtl --weightings uniform,pcgrad,scalar

gatesearch run --study scenes --n-trials 4 --budget 1.3xMTL

gatesearch run --study scenes --n-trials 6 --budget 1.3xMTL --seeds 0,1,2 --controls

gatesearch run --study nyud-small --search one_shot --points 8

gatesearch run --study nyud --n-trials 40 --workers 4

gatesearch run --study nyud --n-trials 40 --executor ray://head:10001 --workers 16

gatesearch run --study nyud --n-trials 40 --storage postgresql://me@server/studies

gatesearch run --study scenes --out runs/wide --set search.lambda_s=[1,50] --reuse runs/scenes

gatesearch run --study mine.toml --n-trials 0 --set training.epochs=2 --json"""


def run(
    study: StudyOption,
    n_trials: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_MOST,
            metavar="N",
            help="Trials in all, of each method that is searched; 0 trains the baselines only. "
            "Default: 20 for most methods.",
        ),
    ] = None,
    data: Annotated[
        Path,
        typer.Option(metavar="DIR", envvar="GATESEARCH_DATA", help="Folder of prepared data sets."),
    ] = Path("data"),
    methods: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="Baselines to train for comparison. Default: the study's."
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Methods to search, N trials each; see `gatesearch methods`. Default: the "
            "study's, else the first of that list.",
        ),
    ] = None,
    weightings: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Ways to balance the tasks; each baseline is trained with each. Default: the "
            "study's.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_LARGEST_SEED,
            metavar="S",
            help="Seed of first weights, data order and search. Default: the study's.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Seeds of the baselines; the first is that of the search, whose best trial is "
            "trained again with the others.",
        ),
    ] = None,
    controls: Annotated[
        bool | None,
        typer.Option(
            "--controls/--no-controls",
            help="Train networks of the best trial's cost that share in other ways. Default: if "
            "they cost at most half of all training before.",
        ),
    ] = None,
    headroom: Annotated[
        int,
        typer.Option(
            min=0,
            max=_MOST,
            metavar="N",
            help="Train N drawn patterns of the best trial's cost too, to see how far patterns "
            "differ.",
        ),
    ] = 0,
    out: OutOption = None,
    reports: ReportsOption = Path("reports"),
    budget: Annotated[
        list[str] | None,
        typer.Option(
            metavar="B",
            help="Most that a trial's network may cost: FLOPs (892G, 446GMAC), parameters (20M), "
            "latency (12ms), or relative (1.3xMTL, 0.8xSTL); of one task alone: depth:0.6xSTL. "
            "Repeatable: all hold.",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="cpu|cuda",
            help="Device that latency is measured on. Default: that of training.",
        ),
    ] = "",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_PROCESSES,
            metavar="K",
            help="Networks to train at a time, each in its own process; CUDA devices are shared.",
        ),
    ] = 1,
    executor: Annotated[
        str,
        typer.Option(
            metavar="process|ray|ray://ADDRESS",
            help="Where workers run: processes of this machine, or Ray.",
        ),
    ] = "process",
    devices_per_trial: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MOST_PROCESSES,
            metavar="G",
            help="Devices that train one network together.",
        ),
    ] = 1,
    storage: StorageOption = "",
    storage_file: StorageFileOption = None,
    search: Annotated[
        str,
        typer.Option(
            metavar="MODE",
            help="separate: one training per trial; one_shot: one training for all of them, the "
            "same as --tune one_shot.",
        ),
    ] = "",
    points: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=_MOST,
            metavar="K",
            help="With one_shot or ecmt: networks to cut out, the same as --n-trials.",
        ),
    ] = None,
    prefer: PreferOption = None,
    reuse: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Another store, to take baselines from that would be trained the same.",
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try the settings of failed trials again, as new trials beyond N.",
        ),
    ] = False,
    set_: SetOption = None,
    plugin: PluginOption = None,
    json: JsonOption = False,
) -> None:
    """Train the baselines of a study, search for better networks, and write the report.

    A search is a number of trials; each trains a network with settings of its own. The same command
    again goes on where it was stopped; with nothing left to do it writes the report again.
    """
    from gatesearch.cli.progress import emitter
    from gatesearch.study import load_study

    check_names(out=out, data=data, reports=reports, reuse=reuse)
    chosen = {
        key: names([given], f"--{key}")
        for key, given in (("methods", methods), ("tune", tune), ("weightings", weightings))
        if given is not None
    }
    if search:
        if tune is not None:
            raise UsageError("--search and --tune both name what is searched; give one of them")
        if search not in _MODES:
            raise unknown("value of --search", search, _MODES)
        chosen["tune"] = _MODES[search]
    several = _seeds(seeds, seed)
    seeded = {} if seed is None else {"seed": seed}
    definition = load_study(study, settings(set_)).model_copy(update=chosen | seeded)
    wanted = preferences(prefer, definition.task_names)
    store = RUNS / definition.name if out is None else out
    use_plugins(plugin, store=store)
    if points is not None or prefer:
        _check_chooses(definition.tune)
    server = storage_url(storage, storage_file)
    check_reports(reports)
    again = shown_command("report", store=store_options(study, out, storage, storage_file))
    try:
        with emitter(log=store / "log.jsonl") as emit:
            from gatesearch.report import write_report
            from gatesearch.search.run import run as run_study
            from gatesearch.search.setup import ExecutionOptions

            record = run_study(
                definition,
                n_trials=n_trials if points is None else points,
                out=store,
                data=data,
                emit=emit,
                budgets=names(budget, "--budget") if budget else (),
                prefer=wanted,
                options=ExecutionOptions(
                    workers=workers,
                    executor=executor,
                    devices=devices_per_trial,
                    storage=server,
                    device=device,
                ),
                reuse=reuse,
                retry_failed=retry_failed,
                seeds=several,
                controls=controls,
                headroom=headroom,
            )
            with writing(reports, again):
                path = write_report(record, folder=reports)
    except KeyboardInterrupt:
        err.print("interrupted; all that was finished is kept, the same command continues")
        raise
    print_result(record, path, as_json=json)


def _seeds(text: str | None, seed: int | None) -> list[int]:
    """Read --seeds; empty where it was not given.

    Raises:
        UsageError: It is no list of different seeds, or --seed was given too.
    """
    if text is None:
        return []
    if seed is not None:
        raise UsageError("--seed and --seeds both name seeds; give one of them")
    given = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in given if part.isascii() and part.isdecimal()]
    if (
        len(numbers) < len(given)
        or len(set(numbers)) < len(numbers)
        or max(numbers) > _LARGEST_SEED
    ):
        raise UsageError(
            f"--seeds must be different whole numbers from 0 to {_LARGEST_SEED}, as 0,1,2; found "
            f"'{text}'"
        )
    return numbers


def _check_chooses(tune: Sequence[str]) -> None:
    """Refuse --points and --prefer where no network is cut out of a trained supernet.

    Raises:
        UsageError: None of the methods to tune has a supernet.
    """
    from gatesearch.methods import METHODS

    choosing = [name for name, method in METHODS.items() if method.supernet is not None]
    if not set(choosing) & set(tune):
        raise UsageError(
            "--points and --prefer choose among networks that are cut out of one trained supernet, "
            f"found --tune {','.join(tune) or '(none)'}; tune {' or '.join(choosing)}"
        )
