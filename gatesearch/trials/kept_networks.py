"""Write, copy and read trained networks in their folders."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from gatesearch.errors import StudyRefusedError
from gatesearch.files import write_atomic
from gatesearch.methods import Context, NetworkSpec, build_model, method_of
from gatesearch.pruning import CompactNet, save_compact
from gatesearch.results import Result
from gatesearch.study import Study

MODEL = "model"
TENSORS = ".safetensors"
_DESCRIPTION = ".json"  # beside the weights of a compact network


def keep_network(network: nn.Module, folder: Path) -> None:
    """Write a network into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, CompactNet):
        save_compact(network, folder / MODEL)
        return
    state = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    write_atomic((folder / MODEL).with_suffix(TENSORS), save(state))


def copy_network(source: Path, target: Path) -> None:
    """Copy a network into another folder."""
    target.mkdir(parents=True, exist_ok=True)
    for suffix in (TENSORS, _DESCRIPTION):
        there, here = ((folder / MODEL).with_suffix(suffix) for folder in (source, target))
        if suffix == TENSORS or there.exists():
            write_atomic(here, there.read_bytes())


def network_state(spec: NetworkSpec, *, out: Path) -> dict[str, Tensor]:
    """Read the state dict of a trained network.

    Args:
        spec: The network.
        out: The store's folder.

    Raises:
        StudyRefusedError: The file is missing or damaged.
    """
    path = (spec.folder(out) / MODEL).with_suffix(TENSORS)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StudyRefusedError(
            f"{path} is missing or damaged ({error}), and the store counts on it; put it back from "
            "a backup, or begin anew in another --out folder"
        ) from error


def load_network(result: Result, context: Context, *, out: Path) -> nn.Module:
    """Read the network of a result, onto the device and in evaluation mode."""
    return context.runtime.place(kept_network(result, context.study, out=out)).eval()


def kept_network(result: Result, study: Study, *, out: Path) -> nn.Module:
    """Read the network of a result, onto the processor and in evaluation mode.

    Raises:
        StudyRefusedError: The file is missing or damaged.
        UsageError: The files of a pruned network are missing or damaged.
    """
    spec = NetworkSpec.of(result)
    read = method_of(result.method).read
    if read is not None:
        return read(spec.folder(out) / MODEL)
    model = build_model(study, result.method, seed=result.seed, pretrained=False)
    model.load_state_dict(network_state(spec, out=out))
    return model.eval()


def as_compact(network: nn.Module, method: str, study: Study) -> nn.Module:
    """Convert a method's network into a compact one that computes the same.

    Returns:
        The given network if the method has no such conversion (`Method.as_compact`).
    """
    convert = method_of(method).as_compact
    return network if convert is None else convert(network, study)
