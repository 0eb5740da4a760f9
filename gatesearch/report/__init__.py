"""The report of a study: PDF, CSV and JSON, drawn from stored results alone.

document     `write_report`: the order of the pages, and the files
cover        Δ MTL against compute: the front beside the baselines
comparison   the table in the form of the poster's
sharing      which layers each task keeps to itself
history      the search by trial, and what each parameter does
predictions  real images beside truth and predictions
curves       losses and gates by epoch
provenance   all that is needed to judge the figures and get them again
view         what several pages ask of a record
frame        one row a result, for the CSV
published    rows printed in papers, drawn along under the same protocol
style        palette, type and page furniture
"""

from gatesearch.report.document import write_report
from gatesearch.report.published import published_rows

__all__ = ["published_rows", "write_report"]
