"""Read exported networks to predict with them, and compare them with the network in PyTorch."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gatesearch.checksums import file_checksum
from gatesearch.errors import DataError, UsageError, one_line
from gatesearch.export.seals import open_card, open_onnx
from gatesearch.export.shipped import CARD, Card, Shipped
from gatesearch.files import FileRefusedError, read_bytes
from gatesearch.pruning import CompactNet
from gatesearch.pruning.compact import DESCRIPTION, WEIGHTS, read_compact
from gatesearch.tasks.labels import to_array
from gatesearch.tensor_files import refuse_large

Pixels = NDArray[np.float32]
Run = Callable[[Pixels], list[Pixels]]
# Largest difference between an exported file and its network, over the network's largest value.
PARITY = 1e-4


@dataclass(frozen=True)
class Model:
    """An exported network.

    Attributes:
        card: Describes its outputs.
        run: Images 0..255 (B, 3, H, W) -> outputs (B, channels, H, W), in the order of the card's
            tasks.
    """

    card: Card
    run: Run

    def predict(self, image: Pixels) -> dict[str, NDArray[np.generic]]:
        """Predict labels of images.

        Args:
            image: Images 0..255, (B, 3, H, W).

        Returns:
            Task -> decoded predictions (`Task.decode`): (B, H, W) or (B, H, W, 3), or for whole
            images (B, n) or (B, K, 3).
        """
        labels = {}
        for (name, task), scores in zip(self.card.tasks.items(), self.run(image), strict=True):
            decode = task.task.decode
            labels[name] = to_array(decode(torch.from_numpy(scores)))
        return labels


def read_model(path: Path) -> Model:
    """Read a network that `gatesearch export` wrote as .onnx or .safetensors.

    Raises:
        DataError: There is no such file, or it cannot be opened.
        UsageError: The file is damaged, was written by another version, or has a format that could
            run code.
    """
    if path.suffix not in _READERS:
        raise UsageError(
            f"a model must be a file of {' or '.join(_READERS)}, found {path}; a .pt2 can hold "
            "pickles, which run code, and is for `torch.export.load` in a process of yours"
        )
    if not path.exists():
        raise DataError(f"no model {path}; write one with `gatesearch export`")
    try:
        return _READERS[path.suffix](path)
    except FileRefusedError as error:
        raise UsageError(f"{error}; write it again with `gatesearch export`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def read_exported(path: Path) -> CompactNet:
    """Read the network of an exported .safetensors, without verifying its checksum.

    Raises:
        FileRefusedError: A file is missing or damaged.
    """
    description, weights = (_real(path.with_suffix(suffix)) for suffix in (DESCRIPTION, WEIGHTS))
    return read_compact(description, weights)


def parity(network: nn.Module, path: Path, frames: Pixels | None) -> float:
    """Measure how much the outputs of an exported file differ from those of its network.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        path: File that `write_network` wrote of it.
        frames: Images 0..255 (B, 3, H, W) on which outputs are compared; None for noise.

    Returns:
        max |difference| / max |output| of PyTorch, for the task where this is largest.

    Raises:
        UsageError: That is more than `PARITY`.
    """
    # `read_model` refuses .pt2 files, which could run code; this one was written by this process.
    model = _pt2(path) if path.suffix == ".pt2" else read_model(path)
    if frames is None:
        height, width = model.card.size
        frames = np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        expected = Shipped(network, tuple(model.card.tasks)).eval()(torch.from_numpy(frames))
    difference = max(
        float(np.abs(a.numpy() - b).max() / np.abs(a.numpy()).max())
        for a, b in zip(expected, model.run(frames), strict=True)
    )
    if not difference <= PARITY:  # also refuses NaN
        raise UsageError(
            f"{path.name} must compute what PyTorch does to {PARITY}, found {difference:.2g} off"
        )
    return difference


def _onnx(path: Path) -> Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "reading .onnx needs onnxruntime: pip install 'gatesearch[onnx]'"
        ) from error
    content = open_onnx(_real(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised; they need not be printed too
    try:
        # Read from memory, so that it cannot name other files that hold its weights.
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise FileRefusedError(
            path, f"is no ONNX model that can be read: {one_line(error)}"
        ) from error
    if CARD not in metadata:
        raise FileRefusedError(path, f"was not written by `gatesearch export`: it holds no {CARD}")
    card, _ = open_card(metadata[CARD], path)
    outputs = list(card.tasks)
    _check_session(session, outputs, path)
    return _checked(card, lambda image: list(session.run(outputs, {"image": image})), path)


def _check_session(session: Any, outputs: list[str], path: Path) -> None:
    """Refuse a model with other inputs or outputs than its card says."""
    inputs = [(item.name, item.type) for item in session.get_inputs()]
    if inputs != [("image", "tensor(float)")]:
        raise FileRefusedError(
            path, f"must have the input image, of floats, found {str(inputs)[:200]}"
        )
    there = {item.name for item in session.get_outputs()}
    if missing := [name for name in outputs if name not in there]:
        raise FileRefusedError(path, f"must have the output {missing[0]} of its card, found none")


def _safetensors(path: Path) -> Model:
    card_file, description = path.with_suffix(".card.json"), path.with_suffix(DESCRIPTION)
    for beside in (card_file, description):
        if not beside.exists():
            raise UsageError(
                f"{path} needs {beside.name} beside it, as `gatesearch export` writes it"
            )
    card, checksums = open_card(read_bytes(_real(card_file)), card_file)
    for file in (description, path):
        refuse_large(_real(file))
        if file_checksum(_real(file)) != checksums.get(file.suffix):
            raise FileRefusedError(
                file, f"was changed since it was exported: its checksum differs from {card_file}"
            )
    compact = read_exported(path)
    if compact.heads.keys() != card.tasks.keys():
        raise FileRefusedError(
            card_file, f"must describe the tasks {', '.join(compact.heads)}, found others"
        )
    network = Shipped(compact, tuple(card.tasks)).eval()

    def run(image: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [scores.numpy() for scores in network(torch.from_numpy(image))]

    return _checked(card, run, path)


def _pt2(path: Path) -> Model:
    extra = {CARD: ""}  # `load` replaces the value
    with warnings.catch_warnings():
        # torch 2.11 warns about a buffer that it has read itself.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program = torch.export.load(path, extra_files=extra).module()

    def run(image: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [scores.numpy() for scores in program(torch.from_numpy(image))]

    return _checked(open_card(extra[CARD], path)[0], run, path)


def _checked(card: Card, run: Run, path: Path) -> Model:
    """Make a model that refuses outputs of other shapes than its card says."""

    def checked(image: Pixels) -> list[Pixels]:
        try:
            outputs = run(image)
        # Runtimes raise nearly anything, for want of memory too.
        except Exception as error:
            raise UsageError(
                f"{path} cannot be run on images of {image.shape[2]} x {image.shape[3]} pixels: "
                f"{one_line(error)}"
            ) from error
        for (name, task), scores in zip(card.tasks.items(), outputs, strict=True):
            size = image.shape[2:] if task.task.dense else ()
            shape = (len(image), task.channels, *size)
            if scores.shape != shape or scores.dtype != np.float32:
                raise UsageError(
                    f"{path} must compute {name} as float32 of shape {shape}, found "
                    f"{scores.dtype} of shape {scores.shape}; write it again with "
                    "`gatesearch export`"
                )
        return outputs

    return Model(card, checked)


def _real(path: Path) -> Path:
    """Follow links: unlike in a store, a user may link to exported files, as a cache of them does.

    Raises:
        FileRefusedError: They do not lead to a regular file.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        raise FileRefusedError(path, "must be a regular file or a link to one; move it away")
    return real


_READERS: dict[str, Callable[[Path], Model]] = {".onnx": _onnx, ".safetensors": _safetensors}
