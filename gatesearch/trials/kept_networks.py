"""Trained networks in their folders: written, copied, read again."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gatesearch.errors import StudyRefusedError
from gatesearch.files import write_atomic
from gatesearch.methods import MTL, STL, build_model
from gatesearch.methods.context import Context
from gatesearch.methods.specification import NetworkSpec
from gatesearch.models import GatedSupernet
from gatesearch.pruning import CompactNet, extract, load_compact, save_compact
from gatesearch.results import Result
from gatesearch.study import Study

MODEL = "model"
TENSORS = ".safetensors"


def keep_network(network: nn.Module, folder: Path) -> None:
    """Write a network into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, CompactNet):
        save_compact(network, folder / MODEL)
        return
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomic((folder / MODEL).with_suffix(TENSORS), save(state))


def copy_network(source: Path, target: Path) -> None:
    """Keep a network in another folder too."""
    there, here = ((folder / MODEL).with_suffix(TENSORS) for folder in (source, target))
    here.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(here, there.read_bytes())


def network_state(candidate: NetworkSpec, *, out: Path) -> dict[str, Tensor]:
    """Weights of a kept network.

    Raises:
        StudyRefusedError: The file is gone or damaged.
    """
    path = (candidate.folder(out) / MODEL).with_suffix(TENSORS)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StudyRefusedError(
            f"{path} is missing or damaged ({error}), and the store counts on it; put it back from "
            "a backup, or begin anew in another --out folder"
        ) from error


def load_network(result: Result, bench: Context, *, out: Path) -> nn.Module:
    """The kept network of a result, on the device, in evaluation mode."""
    return bench.runtime.place(kept_network(result, bench.study, out=out)).eval()


def kept_network(result: Result, study: Study, *, out: Path) -> nn.Module:
    """The kept network of a result, on the processor, in evaluation mode."""
    candidate = NetworkSpec.of(result)
    if result.method == "interrogate":
        return load_compact(candidate.folder(out) / MODEL)
    model = build_model(study, result.method, seed=result.seed, pretrained=False)
    model.load_state_dict(network_state(candidate, out=out))
    return model.eval()


def as_compact(network: nn.Module, study: Study) -> nn.Module:
    """Multi-task and single-task networks as the compact networks they are the ends of.

    Any other network is given back as it is.
    """
    if not isinstance(network, (MTL, STL)):
        return network
    supernet = build_model(study, "interrogate", pretrained=False)
    assert isinstance(supernet, GatedSupernet)
    own = isinstance(network, STL)
    (supernet.take_streams if own else supernet.clone_streams)(network.state_dict())
    supernet.set_gates({n: torch.full_like(a, own).bool() for n, a in supernet.logits().items()})
    return extract(supernet)
