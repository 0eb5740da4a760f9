"""The assembly point: search space, one network from specification to result, store, coordinator.

| file | what |
|---|---|
| `space.py` | what Optuna draws, and the sampler |
| `bench.py` | data, tasks and runtime of a study, made once a run |
| `candidate.py` | what to train, as plain values |
| `assembly.py` | one network: build, train, prune, count, evaluate |
| `networks.py` | trained networks in their folders |
| `phases.py` | how a network, gates and nested gates are trained |
| `hardening.py` | from learned gates to the pattern that is cut |
| `one_shot.py` | patterns of a one-shot supernet tried, networks chosen |
| `select.py` | which network of a store to take |
| `database.py` | a store's database: opened, checked, its complaints explained |
| `store.py` | what is kept: definition, baselines, trials, test figures |
| `lock.py`, `backup.py`, `status.py` | one writer; copies of the store; what is going on |
| `gallery.py` | predictions on a few test frames, for the report |
| `method_costs.py` | costs of a study's methods before any training |
| `jobs.py` | one training as JSON, and the files in its folder |
| `worker.py` | whoever does a job, in whichever process |
| `executors.py`, `ray_executor.py` | this process, processes with a device each, Ray |
| `crew.py` | jobs in work, results as they come in |
| `early.py` | trials that lag behind are stopped |
| `engine.py` | the search: trials drawn, gone on with, told; nothing twice |
| `coordinator.py` | the run: store and data opened, baselines, trials, then the test part |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatesearch.search.coordinator import Means, run
    from gatesearch.search.method_costs import costs
    from gatesearch.search.networks import as_compact, kept_network
    from gatesearch.search.store import read_store

__all__ = ["Means", "as_compact", "costs", "kept_network", "read_store", "run"]

# Imported on use: reading a store needs no torch.
_HOMES = {
    "Means": "coordinator",
    "run": "coordinator",
    "as_compact": "networks",
    "costs": "method_costs",
    "kept_network": "networks",
    "read_store": "store",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
