"""Export networks: write them as files, read these files again, and measure how fast they run.

A new format is one function in `formats` and one line in `FORMATS`; a new runtime is one function
in `runtimes` and one line in `RUNTIMES`.
"""

import tempfile
from pathlib import Path

from torch import nn

from gatesearch.export.formats import FORMATS, write_network
from gatesearch.export.parts import check_can_be_cut, cut_to_tasks
from gatesearch.export.reader import Model, Pixels, parity, read_model
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
    "check_can_be_cut",
    "choose",
    "cut_to_tasks",
    "parity",
    "read_model",
    "ship",
    "time_models",
    "write_network",
]


def ship(
    network: nn.Module,
    card: Card,
    path: Path,
    *,
    form: str,
    frames: Pixels | None,
    whole: nn.Module | None = None,
) -> float:
    """Write a network, and check that its files compute the same before they replace earlier ones.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        card: Card that is written with the network.
        path: The file; it must end in the suffix of the format. Its folder is made if missing.
        form: A name in `FORMATS`.
        frames: Images 0..255 (B, 3, H, W) on which the check is made; None for noise.
        whole: Network that the file is compared with, where `network` is a part of it.

    Returns:
        Largest difference between file and network, over the largest value (see `parity`).

    Raises:
        UsageError: The format cannot hold this network, or the file computes something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        unchecked = Path(folder) / path.name
        write_network(network, card, unchecked, form=form)
        difference = parity(whole or network, unchecked, frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        # `path` is moved last: when it exists, the files beside it do too.
        for written in sorted(Path(folder).iterdir(), key=lambda file: file == unchecked):
            write_atomic(path.parent / written.name, written.read_bytes())
    return difference
