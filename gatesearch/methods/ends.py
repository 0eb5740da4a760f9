"""Convert multi-task and single-task networks into compact networks, by a gated supernet.

With all gates closed a supernet computes what the multi-task network does, and with all gates open
what the single-task networks do.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gatesearch.models import GatedSupernet, Parts, parts_of
from gatesearch.pruning import extract
from gatesearch.study import Study


def compact_of_all_gates(network: nn.Module, study: Study, *, open_: bool) -> nn.Module:
    """Make the compact network that computes the same as a multi-task or single-task network.

    Args:
        network: The study's single-task networks or its multi-task network.
        study: The definition.
        open_: True for single-task networks (all gates open), False for a multi-task network.
    """
    return compact_of_parts(parts_of(study, pretrained=False), network.state_dict(), open_=open_)


def compact_of_parts(parts: Parts, state: Mapping[str, Tensor], *, open_: bool) -> nn.Module:
    """Make the compact network of a state dict; see `compact_of_all_gates`.

    Args:
        parts: What the multi-task or single-task network was built from.
        state: Its state dict.
        open_: True for single-task networks (all gates open), False for a multi-task network.
    """
    supernet = GatedSupernet(parts)
    (supernet.take_streams if open_ else supernet.clone_streams)(state)
    gates = {name: torch.full_like(a, open_).bool() for name, a in supernet.logits().items()}
    supernet.set_gates(gates)
    return extract(supernet)
