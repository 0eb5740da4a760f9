"""Convert multi-task and single-task networks into compact networks, by a gated supernet.

With all gates closed a supernet computes what the multi-task network does, and with all gates open
what the single-task networks do.
"""

import torch
from torch import nn

from gatesearch.models import GatedSupernet, parts_of
from gatesearch.pruning import extract
from gatesearch.study import Study


def compact_of_all_gates(network: nn.Module, study: Study, *, open_: bool) -> nn.Module:
    """Make the compact network that computes the same as a multi-task or single-task network.

    Args:
        network: The study's single-task networks or its multi-task network.
        study: The definition.
        open_: True for single-task networks (all gates open), False for a multi-task network.
    """
    supernet = GatedSupernet(parts_of(study, pretrained=False))
    (supernet.take_streams if open_ else supernet.clone_streams)(network.state_dict())
    gates = {name: torch.full_like(a, open_).bool() for name, a in supernet.logits().items()}
    supernet.set_gates(gates)
    return extract(supernet)
