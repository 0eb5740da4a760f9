"""The command line: one file per command, and the only package that prints or exits.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the single-task networks, or a network that trials start from, cannot be trained |
| 2 | wrong use or definition |
| 3 | data are missing or damaged, or a file cannot be read or written |
| 4 | the store was refused |
| 130 | interrupted |

A reader that closes the pipe of standard output early, such as `head`, changes no exit code.

Heavy libraries are imported inside the commands, so that `--help` is instant.
"""

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

from gatesearch.cli import (
    bench,
    data,
    export,
    flops,
    listing,
    new,
    predict,
    report,
    run,
    select,
    status,
)
from gatesearch.cli.console import err
from gatesearch.cli.streams import make_lasting, output_error
from gatesearch.errors import DataError, GatesearchError, UsageError

app = typer.Typer(
    name="gatesearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from gatesearch import __version__

        print(__version__)
        raise typer.Exit


@app.callback(
    epilog="Start with:\n\ngatesearch studies\n\ngatesearch run --study scenes --n-trials 6"
)
def _gatesearch(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Find which channels the tasks of one network should share, and get the small network.

    Every search trains plain networks for comparison, and ends in a report of cost and accuracy.
    """


app.command(epilog=run.EXAMPLES)(run.run)
app.command(epilog=new.EXAMPLES)(new.new)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=export.EXAMPLES)(export.export)
app.command(epilog=predict.EXAMPLES)(predict.predict)
app.command(epilog=select.EXAMPLES)(select.select)
app.command(epilog=status.EXAMPLES)(status.status)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=flops.EXAMPLES)(flops.flops)
app.add_typer(data.app, name="data")
app.command(epilog=listing.STUDIES_EXAMPLES)(listing.studies)
app.command(epilog=listing.METHODS_EXAMPLES)(listing.methods)


def main() -> None:
    """Run the command line; the console script `gatesearch`."""
    make_lasting()
    try:
        _refuse_stray_urls(sys.argv)
        _refuse_empty(sys.argv)
        code = _run()
        if code == 0 and (cause := output_error()) is not None:
            raise DataError(
                f"cannot write standard output: {cause.strerror}; what the command made is kept, "
                "send the output elsewhere and run the command again to read it"
            )
    except (GatesearchError, OSError) as error:
        err.print(f"gatesearch: error: {error}", style="red", markup=False, soft_wrap=True)
        # The user can cure any file that cannot be read or written.
        code = error.code if isinstance(error, GatesearchError) else DataError.code
    sys.exit(code)


# The URL of a server, also within `--out=URL` or with a slash too few, or any with a password.
_SERVER = re.compile(r"(?i)postgres(ql)?(\+\w+)?:/|://[^/@:]*:[^@]*@")


_OPTION = re.compile(r"--[a-z][a-z-]*")


def _refuse_stray_urls(arguments: Sequence[str]) -> None:
    """Refuse a server's URL outside --storage; other messages would quote it with its password.

    Raises:
        UsageError: There is one.
    """
    for before, argument in pairwise(arguments):
        if before == "--storage" or argument.startswith("--storage="):
            continue
        if _SERVER.search(argument):
            raise UsageError(
                "a server's URL is the value of --storage alone, found one elsewhere; write "
                "--storage postgresql://USER@HOST/DATABASE"
            )


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an empty value, as of a shell's variable that is not set: it would be this folder.

    Raises:
        UsageError: There is one.
    """
    for before, argument in pairwise(arguments):
        option = before if argument == "" else argument.removesuffix("=")
        if option != argument and _OPTION.fullmatch(option):
            raise UsageError(
                f"{option} takes a value, found an empty one; give it, or leave {option} out"
            )


def _run() -> int | str | None:
    """Run a command, and return its exit code."""
    try:
        app()
    except SystemExit as exit_:
        return exit_.code or 0
    return 0
