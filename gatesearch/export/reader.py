"""Shipped networks read again, to predict with."""

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

Pixels = NDArray[np.float32]
PARITY = 1e-4


@dataclass(frozen=True)
class Model:
    """A shipped network.

    Attributes:
        card: What it computes.
        run: Images 0..255 (B, 3, H, W) -> the outputs, in the order of the card's tasks.
    """

    card: Card
    run: Callable[[Pixels], list[Pixels]]

    def predict(self, image: Pixels) -> dict[str, NDArray[np.generic]]:
        """Task -> labels of a batch in their own encoding, (B, H, W) or (B, H, W, 3)."""
        labels = {}
        for (name, task), scores in zip(self.card.tasks.items(), self.run(image), strict=True):
            kind = TASKS[task.kind](classes=task.classes)
            found = kind.decode(torch.from_numpy(scores))
            labels[name] = (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy()
        return labels


def read_model(path: Path) -> Model:
    """The network that `gatesearch export` wrote, from .onnx or .safetensors.

    Raises:
        DataError: There is no such file.
        UsageError: It is damaged, of another version, or of a format that could run code.
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
    """Largest difference between a shipped file and its PyTorch network, over the largest value.

    Args:
        network: Image (B, 3, H, W) -> task -> (B, channels, H, W), on the processor.
        path: What `write_network` wrote of it.
        frames: A study's `predictions.npz`, whose frames are compared; noise without.

    Raises:
        UsageError: They differ by more than `PARITY`.
    """
    # A program written a moment ago holds no code of strangers.
    model = _pt2(path) if path.suffix == ".pt2" else read_model(path)
    height, width = model.card.size
    if frames is not None:
        with np.load(frames, allow_pickle=False) as stored:
            images = stored["image"].transpose(0, 3, 1, 2).astype(np.float32)
    else:
        images = np.random.default_rng(0).uniform(0, 255, (2, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        ours = Shipped(network, tuple(model.card.tasks)).eval()(torch.from_numpy(images))
    gap = max(
        float(np.abs(a.numpy() - b).max() / np.abs(a.numpy()).max())
        for a, b in zip(ours, model.run(images), strict=True)
    )
    if not gap <= PARITY:
        raise UsageError(
            f"{path.name} must compute what PyTorch does to {PARITY}, found {gap:.2g} off"
        )
    return gap


def _onnx(path: Path) -> Model:
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            "reading .onnx needs onnxruntime: pip install 'gatesearch[onnx]'"
        ) from error
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        stored = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # onnxruntime's own, which have no common base
        raise UsageError(f"{path} is no ONNX model that can be read: {_first(error)}") from error
    if CARD not in stored:
        raise UsageError(f"{path} was not written by `gatesearch export`: it holds no {CARD}")
    card = _card(stored[CARD], path)
    outputs = list(card.tasks)
    return Model(card, lambda image: list(session.run(outputs, {"image": image})))


def _safetensors(path: Path) -> Model:
    beside = path.with_suffix(".card.json")
    if not beside.is_file():
        raise UsageError(f"{path} needs {beside.name} beside it, as `gatesearch export` writes it")
    card = _card(beside.read_text(encoding="utf-8"), beside)
    network = Shipped(load_compact(path.with_suffix("")), tuple(card.tasks)).eval()

    def run(image: Pixels) -> list[Pixels]:
        with torch.inference_mode():
            return [scores.numpy() for scores in network(torch.from_numpy(image))]

    return Model(card, run)


def _pt2(path: Path) -> Model:
    extra = {CARD: ""}
    with warnings.catch_warnings():
        # Of torch 2.11, about bytes of its own.
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
            f"{path} is damaged, or of another version of gatesearch: {_first(error)}"
        ) from error
    for task in card.tasks.values():
        if task.kind not in TASKS:
            raise UsageError(f"{path} predicts '{task.kind}', a kind of task unknown here")
    return card


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


_READERS: dict[str, Callable[[Path], Model]] = {".onnx": _onnx, ".safetensors": _safetensors}
