"""`gatesearch report`: write the report again, from the store alone."""

from pathlib import Path

from gatesearch.cli.console import warn
from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    ReportsOption,
    StorageFileOption,
    StorageOption,
    StoreOption,
    record_of,
    shown_command,
    storage_url,
    store_options,
    writing,
)
from gatesearch.cli.result import print_result

EXAMPLES = """Examples:

gatesearch report --study scenes

gatesearch report --study mine

gatesearch report --study nyud-small --out /results/nyud-small --reports /tmp --json"""


def report(
    study: StoreOption,
    out: OutOption = None,
    storage: StorageOption = "",
    storage_file: StorageFileOption = None,
    reports: ReportsOption = Path("reports"),
    json: JsonOption = False,
) -> None:
    """Write a report again from the store; nothing is trained, and no data are needed."""
    _, record = record_of(study, out, storage_url(storage, storage_file))
    if record.untaken:
        numbers = ", ".join(map(str, record.untaken))
        warn(
            f"the results in the folders of trials {numbers} are not in the database and not in "
            "the report; `gatesearch run` with the options of their search takes them up"
        )

    from gatesearch.report import write_report

    command = shown_command("report", store=store_options(study, out, storage, storage_file))
    with writing(reports, command):
        path = write_report(record, folder=reports)
    print_result(record, path, as_json=json)
