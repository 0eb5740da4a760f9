"""Networks that leave gatesearch: what is written, how it is read again, and how fast it runs.

A new format is one function in `formats` and one line in `FORMATS`; a new way to run networks one
function in `runtimes` and one line in `RUNTIMES`.
"""

import tempfile
from pathlib import Path

from torch import nn

from gatesearch.export.formats import FORMATS, write_network
from gatesearch.export.reader import Model, parity, read_model
from gatesearch.export.runtimes import RUNTIMES
from gatesearch.export.shipped import Card, Shipped, card_of, choose
from gatesearch.export.timing import Bench, Figures, Timing, time_models
from gatesearch.files import write_atomic

__all__ = [
    "FORMATS",
    "RUNTIMES",
    "Bench",
    "Card",
    "Figures",
    "Model",
    "Shipped",
    "Timing",
    "card_of",
    "choose",
    "parity",
    "read_model",
    "ship",
    "time_models",
    "write_network",
]


def ship(network: nn.Module, card: Card, path: Path, *, form: str, frames: Path | None) -> float:
    """Write a network and see that the files compute what it does, before they are in place.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        card: What goes with it.
        path: The file, ending in the format's own suffix.
        form: A name in `FORMATS`.
        frames: See `parity`.

    Returns:
        What `parity` found.

    Raises:
        UsageError: The format cannot hold this network, or computes something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / path.name
        write_network(network, card, aside, form=form)
        gap = parity(network, aside, frames)
        # The file that is named comes last: with it the others are there.
        for written in sorted(Path(folder).iterdir(), key=lambda file: file == aside):
            write_atomic(path.parent / written.name, written.read_bytes())
    return gap
