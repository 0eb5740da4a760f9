"""Count the costs of a study's methods without data or training."""

from collections.abc import Sequence

import torch

from gatesearch.cost import Cost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import build_model, method_of
from gatesearch.study import Study


def costs(study: Study, methods: Sequence[str] = ()) -> dict[str, Cost]:
    """Count the cost of each method's network on one image, from shapes alone.

    Args:
        study: The definition.
        methods: Names in `gatesearch.methods.METHODS`; the study's baselines when empty.

    Returns:
        Method -> cost.

    Raises:
        UsageError: An unknown method, or one whose cost is not known before it is trained.
    """
    counted = {}
    for name in methods or study.methods:
        if reason := unpriced(study, name):
            raise UsageError(reason)
        with torch.device("meta"):
            model = build_model(study, name, pretrained=False)
        counted[name] = count_macs(model, (1, 3, *study.protocol.size))
    return counted


def unpriced(study: Study, name: str) -> str:
    """Say why the cost of a method's network is not known before it is trained; empty if it is.

    Raises:
        UsageError: An unknown method.
    """
    reason = method_of(name).unpriced
    why = reason if isinstance(reason, str) else reason(study)
    return why and f"the cost of '{name}' is not known before it is trained: {why}"
