"""Finds which channels the tasks of a network should share, and hands back the small network.

Importing this package costs nothing: every name below is fetched from its module on first use.

| name | what it does |
|---|---|
| `Study`, `load_study` | define a study in Python, or read one from a file |
| `InterroGate`, `encoder` | build a gated network with heads of your own, for any training loop |
| `register_backbone` | make a module of your own a backbone of studies |
| `opaque` | keep a part of such a module whole |
| `project`, `extract` | fit a trained network to a budget, and cut the small network from it |
| `subnetwork` | cut out of that what some of its tasks need |
| `save`, `load` | keep small networks in files |
| `search` | search hyperparameters with a training function of your own |
| `build_model` | build a method's network for a study |
| `count_macs` | count the multiply-adds of any network |
| `delta_mtl`, `mean_rank`, `hypervolume`, `pareto_front` | compare networks |

docs/python.md shows each in use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gatesearch.lazy import lazy_attributes
from gatesearch.version import __version__

if TYPE_CHECKING:
    from gatesearch.cost import count_macs
    from gatesearch.datasets.pack_samples import pack
    from gatesearch.library.encoder import encoder
    from gatesearch.library.network import InterroGate
    from gatesearch.library.projection import project
    from gatesearch.library.saving import load, save
    from gatesearch.measures import delta_mtl, mean_rank
    from gatesearch.methods import build_model
    from gatesearch.models.imported import opaque, register_backbone
    from gatesearch.pareto import hypervolume, pareto_front
    from gatesearch.pruning import extract, subnetwork
    from gatesearch.search.own_training import search
    from gatesearch.search.own_trial import Trial
    from gatesearch.study import Study, load_study

_HOMES = {
    "InterroGate": "gatesearch.library.network",
    "Study": "gatesearch.study",
    "Trial": "gatesearch.search.own_trial",
    "build_model": "gatesearch.methods",
    "count_macs": "gatesearch.cost",
    "delta_mtl": "gatesearch.measures",
    "encoder": "gatesearch.library.encoder",
    "extract": "gatesearch.pruning",
    "hypervolume": "gatesearch.pareto",
    "load": "gatesearch.library.saving",
    "load_study": "gatesearch.study",
    "mean_rank": "gatesearch.measures",
    "opaque": "gatesearch.models.imported",
    "pack": "gatesearch.datasets.pack_samples",
    "pareto_front": "gatesearch.pareto",
    "project": "gatesearch.library.projection",
    "register_backbone": "gatesearch.models.imported",
    "save": "gatesearch.library.saving",
    "subnetwork": "gatesearch.pruning",
}

__all__ = [
    "InterroGate",
    "Study",
    "Trial",
    "__version__",
    "build_model",
    "count_macs",
    "delta_mtl",
    "encoder",
    "extract",
    "hypervolume",
    "load",
    "load_study",
    "mean_rank",
    "opaque",
    "pack",
    "pareto_front",
    "project",
    "register_backbone",
    "save",
    "search",
    "subnetwork",
]


_import_attribute = lazy_attributes(__name__, _HOMES)


def __getattr__(name: str) -> Any:
    # The package of that name, which can be called: importing any of its modules makes it the
    # attribute, so it must be the attribute from the start.
    return import_module("gatesearch.search") if name == "search" else _import_attribute(name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
