"""Everything that the steps of a training change, and the checkpoint that holds it to the bit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from gatesearch.training.checkpoint import Checkpoint, PhaseCheckpoints
from gatesearch.training.history import History
from gatesearch.training.optimizer import Optimizer
from gatesearch.training.rng import RandomStates, random_states, restore_random_states
from gatesearch.training.weightings import Weighting

# JSON of a tensor is {_TENSOR: its name among the checkpoint's tensors}.
_TENSOR = "tensor"


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        totals: (T,) float64, sums of each task's losses over the steps of this epoch, weighted by
            the share of the batch's frames that have its labels.
        unlabelled: (T,) float64, frames of this epoch's steps without labels of each task.
        order: State of the data's generator at the beginning of this epoch.
        history: Values of the epochs that have ended; its seconds are those of all steps.
        done: Optimizer steps taken.
        parts: Micro-batches that a batch is split into.
    """

    totals: Tensor
    unlabelled: Tensor
    order: Tensor
    history: History = field(default_factory=History)
    done: int = 0
    parts: int = 1


class _Loop(TypedDict):
    """What a checkpoint holds of a training."""

    progress: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, dict[str, Any]]
    weighting: dict[str, Any]
    generators: list[Tensor]
    random: RandomStates


@dataclass
class TrainingState:
    """Everything that the steps of a training change.

    Attributes:
        model: The network: parameters, buffers, and what else it keeps (`get_extra_state`).
        optimizer: Trains the network's parameters; learning rates follow from `progress`.
        weighting: Balances the tasks; with what it learns or counts.
        data_generator: Draws the order of frames and their augmentation.
        held_out_generator: Draws held-out frames.
        device: Device of the model, whose random numbers count too.
        progress: How far the training is.
    """

    model: nn.Module
    optimizer: Optimizer
    weighting: Weighting
    data_generator: torch.Generator
    held_out_generator: torch.Generator
    device: str
    progress: Progress

    def checkpoint(self, phase: PhaseCheckpoints) -> Checkpoint:
        """Copy everything that the next steps depend on."""
        tensors: dict[str, Tensor] = {}
        progress = {**vars(self.progress), "history": asdict(self.progress.history)}
        loop = {
            "progress": progress,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "weighting": self.weighting.state_dict(),
            "generators": [generator.get_state() for generator in self._generators],
            "random": random_states(self.device),
        }
        state = {
            "phase": phase.name,
            "context": dict(phase.context),
            "loop": _pack(loop, "loop", tensors),
        }
        return Checkpoint(state, tensors)

    def restore(self, checkpoint: Checkpoint, phase: PhaseCheckpoints) -> None:
        """Put back what `checkpoint` copied.

        Raises:
            ValueError: The checkpoint is of another phase.
        """
        if checkpoint.state["phase"] != phase.name:
            raise ValueError(
                f"the phase {phase.name} cannot go on from a checkpoint of the phase "
                f"{checkpoint.state['phase']}; resume that one"
            )
        loop = cast(_Loop, _unpack(checkpoint.state["loop"], checkpoint.tensors))
        self.model.load_state_dict(loop["model"])
        _restore_optimizer(self.optimizer, loop["optimizer"])
        self.weighting.load_state_dict(loop["weighting"])
        for generator, state in zip(self._generators, loop["generators"], strict=True):
            generator.set_state(state)
        restore_random_states(loop["random"], self.device)
        saved = loop["progress"]
        # Checkpoints from before labels could be absent do not hold `unlabelled`.
        all_labelled = {"unlabelled": torch.zeros_like(saved["totals"])}
        history = History(**saved["history"])
        self.progress = Progress(**{**all_labelled, **saved, "history": history})

    @property
    def _generators(self) -> tuple[torch.Generator, ...]:
        return self.data_generator, self.held_out_generator


def _restore_optimizer(optimizer: Optimizer, state: Mapping[str, dict[str, Any]]) -> None:
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


def _pack(tree: object, name: str, tensors: dict[str, Tensor]) -> object:
    """Turn a tree into JSON that names its tensors; `tensors` receives copies of them."""
    if isinstance(tree, Tensor):
        tensors[name] = torch.empty(tree.shape, dtype=tree.dtype).copy_(tree.detach())
        return {_TENSOR: name}
    if isinstance(tree, Mapping):
        return {str(key): _pack(value, f"{name}.{key}", tensors) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_pack(value, f"{name}.{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _unpack(tree: object, tensors: Mapping[str, Tensor]) -> object:
    """Turn JSON of `_pack` back into a tree of tensors, dicts with text as keys, and lists."""
    if isinstance(tree, Mapping):
        if tree.keys() == {_TENSOR}:
            return tensors[tree[_TENSOR]]
        return {key: _unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_unpack(value, tensors) for value in tree]
    return tree
