"""How far a training is, and the checkpoint from which it goes on to the bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gatesearch.training.checkpoint import Checkpoint, Phase
from gatesearch.training.history import History
from gatesearch.training.rng import random_states, restore_random_states
from gatesearch.training.weightings import Weighting

_TENSOR = "tensor"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        totals: (T,) float64, sums of each task's losses in this epoch.
        order: State of the data's generator at the beginning of this epoch.
        history: Of its whole epochs; the seconds are those of all steps.
        done: Optimizer steps.
        parts: Micro-batches that a batch is split into.
    """

    totals: Tensor
    order: Tensor
    history: History = field(default_factory=History)
    done: int = 0
    parts: int = 1


@dataclass(frozen=True)
class TrainingState:
    """Whatever of a training changes with its steps, beside its progress.

    Attributes:
        model: With what it keeps beside parameters (`get_extra_state`).
        optimizer: Of its parameters.
        weighting: With what it learns or counts.
        generators: Of data order and augmentation, and of held-out frames.
        device: Of the model; its random states count too.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    weighting: Weighting
    generators: tuple[torch.Generator, ...]
    device: str

    def checkpoint(self, phase: Phase, progress: Progress) -> Checkpoint:
        """Copies of everything that the next steps depend on."""
        tensors: dict[str, Tensor] = {}
        loop = {
            "progress": {**vars(progress), "history": asdict(progress.history)},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "weighting": self.weighting.state_dict(),
            "generators": [generator.get_state() for generator in self.generators],
            "random": random_states(self.device),
        }
        state = {
            "phase": phase.name,
            "context": dict(phase.context),
            "loop": _packed(loop, "loop", tensors),
        }
        return Checkpoint(state, tensors)

    def restore(self, checkpoint: Checkpoint, phase: Phase) -> Progress:
        """Put back what `checkpoint` copied; learning rates follow from the steps done.

        Raises:
            ValueError: The checkpoint is of another phase.
        """
        if checkpoint.state["phase"] != phase.name:
            raise ValueError(
                f"the phase {phase.name} cannot go on from a checkpoint of the phase "
                f"{checkpoint.state['phase']}; resume that one"
            )
        loop = _unpacked(checkpoint.state["loop"], checkpoint.tensors)
        self.model.load_state_dict(loop["model"])
        _restore_optimizer(self.optimizer, loop["optimizer"])
        self.weighting.load_state_dict(loop["weighting"])
        for generator, state in zip(self.generators, loop["generators"], strict=True):
            generator.set_state(state)
        restore_random_states(loop["random"], self.device)
        saved = loop["progress"]
        return Progress(**{**saved, "history": History(**saved["history"])})


def _restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Fused steps read moments in the memory layout of their parameter.
    placed = {
        int(index): {
            name: torch.empty_like(parameters[int(index)], dtype=value.dtype).copy_(value)
            if isinstance(value, Tensor) and value.shape == parameters[int(index)].shape
            else value
            for name, value in values.items()
        }
        for index, values in state.items()
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": placed, "param_groups": groups})


def _packed(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of a tree, in which a tensor is named; `tensors` gets the copies."""
    if isinstance(tree, Tensor):
        tensors[name] = torch.empty(tree.shape, dtype=tree.dtype).copy_(tree.detach())
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        return {str(key): _packed(value, f"{name}.{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_packed(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _unpacked(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, Mapping):
        if tree.keys() == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {key: _unpacked(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpacked(value, tensors) for value in tree]
    return tree
