"""From hard gates to a physically small network: liveness, extraction, the compact network."""

from gatesearch.pruning.compact import (
    CompactNet,
    describe_compact,
    load_compact,
    rebuild_compact,
    save_compact,
)
from gatesearch.pruning.extract import describe_pattern, extract
from gatesearch.pruning.kept_channels import HeadAt, Stream, compact_streams
from gatesearch.pruning.liveness import live_values, number_values
from gatesearch.pruning.pattern_text import pattern_as_text, pattern_of_text
from gatesearch.pruning.sharing import sharing
from gatesearch.pruning.subnetwork import subnetwork

__all__ = [
    "CompactNet",
    "HeadAt",
    "Stream",
    "compact_streams",
    "describe_compact",
    "describe_pattern",
    "extract",
    "live_values",
    "load_compact",
    "number_values",
    "pattern_as_text",
    "pattern_of_text",
    "rebuild_compact",
    "save_compact",
    "sharing",
    "subnetwork",
]
