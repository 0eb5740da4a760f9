"""Read exported networks to predict with them, and compare them with the network in PyTorch."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from gatesearch.errors import DataError, UsageError
from gatesearch.export.shipped import CARD, Card, Shipped
from gatesearch.pruning import load_compact
from gatesearch.tasks import TASKS
from gatesearch.tasks.labels import to_array

Pixels = NDArray[np.float32]
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
    run: Callable[[Pixels], list[Pixels]]

    def predict(self, image: Pixels) -> dict[str, NDArray[np.generic]]:
        """Predict labels of images.

        Args:
            image: Images 0..255, (B, 3, H, W).

        Returns:
            Task -> predictions in the encoding of its labels, (B, H, W) or (B, H, W, 3).
        """
        labels = {}
        for (name, task), scores in zip(self.card.tasks.items(), self.run(image), strict=True):
            decode = TASKS[task.kind](classes=task.classes).decode
            labels[name] = to_array(decode(torch.from_numpy(scores)))
        return labels


def read_model(path: Path) -> Model:
    """Read a network that `gatesearch export` wrote as .onnx or .safetensors.

    Raises:
        DataError: There is no such file.
        UsageError: The file is damaged, was written by another version, or has a format that could
            run code.
    """
    if path.suffix not in _READERS:
        raise UsageError(
            f"a model must be a file of {' or '.join(_READERS)}, found {path}; a .pt2 can hold "
            "pickles, which run code, and is for `torch.export.load` in a process of yours"
        )
    if not path.is_file():
        raise DataError(f"no model {path}; write one with `gatesearch export`")
    return _READERS[path.suffix](path)


def parity(network: nn.Module, path: Path, frames: Path | None) -> float:
    """Measure how much the outputs of an exported file differ from those of its network.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        path: File that `write_network` wrote of it.
        frames: A study's `predictions.npz`, on whose frames outputs are compared; None for noise.

    Returns:
        max |difference| / max |output| of PyTorch, for the task where this is largest.

    Raises:
        UsageError: That is more than `PARITY`.
    """
    # `read_model` refuses .pt2 files, which could run code; this one was written by this process.
    model = _pt2(path) if path.suffix == ".pt2" else read_model(path)
    height, width = model.card.size
    if frames is not None:
        with np.load(frames, allow_pickle=False) as stored:
            images = stored["image"].transpose(0, 3, 1, 2).astype(np.float32)
    else:
        images = np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        expected = Shipped(network, tuple(model.card.tasks)).eval()(torch.from_numpy(images))
    difference = max(
        float(np.abs(a.numpy() - b).max() / np.abs(a.numpy()).max())
        for a, b in zip(expected, model.run(images), strict=True)
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
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise UsageError(f"{path} is no ONNX model that can be read: {_one_line(error)}") from error
    if CARD not in metadata:
        raise UsageError(f"{path} was not written by `gatesearch export`: it holds no {CARD}")
    card = _card(metadata[CARD], path)
    outputs = list(card.tasks)
    return Model(card, lambda image: list(session.run(outputs, {"image": image})))


def _safetensors(path: Path) -> Model:
    card_file = path.with_suffix(".card.json")
    if not card_file.is_file():
        raise UsageError(
            f"{path} needs {card_file.name} beside it, as `gatesearch export` writes it"
        )
    card = _card(card_file.read_text(encoding="utf-8"), card_file)
    network = Shipped(load_compact(path.with_suffix("")), tuple(card.tasks)).eval()

    def run(image: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [scores.numpy() for scores in network(torch.from_numpy(image))]

    return Model(card, run)


def _pt2(path: Path) -> Model:
    extra = {CARD: ""}  # `load` replaces the value
    with warnings.catch_warnings():
        # torch 2.11 warns about a buffer that it has read itself.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        program = torch.export.load(path, extra_files=extra).module()

    def run(image: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [scores.numpy() for scores in program(torch.from_numpy(image))]

    return Model(_card(extra[CARD], path), run)


def _card(text: str, path: Path) -> Card:
    try:
        card = Card.model_validate_json(text)
    except ValueError as error:
        raise UsageError(
            f"{path} is damaged, or of another version of gatesearch: {_one_line(error)}"
        ) from error
    for task in card.tasks.values():
        if task.kind not in TASKS:
            raise UsageError(f"{path} predicts '{task.kind}', a kind of task unknown here")
    return card


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


_READERS: dict[str, Callable[[Path], Model]] = {".onnx": _onnx, ".safetensors": _safetensors}
