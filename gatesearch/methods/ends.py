"""Multi-task and single-task networks as the two ends of a gated supernet."""

import torch
from torch import nn

from gatesearch.models import GatedSupernet, parts_of
from gatesearch.pruning import extract
from gatesearch.study import Study


def compact_of_all_gates(network: nn.Module, study: Study, *, open_: bool) -> nn.Module:
    """The compact network that computes what a multi-task or single-task network does.

    Args:
        network: Of the study: single-task networks, or a multi-task one.
        study: The definition.
        open_: Whether all gates are open, as in single-task networks, or closed.
    """
    supernet = GatedSupernet(parts_of(study, pretrained=False))
    (supernet.take_streams if open_ else supernet.clone_streams)(network.state_dict())
    gates = {name: torch.full_like(a, open_).bool() for name, a in supernet.logits().items()}
    supernet.set_gates(gates)
    return extract(supernet)
