"""`gatesearch report`: the report again, from the store alone."""

from pathlib import Path

from gatesearch.cli.options import (
    JsonOption,
    OutOption,
    ReportsOption,
    StudyOption,
    store_of,
    writing,
)
from gatesearch.cli.result import print_result
from gatesearch.errors import UsageError

EXAMPLES = """Examples:

gatesearch report --study scenes

gatesearch report --study nyud-small --out /results/nyud-small --reports /tmp --json"""


def report(
    study: StudyOption,
    out: OutOption = None,
    reports: ReportsOption = Path("reports"),
    json: JsonOption = False,
) -> None:
    """Write the report of a study anew from its store; trains nothing and needs no data."""
    from gatesearch.report import write_report
    from gatesearch.search import read_store
    from gatesearch.study import load_study

    definition = load_study(study)
    store = store_of(definition, out)
    record = read_store(store)
    if record.name != definition.name:
        raise UsageError(
            f"{store} must hold study '{definition.name}', found '{record.name}'; "
            f"use --study {record.name} or another --out"
        )
    with writing(reports, definition):
        path = write_report(record, folder=reports)
    print_result(record, path, as_json=json)
