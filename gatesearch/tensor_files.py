"""Read safetensors files, refusing damaged ones before memory is allocated for their tensors."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gatesearch.errors import one_line
from gatesearch.files import MIB, FileRefusedError, open_regular

# Largest file that is read or hashed. 20 single-task networks on a ResNet-50 take about 3 GiB.
LARGEST_NETWORK = 32 * 1024 * MIB
# Name of an element type in the format -> that of torch.
TYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip


def refuse_large(path: Path) -> None:
    """Refuse a file that is not regular, or larger than any network.

    Raises:
        FileRefusedError: It is refused.
        OSError: It cannot be opened.
    """
    descriptor = open_regular(path)
    try:
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if size > LARGEST_NETWORK:
        limit = LARGEST_NETWORK / MIB
        raise FileRefusedError(path, f"must have at most {limit:g} MiB, found {size / MIB:g} MiB")


def read_tensors(
    path: Path, expected: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file.

    Args:
        path: The file. Its tensors are mapped into memory, and read from disk when they are used.
        expected: Tensors, which may be on the meta device, whose names, shapes and types the file
            must have; anything is read when None.

    Returns:
        (name -> tensor, name -> text of the file's metadata).

    Raises:
        FileRefusedError: It is no regular file, damaged, or holds other tensors than expected.
        OSError: It cannot be opened.
    """
    from safetensors import safe_open

    refuse_large(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if expected is not None:
                found = {name: file.get_slice(name) for name in names}
                described = {
                    name: (tuple(part.get_shape()), TYPES.get(part.get_dtype()))
                    for name, part in found.items()
                }
                _compare(path, described, expected)
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileRefusedError:
        raise
    # A damaged header can make the reader raise nearly anything.
    except Exception as error:
        raise FileRefusedError(path, f"is damaged: {one_line(error)}") from error


def _compare(
    path: Path,
    found: Mapping[str, tuple[tuple[int, ...], torch.dtype | None]],
    expected: Mapping[str, Tensor],
) -> None:
    for name, tensor in expected.items():
        if name not in found:
            raise FileRefusedError(path, f"must hold the tensor {name}, found none")
        wanted = (tuple(tensor.shape), tensor.dtype)
        if found[name] != wanted:
            raise FileRefusedError(
                path,
                f"must hold {name} as {wanted[1]} of shape {wanted[0]}, found {found[name][1]} of "
                f"shape {found[name][0]}",
            )
    if unknown := found.keys() - expected.keys():
        raise FileRefusedError(path, f"holds the unknown tensor {min(unknown)[:100]}")
