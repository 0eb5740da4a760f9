"""Write, copy and read trained networks in their folders."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from gatesearch.checksums import file_checksum
from gatesearch.errors import StudyRefusedError, UsageError
from gatesearch.files import FileRefusedError, open_regular, write_atomic
from gatesearch.methods import Context, NetworkSpec, at_width, build_model, method_of
from gatesearch.models.model_factory import OWN
from gatesearch.pruning import CompactNet
from gatesearch.pruning.compact import compact_files, saved_state
from gatesearch.results import Result
from gatesearch.study import Study
from gatesearch.tensor_files import read_tensors, refuse_large

MODEL = "model"
TENSORS = ".safetensors"
_DESCRIPTION = ".json"  # beside the weights of a compact network
# Key of `Result.environment` of a network whose heads are modules of its user's, which is `OWN`.
HEADS = "heads"


def keep_network(network: nn.Module, folder: Path) -> dict[str, str]:
    """Write a network into its folder.

    Returns:
        Name of each file -> its SHA-256, for `Result.files`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, CompactNet):
        contents = compact_files(network)
    else:
        contents = {TENSORS: save(saved_state(network))}
    checksums = {}
    for suffix, content in contents.items():
        path = (folder / MODEL).with_suffix(suffix)
        write_atomic(path, content)
        checksums[path.name] = hashlib.sha256(content).hexdigest()
    return checksums


def copy_network(result: Result, source: Path, target: Path) -> None:
    """Copy a network into another folder; its checksums stay as they are in the result.

    Args:
        result: The network's result.
        source: Its folder.
        target: The other folder.

    Raises:
        StudyRefusedError: A file is missing, or was changed since it was written.
    """
    _verify(result, source)
    target.mkdir(parents=True, exist_ok=True)
    unverified = [MODEL + suffix for suffix in (TENSORS, _DESCRIPTION)]
    for name in result.files or [name for name in unverified if (source / name).exists()]:
        try:
            with os.fdopen(open_regular(source / name), "rb") as file:
                content = file.read()
        except FileRefusedError as error:
            raise _refused(error.path, error.fault) from error
        write_atomic(target / name, content)


def network_state(result: Result, *, out: Path) -> dict[str, Tensor]:
    """Read the state dict of a trained network.

    Args:
        result: The network's result.
        out: The store's folder.

    Raises:
        StudyRefusedError: The file is missing or damaged, or was changed since it was written.
    """
    return _read_state(result, out=out, expected=None)


def load_network(result: Result, context: Context, *, out: Path) -> nn.Module:
    """Read the network of a result, onto the device and in evaluation mode."""
    return context.runtime.place(kept_network(result, context.study, out=out)).eval()


def kept_network(result: Result, study: Study, *, out: Path) -> nn.Module:
    """Read the network of a result, onto the processor and in evaluation mode.

    Raises:
        StudyRefusedError: A file is missing or damaged, or was changed since it was written.
        UsageError: Its heads are modules of its user's, whose code no store has.
    """
    folder = NetworkSpec.of(result).folder(out)
    if result.environment.get(HEADS) == OWN:
        raise UsageError(
            f"heads must be those of the study to be built from it, found heads of its user's in "
            f"{folder}; in Python, gs.load reads trials, and load_state_dict the weights of others"
        )
    read = method_of(result.method).read
    if read is not None:
        _verify(result, folder)
        try:
            return read(folder / MODEL)
        except FileRefusedError as error:
            raise _refused(error.path, error.fault) from error
    study = at_width(study, result.width)
    model = build_model(study, result.method, seed=result.seed, pretrained=False)
    model.load_state_dict(_read_state(result, out=out, expected=model.state_dict()))
    return model.eval()


def as_compact(network: nn.Module, method: str, study: Study) -> nn.Module:
    """Convert a method's network into a compact one that computes the same.

    Returns:
        The given network if the method has no such conversion (`Method.as_compact`).
    """
    convert = method_of(method).as_compact
    return network if convert is None else convert(network, study)


def _read_state(
    result: Result, *, out: Path, expected: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    folder = NetworkSpec.of(result).folder(out)
    _verify(result, folder)
    path = (folder / MODEL).with_suffix(TENSORS)
    try:
        return read_tensors(path, expected)[0]
    except FileRefusedError as error:
        raise _refused(path, error.fault) from error


def _verify(result: Result, folder: Path) -> None:
    """Refuse a network whose files are missing, or differ from what was written.

    The checksums of networks of gatesearch 0.1.0 are unknown.
    """
    for name in result.files or [MODEL + TENSORS]:
        path = folder / name
        try:
            refuse_large(path)
            changed = name in result.files and file_checksum(path) != result.files[name]
        except FileRefusedError as error:
            raise _refused(path, error.fault) from error
        except OSError as error:
            raise _refused(path, f"is missing or cannot be read ({error.strerror})") from error
        if changed:
            raise _refused(path, "was changed since it was written: its checksum differs")


def _refused(path: Path, fault: str) -> StudyRefusedError:
    return StudyRefusedError(
        f"{path} {fault}, and the store needs it; put it back from a backup, or start again in "
        "another --out folder"
    )
