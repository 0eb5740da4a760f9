"""Costs of a study's methods without data or training."""

from collections.abc import Sequence

import torch

from gatesearch.cost import Cost, count_macs
from gatesearch.errors import UsageError
from gatesearch.methods import build_model
from gatesearch.study import Study


def costs(study: Study, methods: Sequence[str] = ()) -> dict[str, Cost]:
    """Method -> cost of its network on one image, counted on shapes alone.

    Args:
        study: The definition.
        methods: Names in `gatesearch.methods.METHODS`; the study's own when empty.

    Raises:
        UsageError: An unknown method, or `interrogate`, whose cost its gates decide.
    """
    found = {}
    for method in methods or study.methods:
        if method == "interrogate":
            raise UsageError(
                "the cost of 'interrogate' is not known before its gates are: it lies between "
                "mtl (all gates closed) and, with every gate open, stl; ask for those"
            )
        with torch.device("meta"):
            model = build_model(study, method, pretrained=False)
        found[method] = count_macs(model, (1, 3, *study.protocol.size))
    return found
