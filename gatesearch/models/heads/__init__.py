"""Heads: features -> a dense prediction at the size of the image, or one vector per image.

A user's head may give anything else.

| file | contents |
|---|---|
| `head.py` | `Head`, the base of dense predictions; `Feature`, a map that heads read |
| `light.py`, `deeplabv3.py` | dense predictions from the last map |
| `pooled.py` | a prediction per image from the last map |
| `fpn.py`, `segformer.py`, `dpt.py` | dense predictions from a map of every stage |
| `calling.py` | `Heads`: calls each head with the maps that it reads |
"""

from collections.abc import Callable

from torch import nn

from gatesearch.models.heads.calling import FunctionHead, Heads, reads_stages, takes_size
from gatesearch.models.heads.deeplabv3 import ASPP_RATES, deeplabv3
from gatesearch.models.heads.dpt import DPT
from gatesearch.models.heads.fpn import FPN
from gatesearch.models.heads.head import Feature, Head
from gatesearch.models.heads.light import light
from gatesearch.models.heads.pooled import PooledHead, pooled
from gatesearch.models.heads.segformer import SegFormerHead

__all__ = [
    "ASPP_RATES",
    "HEADS",
    "PER_IMAGE",
    "Feature",
    "FunctionHead",
    "Head",
    "Heads",
    "PooledHead",
    "deeplabv3",
    "light",
    "reads_stages",
    "takes_size",
]

# Name -> (channels of the last map, channels inside the head, outputs) -> head; in place of the
# first, a builder that `reads_stages` takes a `Feature` for each map.
HEADS: dict[str, Callable[..., nn.Module]] = {
    "deeplabv3": deeplabv3,
    "light": light,
    "pooled": pooled,
    "fpn": FPN,
    "segformer": SegFormerHead,
    "dpt": DPT,
}
# Heads that predict one vector per image; all others predict values per pixel.
PER_IMAGE = {"pooled"}
