"""Networks that leave gatesearch: what is written, and how it is read again.

A new format is one function in `formats` and one line in `FORMATS`.
"""

from gatesearch.export.formats import FORMATS, write_network
from gatesearch.export.reader import Model, parity, read_model
from gatesearch.export.shipped import Card, Shipped, card_of, choose

__all__ = [
    "FORMATS",
    "Card",
    "Model",
    "Shipped",
    "card_of",
    "choose",
    "parity",
    "read_model",
    "write_network",
]
