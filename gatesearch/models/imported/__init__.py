"""Networks of others as graphs: timm's, torchvision's, and modules of users.

A module is run once on an image without data, and every call of torch is noted (`recording`).
Calls become nodes one by one (`convert`, with a handler for each function); reshapes and
permutations are bookkeeping (`layout`). Then nodes that one node computes are joined (`fusing`),
stages and ends of blocks are found (`stages`), and strides become dilation (`dilating`). `imported`
ties this together, `sources` finds modules by name.
"""

from gatesearch.models.imported.calls import opaque
from gatesearch.models.imported.imported import Imported, import_module
from gatesearch.models.imported.sources import (
    REGISTERED,
    import_backbone,
    is_imported,
    register_backbone,
)

__all__ = [
    "REGISTERED",
    "Imported",
    "import_backbone",
    "import_module",
    "is_imported",
    "opaque",
    "register_backbone",
]
