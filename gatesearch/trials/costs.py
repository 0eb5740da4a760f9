"""Count the costs of a study's methods without data or training."""

from collections.abc import Sequence

import torch
from torch import nn

from gatesearch.cost import Cost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import build_model, method_of
from gatesearch.pruning import CompactNet, subnetwork
from gatesearch.pruning.subnetwork import known_tasks
from gatesearch.study import Study
from gatesearch.trials.kept_networks import as_compact


def costs(
    study: Study, methods: Sequence[str] = (), *, tasks: Sequence[str] = ()
) -> dict[str, Cost]:
    """Count the cost of each method's network on one image, from shapes alone.

    Args:
        study: The definition.
        methods: Names in `gatesearch.methods.METHODS`; the study's baselines when empty.
        tasks: Tasks whose outputs alone are computed; all when empty.

    Returns:
        Method -> cost.

    Raises:
        UsageError: An unknown method or task, a method whose cost is not known before it is
            trained, or one of whose network no part can be cut out.
    """
    chosen = known_tasks(tasks, study.task_names) if tasks else ()
    counted = {}
    for name in methods or study.methods:
        if reason := unpriced(study, name, tasks=chosen):
            raise UsageError(reason)
        if chosen:
            model: nn.Module = subnetwork(_compact(study, name), chosen)
        else:
            with torch.device("meta"):
                model = build_model(study, name, pretrained=False)
        counted[name] = count_macs(model, (1, 3, *study.protocol.size))
    return counted


def unpriced(study: Study, name: str, *, tasks: Sequence[str] = ()) -> str:
    """Say why the cost of a method's network is not known before it is trained; empty if it is.

    Args:
        study: The definition.
        name: The method.
        tasks: Tasks whose outputs alone are computed; all when empty.

    Raises:
        UsageError: An unknown method.
    """
    reason = method_of(name).unpriced
    why = reason if isinstance(reason, str) else reason(study)
    if why:
        return f"the cost of '{name}' is not known before it is trained: {why}"
    if tasks and method_of(name).as_compact is None:
        with torch.device("meta"):
            network = build_model(study, name, pretrained=False)
        if not isinstance(network, CompactNet):
            return (
                f"the cost of {', '.join(tasks)} alone is known of compact networks, and '{name}' "
                f"is a plain {type(network).__name__}"
            )
    return ""


def _compact(study: Study, name: str) -> CompactNet:
    """Build a method's network with fresh weights as a compact network."""
    with torch.random.fork_rng(devices=[]):
        network = as_compact(build_model(study, name, pretrained=False), name, study)
    assert isinstance(network, CompactNet)
    return network
