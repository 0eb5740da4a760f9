"""Runtimes that exported networks run in, one function each; each is timed in its own process."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gatesearch.errors import GatesearchError, UsageError, first_line
from gatesearch.export.reader import Pixels, read_exported
from gatesearch.export.shipped import Shipped

# Runs a loaded network once on the images that were given to `Load`.
Run = Callable[[], object]
# (file, tasks, images 0..255 of shape (B, 3, H, W)) -> function that runs the network on them.
Load = Callable[[Path, tuple[str, ...], Pixels], Run]
# Device -> function that loads a network there. A runtime is imported by this call, so that its own
# memory is in use before the memory of the network is measured.
Runtime = Callable[[str], Load]


def _eager(device: str) -> Load:
    def load(file: Path, tasks: tuple[str, ...], images: Pixels) -> Run:
        return _runner(_network(file, tasks, device), images, device)

    return load


def _compile(device: str) -> Load:
    try:
        # This loads the compiler, whose memory must not count as the network's.
        torch.compile(torch.relu)(torch.zeros(1, device=device))
    except Exception as error:  # Dynamo, Inductor and Triton have exceptions of their own.
        raise UsageError(
            f"torch.compile must work here, found {error_line(error)}; install a C++ compiler "
            "such as g++ (triton for cuda), or leave compile out of --runtime"
        ) from error

    def load(file: Path, tasks: tuple[str, ...], images: Pixels) -> Run:
        return _runner(torch.compile(_network(file, tasks, device)), images, device)

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
    return Shipped(read_exported(file), tasks).eval().to(device)


def _runner(network: Callable[..., object], images: Pixels, device: str) -> Run:
    image = torch.from_numpy(images).to(device)

    def run() -> None:
        with torch.inference_mode():
            network(image)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


RUNTIMES: dict[str, Runtime] = {
    "eager": _eager,
    "compile": _compile,
    "onnxruntime": _onnxruntime,
}


def error_line(error: Exception) -> str:
    """Describe an error in a line; errors of runtimes are named by their type."""
    if isinstance(error, GatesearchError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)[:200]}"
