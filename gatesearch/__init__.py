"""Finds which channels the tasks of a network should share, and hands back the small network.

Importing this package costs nothing: every name below is fetched from its module on first use.
"""

from typing import TYPE_CHECKING

from gatesearch.lazy import lazy_attributes
from gatesearch.version import __version__

if TYPE_CHECKING:
    from gatesearch.cost import count_macs
    from gatesearch.datasets.pack_samples import pack
    from gatesearch.measures import delta_mtl, mean_rank
    from gatesearch.methods import build_model
    from gatesearch.pareto import hypervolume, pareto_front
    from gatesearch.pruning import extract
    from gatesearch.study import load_study

_HOMES = {
    "build_model": "gatesearch.methods",
    "count_macs": "gatesearch.cost",
    "delta_mtl": "gatesearch.measures",
    "extract": "gatesearch.pruning",
    "hypervolume": "gatesearch.pareto",
    "load_study": "gatesearch.study",
    "mean_rank": "gatesearch.measures",
    "pack": "gatesearch.datasets.pack_samples",
    "pareto_front": "gatesearch.pareto",
}

__all__ = [
    "__version__",
    "build_model",
    "count_macs",
    "delta_mtl",
    "extract",
    "hypervolume",
    "load_study",
    "mean_rank",
    "pack",
    "pareto_front",
]


__getattr__ = lazy_attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
