"""The report's files: PDF, CSV and JSON, each replaced only by a whole new one."""

import io
import json
import os
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.style import context

from gatesearch.errors import UsageError
from gatesearch.report import (
    all_metrics,
    comparison,
    controls,
    curves,
    history,
    image_answers,
    predictions,
    provenance,
    sharing,
    summary_page,
    task_costs,
)
from gatesearch.report import (
    controllability as controllability_page,
)
from gatesearch.report.layout import lay_out, number_pages
from gatesearch.report.results_csv import results_table
from gatesearch.report.style import RC
from gatesearch.results import StudyRecord
from gatesearch.summary import summary

# One module per kind of section, in the order of the report.
SECTIONS = (
    summary_page, comparison, controls, controllability_page, sharing, task_costs, history,
    predictions, image_answers, all_metrics, curves, provenance,
)  # fmt: skip


def write_report(record: StudyRecord, *, folder: Path) -> Path:
    """Write `<study>.pdf`, `.csv` and `.json`; the same record always gives the same bytes.

    Args:
        record: What is drawn; predictions are read from the file that it names.
        folder: Where they are written; made if it is missing.

    Returns:
        Path of the PDF.

    Raises:
        UsageError: There are results of more than one protocol.
    """
    _refuse_two_protocols(record)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.name}.pdf"
    document = _pdf(record)
    table = results_table(record).to_csv(index=False).encode()
    whole = summary(record, path)
    text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _write(path.with_name(f"{record.name}.csv"), table)
    _write(path.with_name(f"{record.name}.json"), text.encode())
    _write(path, document)
    return path


def draw_pages(record: StudyRecord) -> list[Figure]:
    """Draw all pages of a report, with matplotlib's settings as in `style.RC`."""
    with context(RC, after_reset=True):
        figures = lay_out(section for module in SECTIONS for section in module.sections(record))
        source = (
            f"gatesearch · study {record.name} · fingerprint {record.fingerprint} · "
            f"protocol {record.protocol}"
        )
        number_pages(figures, source)
    return figures


def _pdf(record: StudyRecord) -> bytes:
    buffer = io.BytesIO()
    # Without a date the bytes depend on the record alone.
    metadata = {"Title": f"gatesearch: {record.name}", "CreationDate": None}
    figures = draw_pages(record)
    with context(RC, after_reset=True), PdfPages(buffer, metadata=metadata) as pdf:
        for figure in figures:
            pdf.savefig(figure)
    return buffer.getvalue()


def _refuse_two_protocols(record: StudyRecord) -> None:
    others = {
        result.environment.get("protocol", record.protocol)
        for result in (*record.baselines, *record.trials)
    } - {record.protocol}
    if others:
        raise UsageError(
            "figures of two protocols are never put side by side: the study has "
            f"{record.protocol}, its results also {', '.join(sorted(others))}; "
            "report each from a store of its own"
        )


def _write(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_bytes(content)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
