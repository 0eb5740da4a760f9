"""The report of a study: PDF, CSV and JSON, drawn from stored results alone.

document            `write_report`: the order of the sections, and the files
summary_page        Δ MTL against compute: the front beside the baselines
headline            the study in sentences, whose first says what was found
comparison          the table of networks, in the form of the poster's
controls            the best trials against networks of their cost that share in other ways
controllability     how well methods that can be steered follow preferences
sharing             the layers that each task has to itself
history             the search by trial, and the effect of each parameter
predictions         images beside truth and predictions
image_answers       answers on whole images, in words beside the image
all_metrics         every figure of every task and network
stored_predictions  what a store keeps to be shown, as columns: image, truth, networks
curves              losses and gates by epoch
provenance          everything needed to judge the figures and to reproduce them
record_queries      questions that several sections ask of a record
results_csv         the CSV: one row per result
published           rows printed in papers, drawn too under the same protocol
layout              sections of blocks, put on as few pages as they need
panels              small charts beside each other
legend              rows of swatches with names
point_labels        labels beside points, none of which covers another
network_styles      colour, marker and line of each network, the same on all pages
text                text measured, wrapped and shortened to a width
style               colours, formats of numbers, ticks
"""

from gatesearch.report.document import write_report
from gatesearch.report.published import published_rows

__all__ = ["published_rows", "write_report"]
