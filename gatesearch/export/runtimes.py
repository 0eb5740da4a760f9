"""What runs a shipped network, to be timed in a process of its own; one function a runtime."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gatesearch.errors import GatesearchError, UsageError
from gatesearch.export.reader import Pixels
from gatesearch.export.shipped import Shipped
from gatesearch.pruning import load_compact

Run = Callable[[], object]
Load = Callable[[Path, tuple[str, ...], Pixels], Run]


def _eager(device: str) -> Load:
    def load(file: Path, tasks: tuple[str, ...], images: Pixels) -> Run:
        return _in_torch(_network(file, tasks, device), images, device)

    return load


def _compile(device: str) -> Load:
    try:
        # Loads the compiler, whose memory is not the network's.
        torch.compile(torch.relu)(torch.zeros(1, device=device))
    except Exception as error:  # dynamo's, inductor's, triton's
        raise UsageError(
            f"torch.compile must work here, found {said(error)}; install a C++ compiler such as "
            "g++ (triton for cuda), or leave compile out of --runtime"
        ) from error

    def load(file: Path, tasks: tuple[str, ...], images: Pixels) -> Run:
        return _in_torch(torch.compile(_network(file, tasks, device)), images, device)

    return load


def _onnxruntime(device: str) -> Load:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("needs onnxruntime: pip install 'gatesearch[onnx]'") from error

    def load(file: Path, tasks: tuple[str, ...], images: Pixels) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(list(tasks), {"image": images})

    return load


def _network(file: Path, tasks: tuple[str, ...], device: str) -> nn.Module:
    return Shipped(load_compact(file.with_suffix("")), tasks).eval().to(device)


def _in_torch(network: Callable[..., object], images: Pixels, device: str) -> Run:
    image = torch.from_numpy(images).to(device)

    def run() -> None:
        with torch.inference_mode():
            network(image)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


# Name -> what imports the runtime on a device, and gives what loads a file to be run on images
# 0..255 (B, 3, H, W). It is called in a process of its own.
RUNTIMES: dict[str, Callable[[str], Load]] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
}


def said(error: Exception) -> str:
    """An error of ours, or of a runtime, in a line."""
    if isinstance(error, GatesearchError):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first[:200]}"
